"""Open Images: a folder with CSV files of boxes and of names of labels.

The files of storage.googleapis.com/openimages: train-annotations-bbox.csv, in
some releases with a prefix such as oidv6-, class-descriptions-boxable.csv, and
pictures named by their ImageID; or those as FiftyOne lays them out, with
labels/detections.csv and metadata/classes.csv.
"""

import csv
import itertools

from paligemma.data import image_files
from scripts.imports import boxes, entries, files, folders

_EDGES = ("YMin", "XMin", "YMax", "XMax")


def read(request: entries.Request) -> entries.Annotations:
  """Reads the boxes of the pictures that are there.

  Rows of a picture stand together, as in the official files, of which no more
  than those of one picture are held. Boxes of groups are crowds. A row of
  Confidence 0, by which people said that the label is absent, is no box.
  Pictures without a box are left out, as nobody said that nothing is in them.

  The data set is a file of boxes beside that of names, or a folder with those
  of several splits; the names of files tell the splits, or their folders. The
  pictures lie in `images` or below it; without it in the folder of the boxes.
  """
  folder, tables = folders.root_and_files(
    request.src, "-bbox.csv", "detections.csv"
  )
  there = folders.ending(request.images or folder, *image_files.SUFFIXES)
  found = {path.stem: path for path in there}
  labels = _labels(folder)
  return entries.Annotations(
    _entries(tables, folder, found, labels, request.problems)
  )


def _labels(folder):
  """Label by code: "/m/01g317" is "Person"."""
  paths = [
    path
    for name in ("*class-descriptions*.csv", "classes.csv")
    for path in folders.matching(folder, f"**/{name}")
  ]
  if not paths:
    raise ValueError(
      f"{folder}: no class-descriptions-boxable.csv, which names the labels"
    )
  labels = {}
  for line in csv.reader(files.read_lines(paths[0])):
    if len(line) == 2 and line[0].startswith("/"):
      labels[line[0].strip()] = line[1].strip()
  return labels


def _entries(tables, folder, found, labels, problems):
  done = set()
  for path in tables:
    split = entries.split_of(path.relative_to(folder)) or "train"
    rows = _rows(path, found, problems)
    for key, group in itertools.groupby(rows, lambda row: row[1]["ImageID"]):
      members = list(group)
      with problems:
        if key in done:
          raise ValueError(
            f"{members[0][0]}: rows of image {key} stand apart, expected them "
            "together; sort the file by ImageID"
          )
        done.add(key)
        objects = tuple(_object(row, labels, where) for where, row in members)
        yield entries.Entry(found[key], members[0][0], split, objects=objects)
  for key in sorted(found.keys() - done):
    problems.note("pictures without a box left out", str(found[key]))


def _rows(path, found, problems):
  """The rows of boxes in the pictures, as (place, fields), one by one."""
  needed = ("ImageID", "LabelName", *_EDGES)
  try:
    with path.open(encoding="utf-8-sig", newline="") as file:
      lines = csv.reader(file)
      header = [name.strip() for name in next(lines, [])]
      for name in needed:
        if name not in header:
          raise ValueError(
            f"{path}:1: no column {name}, found {', '.join(header):.100}"
          )
      at = header.index("ImageID")
      for cells in lines:
        if not cells:
          continue
        if len(cells) != len(header):
          raise ValueError(
            f"{path}:{lines.line_num}: found {len(cells)} cells, expected "
            f"{len(header)}"
          )
        if cells[at] in found:
          fields = dict(zip(header, cells, strict=True))
          where = f"{path}:{lines.line_num}"
          if boxes.number(fields.get("Confidence")) == 0:
            problems.note("rows of Confidence 0, which are no boxes", where)
          else:
            yield where, fields
  except OSError as error:
    raise ValueError(f"{path}: cannot read it: {error.strerror}") from None
  except (csv.Error, UnicodeDecodeError) as error:
    raise ValueError(f"{path}: malformed CSV: {error}") from None


def _object(row, labels, where):
  code = row["LabelName"]
  if code not in labels:
    raise ValueError(
      f"{where}: unknown label {code:.60}, the {len(labels)} known are others"
    )
  box = files.numbers(
    [row[edge] for edge in _EDGES], 4, ", ".join(_EDGES), where
  )
  return entries.Object(
    labels[code],
    tuple(box),
    where,
    crowd=row.get("IsGroupOf", "0").strip() == "1",
    shares=True,
  )
