"""LabelMe: a folder with a JSON file of shapes for each picture.

As labelme writes it (labelme/_label_file.py of wkentaro/labelme), and programs
that write the same: X-AnyLabeling, AnyLabeling, Roboflow.
"""

import base64
import binascii
import math
import pathlib

from paligemma.data import image_files
from scripts.imports import bitmaps, entries, files, folders, shapes

# Their points are corners: what they stand for is a box, not an outline.
_BOXES = ("rectangle", "oriented_rectangle", "rotation")


def read(request: entries.Request) -> entries.Annotations:
  """Reads the JSON files in a folder and below, or one.

  Folders tell the splits: train/a.json. Rectangles are boxes without a mask;
  polygons, circles and bitmaps have one. Shapes of one label and one group_id
  are one object. A picture that is no file is taken from "imageData". Without
  `images` a picture lies where its file says, or beside it.
  """
  root, found = folders.root_and_files(request.src, ".json")
  return entries.Annotations(_entries(request, root, found))


def _entries(request, root, found):
  for path in found:
    with request.problems:
      yield _entry(request, path, root)


def _entry(request, path, root):
  where = str(path)
  content = files.read_json(path)
  drawn = files.get(content, "shapes", list, where)
  sides = [content.get("imageHeight"), content.get("imageWidth")]
  size = None
  if None not in sides:
    what = "imageHeight and imageWidth"
    height, width = files.numbers(sides, 2, what, where)
    size = int(height), int(width)
  image, data = _image(request, content, path, root)
  return entries.Entry(
    image,
    where,
    entries.split_of(path.relative_to(root).parent) or "train",
    data=data,
    size=size,
    objects=tuple(_objects(drawn, size, where)),
  )


def _image(request, content, path, root):
  """Path and contents, which are None where the picture is a file."""
  places = [request.images or path.parent]
  name = content.get("imagePath") or path.name
  image = folders.find(str(name), places, str(path), request.problems)
  if not image.is_file():
    # Files are renamed in pairs, which their contents do not learn.
    for suffix in image_files.SUFFIXES:
      if (renamed := places[0] / f"{path.stem}{suffix}").is_file():
        return renamed, None
    if data := content.get("imageData"):
      data = _decoded(data, f"{path}: imageData")
      name = "-".join(path.relative_to(root).with_suffix("").parts)
      suffix = image_files.suffix(data, where=f"{path}: imageData")
      return pathlib.Path(f"{name}{suffix}"), data
  return image, None


def _objects(drawn, size, where):
  groups = {}
  for i, shape in enumerate(drawn):
    place = f"{where}: shape {i}"
    label = files.get(shape, "label", str, place)
    group = shape.get("group_id")
    key = i if group is None else (label, str(group))
    groups.setdefault(key, []).append(_object(shape, label, size, place))
  for objects in groups.values():
    yield objects[0] if len(objects) == 1 else _joined(objects)


def _object(shape, label, size, where):
  kind = shape.get("shape_type") or "polygon"
  points = files.get(shape, "points", list, where)
  points = [files.numbers(point, 2, "x, y", where) for point in points]
  if kind == "polygon":
    outline = [shapes.polygon(points, where)]
    return entries.Object(label, shapes.box(outline), where, outline)
  if kind in _BOXES and len(points) >= 2:
    return entries.Object(label, shapes.box(points), where)
  if kind == "circle" and len(points) == 2:
    (x, y), (edge_x, edge_y) = points
    radius = math.hypot(edge_x - x, edge_y - y)
    outline = [shapes.ellipse(x, y, radius, radius)]
    return entries.Object(label, shapes.box(outline), where, outline)
  if kind == "mask" and len(points) == 2:
    return _masked(shape, label, points, size, where)
  raise ValueError(
    f"{where}: {kind!r:.40} of {len(points)} points is no box; expected "
    "polygon, rectangle, circle or mask"
  )


def _masked(shape, label, points, size, where):
  if size is None:
    raise ValueError(f"{where}: a mask, and no imageHeight and imageWidth")
  data = _decoded(files.get(shape, "mask", str, where), where)
  bitmap = bitmaps.values(data, where) > 0
  left, top = (int(c) for c in points[0])
  mask = bitmaps.paste(bitmap, top, left, size)
  return bitmaps.to_object(label, mask, where)


def _decoded(text, where):
  try:
    return base64.b64decode(text)
  except (binascii.Error, TypeError, ValueError) as error:
    raise ValueError(f"{where}: malformed base64: {error}") from None


def _joined(objects):
  """One object of several shapes."""
  first = objects[0]
  if not all(isinstance(obj.mask, type(first.mask)) for obj in objects):
    raise ValueError(
      f"{first.where}: its group has outlines and others, expected one kind"
    )
  if isinstance(first.mask, dict):
    raise ValueError(
      f"{first.where}: its group has several masks, expected one"
    )
  corners = [
    shapes.rectangle(x0, y0, x1, y1)
    for y0, x0, y1, x1 in (obj.box for obj in objects)
  ]
  outlines = first.mask and [p for obj in objects for p in obj.mask]
  return entries.Object(first.label, shapes.box(corners), first.where, outlines)
