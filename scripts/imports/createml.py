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


def read(request: entries.Request) -> entries.Entries:
  """Reads the JSON files in a folder and below, or one.

  Folders tell the splits: train/_annotations.createml.json. Image names are
  relative to `images`, or to the folder of the JSON.
  """
  root, found = folders.root_and_files(request.src, ".json")
  for path in found:
    split = entries.split_of(path.relative_to(root).parent)
    places = [request.images or path.parent]
    for where, fields in files.read_list(path, "picture"):
      with request.problems:
        name = files.get(fields, files.key_of(fields, _IMAGE), str, where)
        key = files.key_of(fields, _ANNOTATIONS)
        objects = tuple(
          _object(annotation, f"{where}: annotation {i}")
          for i, annotation in enumerate(files.get(fields, key, list, where))
        )
        image = folders.find(name, places, where, request.problems)
        yield entries.Entry((image,), where, split, objects=objects)


def _object(annotation, where):
  label = files.get(annotation, "label", str, where)
  centre = files.get(annotation, "coordinates", dict, where)
  numbers = files.get_numbers(centre, _COORDINATES, where)
  return entries.Object(label, entries.BOXES["cxcywh"](*numbers), where)
