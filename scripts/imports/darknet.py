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
  above it, and without their first folder. A picture's labels lie beside it,
  or, with /images/ in its path, under /labels/. A line is "class x y width
  height", as in YOLO.

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
    names, splits = _described(src, images)
  labels = dict(enumerate(name.strip() for name in names if name.strip()))
  return entries.Annotations(
    _entries(splits, labels, problems), tuple(labels.values())
  )


def _described(src, images):
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
      listed = [folders.find(line, [pathlib.Path(images)]) for line in listed]
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


def _entries(splits, labels, problems):
  for split, listed in splits:
    for image in listed:
      with problems:
        beside = image.with_suffix(".txt")
        path = next(
          (x for x in (beside, yolo.label_path(image)) if x.is_file()), None
        )
        if path is None:
          raise ValueError(
            f"{beside}: no such file, expected the labels of {image.name}; an "
            "empty one says that nothing is in it"
          )
        things = tuple(
          _thing(line.split(), labels, f"{path}:{number}")
          for number, line in enumerate(files.read_lines(path), start=1)
          if line.strip()
        )
        yield entries.Entry(image, str(path), split, things=things)


def _thing(words, labels, where):
  number, *shares = files.numbers(words, 5, "class x y width height", where)
  if number not in labels:
    raise ValueError(
      f"{where}: unknown class {words[0]:.20}, expected one from 0 to "
      f"{len(labels) - 1}"
    )
  box = entries.BOXES["cxcywh"](*shares)
  return entries.Thing(labels[number], box, where, shares=True)
