"""CreateML: JSON files of pictures with boxes given by their centres.

As Apple's documentation of Create ML has it under "Building an object detector
data source", and Roboflow's export: {"image": "a.jpg", "annotations":
[{"label": "cat", "coordinates": {"x": 40, "y": 30, "width": 20, "height":
10}}]}; older files say "imagefilename" and "annotation".
"""

import pathlib

from scripts.imports import entries, files, folders

_IMAGE = ("image", "imagefilename")
_ANNOTATIONS = ("annotations", "annotation")
_COORDINATES = ("x", "y", "width", "height")


def read(src, images, problems):
  """Reads the JSON files in a folder and below, or one.

  Folders tell the splits: train/_annotations.createml.json.

  Args:
    src: the folder, or a JSON file.
    images: folder that names of pictures are relative to; None for that of the
      JSON.
    problems: entries.Problems.

  Returns:
    entries.Annotations.

  Raises:
    ValueError: a file is malformed, or whatever `problems` does not skip.
  """
  src = pathlib.Path(src)
  root, found = src.parent, [src]
  if src.is_dir():
    root, found = src, folders.ending(src, ".json")
  return entries.Annotations(_entries(found, root, images, problems))


def _entries(found, root, images, problems):
  for path in found:
    content = files.read_json(path)
    if not isinstance(content, list):
      raise ValueError(
        f"{path}: expected a list of pictures, found {content!r:.60}"
      )
    split = entries.split_of(path.relative_to(root).parent) or "train"
    places = [path.parent if images is None else pathlib.Path(images)]
    for i, fields in enumerate(content):
      with problems:
        where = f"{path}: picture number {i}"
        yield _entry(fields, split, places, where, problems)


def _entry(fields, split, places, where, problems):
  name = files.get(fields, _key(fields, _IMAGE), str, where)
  annotations = files.get(fields, _key(fields, _ANNOTATIONS), list, where)
  things = tuple(
    _thing(annotation, f"{where}: annotation {i}")
    for i, annotation in enumerate(annotations)
  )
  image = folders.find(name, places, where, problems)
  return entries.Entry(image, where, split, things=things)


def _thing(annotation, where):
  label = files.get(annotation, "label", str, where)
  centre = files.get(annotation, "coordinates", dict, where)
  found = [centre.get(key) for key in _COORDINATES]
  numbers = files.numbers(found, 4, ", ".join(_COORDINATES), where)
  return entries.Thing(label, entries.BOXES["cxcywh"](*numbers), where)


def _key(fields, options):
  there = fields if isinstance(fields, dict) else ()
  return next((key for key in options if key in there), options[0])
