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


def read(request: entries.Request) -> entries.Entries:
  """Reads the boxes of the pictures that are there.

  Rows of an image must be consecutive, as in the official files, so that only
  those of one image are held. Boxes of groups are crowds. Rows of Confidence 0,
  by which people said that the label is absent, are no boxes. Images without a
  box are left out, as nobody said that nothing is in them.

  The data set is a file of boxes beside that of names, or a folder with those
  of several splits; the names of files tell the splits, or their folders. The
  images lie in `images` or below it; without it in the folder of the boxes.
  """
  problems = request.problems
  folder, tables = folders.root_and_files(
    request.src, "-bbox.csv", "detections.csv"
  )
  images = folders.ending(request.images or folder, *image_files.SUFFIXES)
  images = {path.stem: path for path in images}
  labels = _labels(folder)
  done = set()
  for path in tables:
    split = entries.split_of(path.relative_to(folder))
    rows = _rows(path, images, problems)
    for key, group in itertools.groupby(rows, lambda row: row[1]["ImageID"]):
      members = list(group)
      where, _ = members[0]
      with problems:
        if key in done:
          raise ValueError(
            f"{where}: rows of image {key} stand apart, expected them "
            "together; sort the file by ImageID"
          )
        done.add(key)
        objects = tuple(_object(row, labels, place) for place, row in members)
        yield entries.Entry((images[key],), where, split, objects=objects)
  for key in sorted(images.keys() - done):
    problems.note("pictures without a box left out", str(images[key]))


def _labels(folder):
  """Label by code: "/m/01g317" is "Person"."""
  paths = folders.matching(folder, "**/*class-descriptions*.csv")
  paths += folders.matching(folder, "**/classes.csv")
  if not paths:
    raise ValueError(
      f"{folder}: no class-descriptions-boxable.csv, which names the labels"
    )
  return {
    line[0].strip(): line[1].strip()
    for line in csv.reader(files.read_lines(paths[0]))
    if len(line) == 2 and line[0].startswith("/")
  }


def _rows(path, images, problems):
  """Yields (place, row) of the boxes in the images that are there."""
  for where, row in files.read_rows(path):
    for name in ("ImageID", "LabelName", *_EDGES):
      if name not in row:
        raise ValueError(
          f"{path}:1: no column {name}, found {', '.join(row):.100}"
        )
    if row["ImageID"] in images:
      if boxes.number(row.get("Confidence")) == 0:
        problems.note("rows of Confidence 0, which are no boxes", where)
      else:
        yield where, row


def _object(row, labels, where):
  code = row["LabelName"]
  if code not in labels:
    raise ValueError(
      f"{where}: unknown label {code:.60}, the {len(labels)} known are others"
    )
  box = tuple(files.get_numbers(row, _EDGES, where))
  crowd = row.get("IsGroupOf", "0").strip() == "1"
  return entries.Object(labels[code], box, where, crowd=crowd, shares=True)
