"""CreateML: a JSON file of boxes by centre, or a folder of some.

As Apple's documentation of Create ML has it under "Building an object detector
data source", and Roboflow's export: {"image": "a.jpg", "annotations":
[{"label": "cat", "coordinates": {"x": 40, "y": 30, "width": 20, "height":
10}}]}; older files say "imagefilename" and "annotation".
"""

from scripts.imports import entries, files, folders

_IMAGE = ("image", "imagefilename")
_ANNOTATIONS = ("annotations", "annotation")
_COORDINATES = ("x", "y", "width", "height")


def read(request: entries.Request) -> entries.Annotations:
  """Reads the JSON files in a folder and below, or one.

  Folders tell the splits: train/_annotations.createml.json. Names of pictures
  are relative to `images`, or to the folder of the JSON.
  """
  root, found = folders.root_and_files(request.src, ".json")
  return entries.Annotations(_entries(request, root, found))


def _entries(request, root, found):
  for path in found:
    content = files.read_json(path)
    if not isinstance(content, list):
      raise ValueError(
        f"{path}: expected a list of pictures, found {content!r:.60}"
      )
    split = entries.split_of(path.relative_to(root).parent) or "train"
    places = [request.images or path.parent]
    for i, fields in enumerate(content):
      with request.problems:
        where = f"{path}: picture number {i}"
        yield _entry(fields, split, places, where, request.problems)


def _entry(fields, split, places, where, problems):
  name = files.get(fields, files.key_of(fields, _IMAGE), str, where)
  annotations = files.get(
    fields, files.key_of(fields, _ANNOTATIONS), list, where
  )
  objects = tuple(
    _object(annotation, f"{where}: annotation {i}")
    for i, annotation in enumerate(annotations)
  )
  image = folders.find(name, places, where, problems)
  return entries.Entry(image, where, split, objects=objects)


def _object(annotation, where):
  label = files.get(annotation, "label", str, where)
  centre = files.get(annotation, "coordinates", dict, where)
  found = [centre.get(key) for key in _COORDINATES]
  numbers = files.numbers(found, 4, ", ".join(_COORDINATES), where)
  return entries.Object(label, entries.BOXES["cxcywh"](*numbers), where)
