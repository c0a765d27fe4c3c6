"""CVAT: an XML file "for images 1.1", or its folder.

The export "CVAT for images 1.1" has boxes, outlines and masks, as docs.cvat.ai
describes them under "XML annotation format".
"""

import pathlib

from paligemma import messages
from paligemma.data import masks
from scripts.imports import entries, files, folders, shapes

# Types of labels that no box can have, so that asking for them is in vain.
_NO_BOX = ("cuboid", "points", "polyline", "skeleton", "tag")


def read(request: entries.Request) -> entries.Entries:
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
  request.labels = [
    label.findtext("name", "").strip()
    for label in root.findall("meta/*/labels/label")
    if label.findtext("type", "any") not in _NO_BOX
    and label.find("parent") is None
  ] or None
  for i, image in enumerate(root.iter("image")):
    with request.problems:
      where = f"{src}: image {image.get('id', i)}"
      yield _entry(request, image, src.parent, where)


def _entry(request, image, folder, where):
  name = _attribute(image, "name", where)
  subset = image.get("subset", "")
  places = [folder, folder / "images", folder / "images" / subset]
  places = [request.images] if request.images else places
  size = tuple(map(int, _numbers(image, ("height", "width"), where)))
  objects = ()
  for i, shape in enumerate(image):
    if shape.tag == "tag":
      request.problems.note("tags of whole pictures left out", where)
    else:
      objects += (_object(shape, size, f"{where}: {shape.tag} {i}"),)
  split = entries.split_of(pathlib.PurePosixPath(name).parent)
  if subset and subset.lower() != "default":
    plain = pathlib.PurePath(messages.one_line(subset)).name
    if plain != subset or plain.startswith("."):
      raise ValueError(f"{where}: subset {subset!r:.60} can name no file")
    split = entries.SPLITS.get(subset.lower(), subset)
  image = folders.find(name, places, where, request.problems)
  return entries.Entry((image,), where, split, size=size, objects=objects)


def _object(shape, size, where):
  label = _attribute(shape, "label", where)
  if shape.tag == "mask":
    return shapes.masked(label, _mask(shape, size, where), where)
  (degrees,) = files.numbers([shape.get("rotation", 0)], 1, "rotation", where)
  if shape.tag == "box":
    x0, y0, x1, y1 = _numbers(shape, ("xtl", "ytl", "xbr", "ybr"), where)
    centre = (x0 + x1) / 2, (y0 + y1) / 2
    box = shapes.rectangle(x0, y0, x1, y1, centre, degrees)
    return entries.Object(label, box, where)
  if shape.tag == "ellipse":
    numbers = _numbers(shape, ("cx", "cy", "rx", "ry"), where)
    outline = shapes.ellipse(*numbers, degrees)
  elif shape.tag == "polygon":
    points = _attribute(shape, "points", where).split(";")
    points = [files.numbers(x.split(","), 2, "x, y", where) for x in points]
    outline = shapes.polygon(points, where)
  else:
    raise ValueError(
      f"{where}: is no box; expected box, polygon, ellipse or mask"
    )
  return entries.Object(label, None, where, [outline])


def _mask(shape, size, where):
  """A run-length mask whose runs go row by row, within a rectangle."""
  rectangle = _numbers(shape, ("left", "top", "width", "height"), where)
  left, top, width, height = map(int, rectangle)
  words = _attribute(shape, "rle", where).split(",")
  with files.at(where):
    runs = {"size": [width, height], "counts": [int(word) for word in words]}
    mask = masks.from_rle(runs, width, height).T
  return shapes.paste(mask, top, left, size)


def _numbers(element, names, where):
  found = {name: _attribute(element, name, where) for name in names}
  return files.get_numbers(found, names, where)


def _attribute(element, name, where):
  text = element.get(name)
  if text is None or not text.strip():
    raise ValueError(f'{where}: <{element.tag}> has no "{name}"')
  return text.strip()
