"""Darknet: obj.data, or its folder, with obj.names and lists of pictures.

As the README of AlexeyAB/darknet has it under "How to train (to detect your
custom objects)", CVAT's export "YOLO 1.1", and Roboflow's "YOLO Darknet", whose
folders train, valid and test hold _darknet.labels in the place of obj.names.
"""

import pathlib

from paligemma.data import image_files
from scripts.imports import entries, files, folders, yolo_labels

_LABELS = "_darknet.labels"  # of Roboflow


def read(request: entries.Request) -> entries.Entries:
  """Reads the pictures of the lists that obj.data names.

  Paths in it start where darknet was run: they are looked for beside obj.data,
  above it, and without their first folder. Labels are read by yolo_labels.read.

  The data set is obj.data, the folder with one *.data, or that with the folders
  of Roboflow. With `images`, paths in the lists are relative to it alone.
  """
  src, problems = request.src, request.problems
  if src.is_dir() and (named := folders.matching(src, f"**/{_LABELS}")):
    names = files.read_words(named[0])
    splits = [
      (
        entries.split_of(path.relative_to(src).parent),
        folders.ending(path.parent, *image_files.SUFFIXES),
      )
      for path in named
    ]
  else:
    names, splits = _described(request)
  request.labels = names
  labels = dict(enumerate(names))
  for split, images in splits:
    with problems:
      yield from yolo_labels.read(
        images, src.parent, split, labels, f"{src}: {split}", problems
      )


def _described(request):
  """Names, and the pictures of each split, as obj.data says."""
  src, problems = request.src, request.problems
  if src.is_dir():
    found = folders.ending(src, ".data")
    if len(found) > 1:
      raise ValueError(f"{src}: several files *.data, name one of them")
    (src,) = found
  lines = [line.partition("=") for line in files.read_lines(src)]
  content = {key.strip(): value.strip() for key, _, value in lines}
  where = str(src)
  names = files.get(content, "names", str, where)
  names = files.read_words(_at(src, names, where, problems))
  if content.get("classes", str(len(names))) != str(len(names)):
    raise ValueError(
      f"{src}: classes = {content['classes']:.20}, but {len(names)} names"
    )
  splits = []
  for key in ("train", "valid", "test"):
    if not content.get(key):
      continue
    path = _at(src, content[key], where, problems)
    listed = files.read_words(path)
    if request.images is None:
      listed = [_at(src, x, str(path), problems) for x in listed]
    else:
      places = [request.images]
      listed = [folders.find(x, places, str(path), problems) for x in listed]
    splits.append((entries.SPLITS[key], listed))
  if not splits:
    raise ValueError(f"{src}: names no list, expected train = train.txt")
  return names, splits


def _at(src, name, where, problems):
  """The file of a path that starts where darknet was run."""
  path = pathlib.PurePosixPath(name.replace("\\", "/"))
  roots = [src.parent, src.parent.parent]
  short = pathlib.PurePosixPath(*path.parts[1:])
  found = [
    folders.find(str(option), roots, where, problems)
    for option in (path, short)
  ]
  return next((path for path in found if path.is_file()), found[0])
