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
  names = files.get(content, "names", str, where)
  names = files.read_lines(_at(src, names, where, problems))
  count = sum(1 for name in names if name.strip())
  if content.get("classes", str(count)) != str(count):
    raise ValueError(
      f"{src}: classes = {content['classes']:.20}, but {count} names"
    )
  splits = []
  for key in _LISTS:
    if not content.get(key):
      continue
    path = _at(src, content[key], where, problems)
    listed = [line.strip() for line in files.read_lines(path) if line.strip()]
    if images is None:
      listed = [_at(src, x, str(path), problems) for x in listed]
    else:
      places = [pathlib.Path(images)]
      listed = [folders.find(x, places, str(path), problems) for x in listed]
    splits.append((entries.split_name(key), listed))
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


def _entries(src, splits, labels, problems):
  data = yolo._Dataset(str(src), src.parent, {}, labels, pose=False)
  for split, listed in splits:
    with problems:
      where = f"{src}: {split}"
      found = yolo._label_files(listed, src.parent, where, problems)
      for image in listed:
        with problems:
          yield yolo._entry(image, found.get(image), split, data, problems)
