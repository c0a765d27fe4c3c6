"""CSV and TSV files: a row for each caption, question or box of an image."""

import pathlib

from scripts.imports import columns, entries, files

NEEDED = {
  "caption": ("image", "caption"),
  "vqa": ("image", "question", "answer"),
  "detect": ("image", "label", "xmin", "ymin", "xmax", "ymax"),
}
_EDGES = ("ymin", "xmin", "ymax", "xmax")


def read(src, images, problems, *, task, names):
  """Reads a table with a header.

  Rows of one image are its captions or its boxes; a box is in pixels, and a row
  without one, with empty cells, says that nothing is in the image. A question
  stands alone.

  Args:
    src: path of the file; ".tsv" has tabulators between cells, else commas.
    images: folder that images are relative to; None for that of the file.
    problems: entries.Problems.
    task: "caption", "vqa" or "detect".
    names: key of columns.NAMES -> column, where it has another name.

  Returns:
    entries.Annotations.

  Raises:
    ValueError: the file is malformed or lacks a column, or whatever `problems`
      does not skip.
  """
  src = pathlib.Path(src)
  if task not in NEEDED:
    raise ValueError(f"{src}: a table has nothing for --task {task}")
  folder = src.parent if images is None else pathlib.Path(images)
  rows = list(files.read_rows(src))
  chosen = columns.choose(NEEDED[task], list(rows[0][1]), names, str(src))
  found = _entries(rows, chosen, folder, task, problems)
  return entries.Annotations(found)


def _entries(rows, chosen, folder, task, problems):
  groups = {}
  for i, (where, row) in enumerate(rows):
    with problems:
      (name,) = columns.texts(row[chosen["image"]], where, "image")
      groups.setdefault((name, i if task == "vqa" else 0), []).append(
        (where, row)
      )
  for (name, _), members in groups.items():
    with problems:
      where, first = members[0]
      fields = columns.rest(first, chosen)
      yield entries.Entry(
        folder / name,
        where,
        fields=fields if len(members) == 1 else {},
        **_annotations(members, chosen, task, problems),
      )


def _annotations(members, chosen, task, problems):
  if task == "detect":
    found = []
    for where, row in members:
      with problems:
        found += _things(row, chosen, where)
    return {"things": tuple(found)}
  if task == "vqa":
    ((where, row),) = members
    return columns.annotations(row, chosen, where)
  captions = []
  for where, row in members:
    with problems:
      captions += columns.annotations(row, chosen, where)["captions"]
  return {"captions": tuple(captions) or None}


def _things(row, chosen, where):
  edges = [row[chosen[name]].strip() for name in _EDGES]
  label = row[chosen["label"]].strip()
  if not any(edges) and not label:
    return []
  if not label:
    raise ValueError(f"{where}: box without a label")
  numbers = files.numbers(edges, 4, ", ".join(_EDGES), where)
  return [entries.Thing(label, tuple(numbers), where)]
