"""Darknet: obj.data, obj.names, lists of pictures, and labels beside those.

As the README of AlexeyAB/darknet has it under "How to train (to detect your
custom objects)", CVAT's export "YOLO 1.1", and Roboflow's "YOLO Darknet", whose
folders train, valid and test hold _darknet.labels in the place of obj.names.
"""

import pathlib

from scripts.imports import entries, files, folders, pictures, yolo

_LISTS = ("train", "valid", "test")
_LABELS = "_darknet.labels"


def read(src, images, problems):
  """Reads the pictures of the lists that obj.data names.

  Paths in it start where darknet was run: they are looked for beside obj.data,
  above it, and without their first folder. Labels are those of YOLO, where they
  lie and what they say (yolo.read).

  Args:
    src: path of obj.data, or of the folder with one *.data, or of that with the
      folders of Roboflow.
    images: folder that the paths in the lists are relative to; None for those
      above.
    problems: entries.Problems.

  Returns:
    entries.Annotations.

  Raises:
    ValueError: a file is malformed, or whatever `problems` does not skip.
  """
  src = pathlib.Path(src)
  if src.is_dir() and (named := sorted(src.rglob(_LABELS))):
    names = files.read_lines(named[0])
    splits = [
      (
        entries.split_of(path.relative_to(src).parent) or "train",
        folders.ending(path.parent, *pictures.SUFFIXES),
      )
      for path in named
    ]
  else:
    names, splits = _described(src, images, problems)
  labels = dict(enumerate(name.strip() for name in names if name.strip()))
  return entries.Annotations(
    _entries(src, splits, labels, problems), tuple(labels.values())
  )


def _described(src, images, problems):
  """Names, and the pictures of each split, as obj.data says."""
  if src.is_dir():
    found = folders.ending(src, ".data")
    if len(found) > 1:
      raise ValueError(f"{src}: several files *.data, name one of them")
    (src,) = found
  content = {}
  for line in files.read_lines(src):
    key, _, value = line.partition("=")
    content[key.strip()] = value.strip()
  where = str(src)
  names = files.read_lines(_at(src, files.get(content, "names", str, where)))
  splits = []
  for key in _LISTS:
    if not content.get(key):
      continue
    path = _at(src, content[key])
    listed = [line.strip() for line in files.read_lines(path) if line.strip()]
    if images is None:
      listed = [_at(src, line) for line in listed]
    else:
      places = [pathlib.Path(images)]
      listed = [folders.find(x, places, str(path), problems) for x in listed]
    splits.append((entries.split_name(key), listed))
  if not splits:
    raise ValueError(f"{src}: names no list, expected train = train.txt")
  return names, splits


def _at(src, name):
  """The file of a path that starts where darknet was run."""
  path = pathlib.PurePosixPath(name.replace("\\", "/"))
  roots = [src.parent, src.parent.parent]
  short = pathlib.PurePosixPath(*path.parts[1:])
  options = [root / x for x in (path, short) for root in roots]
  return next((path for path in options if path.is_file()), options[0])


def _entries(src, splits, labels, problems):
  data = yolo._Dataset(str(src), src.parent, {}, labels, pose=False)
  for split, listed in splits:
    with problems:
      where = f"{src}: {split}"
      found = yolo._label_files(listed, src.parent, where, problems)
      for image in listed:
        with problems:
          yield yolo._entry(image, found.get(image), split, data, problems)
