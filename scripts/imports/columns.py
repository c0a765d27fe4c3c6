"""Columns of tables: which of them is the caption, and what its cells hold."""

from collections.abc import Mapping, Sequence
from typing import Any

from paligemma import tree
from scripts.imports import entries, files

# what a column holds -> names it is found by
NAMES = {
  "image": ("image", "file_name", "filename", "image_path", "path"),
  "caption": ("caption", "captions", "text"),
  "question": ("question",),
  "answer": ("answer", "answers"),
  "objects": ("objects",),
  "label": ("label", "class", "class_name", "category"),
  "xmin": ("xmin",),
  "ymin": ("ymin",),
  "xmax": ("xmax",),
  "ymax": ("ymax",),
}
# Of what stands under "objects".
_BOX = ("bbox", "boxes")
_CATEGORY = ("category", "categories", "label", "labels")


def choose(
  needed: Sequence[str],
  present: Sequence[str],
  given: Mapping[str, str],
  where: str,
) -> dict[str, str]:
  """The columns that a task needs.

  Args:
    needed: keys of NAMES.
    present: the columns of the table.
    given: key of NAMES -> column, where it has another name.
    where: what the message of an error begins with.

  Returns:
    key of NAMES -> column.

  Raises:
    ValueError: a column that is given or needed is not there.
  """
  for name, column in given.items():
    tree.lookup(NAMES, name, "name in --columns")
    if column not in present:
      raise ValueError(
        f'{where}: no column "{column}", found {", ".join(present)}.'
        + tree.did_you_mean(column, present)
      )
  chosen = {}
  for name in needed:
    options = [given[name]] if name in given else NAMES[name]
    found = [column for column in options if column in present]
    if not found:
      raise ValueError(
        f"{where}: no column {' or '.join(options)}, found "
        f"{', '.join(present)}; name it with --columns {name}=COLUMN"
      )
    chosen[name] = found[0]
  return chosen


def texts(value: Any, where: str, what: str) -> tuple[str, ...]:
  """The texts of a cell that holds one or a list of them.

  Raises:
    ValueError: it holds something else, or nothing.
  """
  found = value if isinstance(value, list) else [value]
  if not found or not all(isinstance(x, str) and x.strip() for x in found):
    raise ValueError(f"{where}: expected a text as {what}, found {value!r:.60}")
  return tuple(text.strip() for text in found)


def annotations(
  row: Mapping[str, Any], chosen: Mapping[str, str], where: str
) -> dict[str, Any]:
  """The caption, question and answers of a row, as an Entry has them."""
  found = {}
  if "caption" in chosen:
    found["captions"] = texts(row[chosen["caption"]], where, "caption")
  if "question" in chosen:
    (found["question"],) = texts(row[chosen["question"]], where, "question")
    found["answers"] = texts(row[chosen["answer"]], where, "answer")
  return found


def rest(row: Mapping[str, Any], chosen: Mapping[str, str]) -> dict[str, Any]:
  """What else is in a row, as far as JSON can hold it."""
  return {
    key: value
    for key, value in row.items()
    if key not in chosen.values() and _is_json(value)
  }


def things(
  objects: Any, classes: Sequence[str] | None, where: str, problems
) -> tuple[entries.Thing, ...]:
  """The objects of a cell, in the form of Hugging Face data sets.

  Args:
    objects: {"bbox": [[x, y, width, height], ...], "category": [...]}, or a
      list of {"bbox": ..., "category": ...}; further keys are left out.
    classes: names, where a category is a number.
    where: what the message of an error begins with.
    problems: entries.Problems.
  """
  if isinstance(objects, Mapping):
    keys, lists = list(objects), list(objects.values())
    if any(not isinstance(x, list) or len(x) != len(lists[0]) for x in lists):
      raise ValueError(
        f"{where}: expected lists of one length as objects, found "
        f"{objects!r:.80}"
      )
    objects = [
      dict(zip(keys, x, strict=True)) for x in zip(*lists, strict=True)
    ]
  if not isinstance(objects, list):
    raise ValueError(f"{where}: expected objects, found {objects!r:.60}")
  found = []
  for i, fields in enumerate(objects):
    place = f"{where}: object {i}"
    with problems:
      box = files.get(fields, _key(fields, _BOX), (list, tuple), place)
      x, y, w, h = files.numbers(box, 4, "x, y, width, height", place)
      category = files.get(fields, _key(fields, _CATEGORY), (str, int), place)
      label = _label(category, classes, place)
      found.append(entries.Thing(label, (y, x, y + h, x + w), place))
  return tuple(found)


def _key(fields, options):
  return next((key for key in options if key in fields), options[0])


def _label(category, classes, where):
  if isinstance(category, str):
    return category
  if classes is None:
    raise ValueError(
      f"{where}: category {category} is a number for which the data set has no "
      "name; expected a text"
    )
  if not 0 <= category < len(classes):
    raise ValueError(
      f"{where}: unknown category {category}, the data set has {len(classes)}"
    )
  return classes[category]


def _is_json(value) -> bool:
  if isinstance(value, list):
    return all(map(_is_json, value))
  if isinstance(value, dict):
    return all(map(_is_json, value.values()))
  return value is None or isinstance(value, str | int | float)
