"""CVAT: an XML file "for images 1.1", or its folder.

The export "CVAT for images 1.1" has boxes, outlines and masks, as docs.cvat.ai
describes them under "XML annotation format".
"""

import pathlib

from paligemma import messages
from paligemma.data import masks
from scripts.imports import bitmaps, entries, files, folders, shapes

# Labels of these are asked for in vain.
_NO_BOX = ("cuboid", "points", "polyline", "skeleton", "tag")


def read(request: entries.Request) -> entries.Annotations:
  """Reads annotations.xml, or a folder with it.

  Boxes have no mask; polygons, ellipses and masks have one. What is turned has
  the box around it. A picture's subset is its split, "default" is "train";
  without one its folders tell it. Tags of whole pictures are left out.

  Names of pictures are relative to `images`; without it to the folder of the
  XML, its folder images, and the folder of the subset in that.
  """
  src = request.src
  src = src / "annotations.xml" if src.is_dir() else src
  root = files.read_xml(src)
  if root.find("track") is not None:
    raise ValueError(
      f'{src}: tracks of a video, expected an export as "CVAT for images 1.1"'
    )
  if root.find("image") is None:
    raise ValueError(f"{src}: no <image>, expected the XML of CVAT for images")
  return entries.Annotations(_entries(request, root, src), _labels(root))


def _labels(root):
  """The labels that the file declares, None without any."""
  found = [
    label.findtext("name", "").strip()
    for label in root.findall("meta/*/labels/label")
    if label.findtext("type", "any") not in _NO_BOX
    and label.find("parent") is None
  ]
  return tuple(found) or None


def _entries(request, root, src):
  for i, image in enumerate(root.iter("image")):
    where = f"{src}: image {image.get('id', i)}"
    with request.problems:
      yield _entry(request, image, src.parent, where)


def _entry(request, image, folder, where):
  name = _attribute(image, "name", where)
  subset = image.get("subset", "")
  places = [folder, folder / "images", folder / "images" / subset]
  places = [request.images] if request.images else places
  size = tuple(int(x) for x in _numbers(image, ("height", "width"), where))
  objects = []
  for i, shape in enumerate(image):
    if shape.tag == "tag":
      request.problems.note("tags of whole pictures left out", where)
    else:
      objects.append(_object(shape, size, f"{where}: {shape.tag} {i}"))
  if subset and subset.lower() != "default":
    plain = pathlib.PurePath(messages.one_line(subset)).name
    if plain != subset or plain.startswith("."):
      raise ValueError(f"{where}: subset {subset!r:.60} can name no file")
    split = entries.split_name(subset)
  else:
    split = entries.split_of(pathlib.PurePosixPath(name).parent) or "train"
  image = folders.find(name, places, where, request.problems)
  return entries.Entry(image, where, split, size=size, objects=tuple(objects))


def _object(shape, size, where):
  label = _attribute(shape, "label", where)
  if shape.tag == "mask":
    return bitmaps.to_object(label, _mask(shape, size, where), where)
  (degrees,) = files.numbers([shape.get("rotation", 0)], 1, "rotation", where)
  outlined = True
  if shape.tag == "box":
    x0, y0, x1, y1 = _numbers(shape, ("xtl", "ytl", "xbr", "ybr"), where)
    if not degrees:
      return entries.Object(label, (y0, x0, y1, x1), where)
    centre = (x0 + x1) / 2, (y0 + y1) / 2
    outline = shapes.turned(shapes.rectangle(x0, y0, x1, y1), centre, degrees)
    outlined = False
  elif shape.tag == "ellipse":
    x, y, rx, ry = _numbers(shape, ("cx", "cy", "rx", "ry"), where)
    outline = shapes.ellipse(x, y, rx, ry, degrees)
  elif shape.tag == "polygon":
    points = [
      files.numbers(point.split(","), 2, "x, y", where)
      for point in _attribute(shape, "points", where).split(";")
    ]
    outline = shapes.polygon(points, where)
  else:
    raise ValueError(
      f"{where}: is no box; expected box, polygon, ellipse or mask"
    )
  return entries.Object(
    label, shapes.box([outline]), where, [outline] if outlined else None
  )


def _mask(shape, size, where):
  """A run-length mask whose runs go row by row, within a rectangle."""
  rectangle = _numbers(shape, ("left", "top", "width", "height"), where)
  left, top, width, height = (int(x) for x in rectangle)
  words = _attribute(shape, "rle", where).split(",")
  try:
    counts = [int(word) for word in words]
    runs = {"size": [width, height], "counts": counts}
    bitmap = masks.from_rle(runs, width, height).T
  except ValueError as error:
    raise ValueError(f"{where}: {error}") from None
  return bitmaps.paste(bitmap, top, left, size)


def _numbers(element, names, where):
  found = [_attribute(element, name, where) for name in names]
  return files.numbers(found, len(names), ", ".join(names), where)


def _attribute(element, name, where):
  text = element.get(name)
  if text is None or not text.strip():
    raise ValueError(f'{where}: <{element.tag}> has no "{name}"')
  return text.strip()
