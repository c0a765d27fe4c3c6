"""Columns of tables: which of them is the caption, and what its cells hold."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from paligemma import messages, registry
from scripts.imports import boxes, entries, files

# what a column holds -> names it is found by
NAMES = {
  "image": (
    *("image", "file_name", "filename", "image_path", "path", "images"),
    *("image_file", "image_name", "img", "img_path", "file"),
  ),
  "caption": ("caption", "captions", "text"),
  "question": ("question",),
  "answer": ("answer", "answers"),
  "objects": ("objects",),
  "label": ("label", "class", "class_name", "category", "label_name"),
  "xmin": ("xmin", "x0", "x1", "left"),
  "ymin": ("ymin", "y0", "y1", "top"),
  "xmax": ("xmax", "x2", "x1", "right"),
  "ymax": ("ymax", "y2", "y1", "bottom"),
  "x": ("x", "xmin", "x0", "x1", "left"),
  "y": ("y", "ymin", "y0", "y1", "top"),
  "cx": ("cx", "x_center", "center_x", "x"),
  "cy": ("cy", "y_center", "center_y", "y"),
  "w": ("w", "box_width", "bbox_width", "xmax", "width"),
  "h": ("h", "box_height", "bbox_height", "ymax", "height"),
  "width": ("width", "image_width", "img_width"),
  "height": ("height", "image_height", "img_height"),
}
# key of entries.BOXES -> the columns of its numbers
EDGES = {
  "xyxy": ("xmin", "ymin", "xmax", "ymax"),
  "xywh": ("x", "y", "w", "h"),
  "cxcywh": ("cx", "cy", "w", "h"),
}
_CONVERSATIONS = ("conversations", "conversation", "messages")
# Of what stands under "objects".
_BOX = ("bbox", "boxes", "box", "bboxes")
_CATEGORY = ("category", "categories", "label", "labels", "class", "name")


def choose(
  needed: Sequence[str],
  present: Sequence[str],
  given: Mapping[str, str],
  where: str,
) -> dict[str, str]:
  """{key of NAMES: column} for the keys that a task needs.

  `given` are columns by such keys, named by the user.
  """
  for name, column in given.items():
    registry.lookup(NAMES, name, "name in --columns")
    if column not in present:
      raise ValueError(
        f'{where}: no column "{column}", found '
        f"{messages.shown(', '.join(present))}."
        + registry.did_you_mean(column, present)
      )
  chosen = {}
  for name in needed:
    options = [given[name]] if name in given else NAMES[name]
    found = find(options, present, where)
    if found is None:
      hint = f"; name it with --columns {name}=COLUMN"
      if set(_CONVERSATIONS) & set(present):
        hint = "; conversations are read with --from conversations"
      raise ValueError(
        f"{where}: no column {' or '.join(options[:5])}, found "
        f"{messages.shown(', '.join(present))}{hint}"
      )
    chosen[name] = found
  return chosen


def find(
  options: Sequence[str], present: Sequence[str], where: str
) -> str | None:
  """The column that has the first of some names, None if there is none.

  Where none is written just so, case, spaces and signs are ignored: "X Min" is
  "xmin".
  """

  def plain(name):
    return re.sub(r"[\W_]+", "", name).lower()

  for option in options:
    if option in present:
      return option
  for option in options:
    found = [x for x in present if plain(x) == plain(option)]
    if len(found) > 1:
      both = messages.shown(f'both "{found[0]}" and "{found[1]}"')
      raise ValueError(f"{where}: {both} could be the column {option}")
    if found:
      return found[0]
  return None


def texts(value: Any, where: str, what: str) -> tuple[str, ...]:
  """The texts of a cell that holds one or a list of them.

  A number is the text of it, 7.0 as 7; of fields, as {"answer": "x"}, that of
  the name counts.
  """
  found = []
  for item in value if isinstance(value, list | tuple) else [value]:
    if isinstance(item, Mapping):
      item = item.get(what)
    if isinstance(item, float) and item.is_integer():
      item = int(item)
    if isinstance(item, int | float) and not isinstance(item, bool):
      item = str(item) if math.isfinite(item) else None
    found.append(item.strip() if isinstance(item, str) else None)
  if not all(found) or not found:
    raise ValueError(
      f"{where}: expected a text or a number as {what}, found {value!r:.60}"
    )
  return tuple(found)


def annotations(
  row: Mapping[str, Any], chosen: Mapping[str, str], where: str
) -> dict[str, Any]:
  """The caption, question and answers of a row, as an Entry has them."""
  found = {}
  if "caption" in chosen:
    found["captions"] = texts(row[chosen["caption"]], where, "caption")
  if "question" in chosen:
    questions = texts(row[chosen["question"]], where, "question")
    if len(questions) > 1:
      raise ValueError(
        f"{where}: expected one question, found {questions!r:.60}"
      )
    (found["question"],) = questions
    found["answers"] = texts(row[chosen["answer"]], where, "answer")
  return found


def rest(row: Mapping[str, Any], chosen: Mapping[str, str]) -> dict[str, Any]:
  """The other columns of a row."""
  taken = set(chosen.values())
  return {key: value for key, value in row.items() if key not in taken}


def to_objects(cell: Any, where: str) -> tuple[entries.Object, ...]:
  """The objects of a cell, in the form of Hugging Face data sets.

  Such as {"bbox": [[x, y, width, height], ...], "category": [...]} or [{"bbox":
  ..., "category": ...}, ...], also with "area" and "iscrowd".
  """
  found = []
  for i, fields in enumerate(_each(cell, where)):
    place = f"{where}: object {i}"
    key = files.key_of(fields, _BOX)
    box = files.get(fields, key, (list, tuple, str), place)
    key = files.key_of(fields, _CATEGORY)
    category = files.get(fields, key, (str, int), place)
    if isinstance(category, int):
      raise ValueError(
        f"{place}: category {category} is a number for which the data set has "
        "no name; expected a text"
      )
    values = files.numbers(box, 4, "of a box", place)
    more = boxes.details(fields, place)
    found.append(entries.Object(category, values, place, shares=None, **more))
  return tuple(found)


def _each(objects, where):
  """The objects of a cell as a list."""
  if isinstance(objects, Mapping):
    keys, lists = list(objects), list(objects.values())
    if any(not isinstance(x, list) or len(x) != len(lists[0]) for x in lists):
      raise ValueError(
        f"{where}: expected lists of one length as objects, found "
        f"{objects!r:.80}"
      )
    return [dict(zip(keys, x, strict=True)) for x in zip(*lists, strict=True)]
  if not isinstance(objects, list):
    raise ValueError(f"{where}: expected objects, found {objects!r:.60}")
  return objects
