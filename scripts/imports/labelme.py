"""LabelMe: a folder with a JSON file of shapes for each picture.

As labelme writes it (labelme/_label_file.py of wkentaro/labelme), and programs
that write the same: X-AnyLabeling, AnyLabeling, Roboflow.
"""

import base64
import itertools
import math
import pathlib

from paligemma.data import image_files
from scripts.imports import entries, files, folders, shapes

# Their points are corners: what they stand for is a box, not an outline.
_BOXES = ("rectangle", "oriented_rectangle", "rotation")
_SIDES = ("imageHeight", "imageWidth")


def read(request: entries.Request) -> entries.Entries:
  """Reads the JSON files in a folder and below, or one.

  Folders tell the splits: train/a.json. Rectangles are boxes without a mask;
  polygons, circles and bitmaps have one. Shapes of one label and one group_id
  are one object. A picture that is no file is taken from "imageData". Without
  `images` a picture lies where its file says, or beside it.
  """
  root, found = folders.root_and_files(request.src, ".json")
  for path in found:
    with request.problems:
      where = str(path)
      content = files.read_json(path)
      drawn = files.get(content, "shapes", list, where)
      size = None
      if None not in [content.get(side) for side in _SIDES]:
        size = tuple(map(int, files.get_numbers(content, _SIDES, where)))
      yield entries.Entry(
        (_image(request, content, path, root),),
        where,
        entries.split_of(path.relative_to(root).parent),
        size=size,
        objects=tuple(_objects(drawn, size, where)),
      )


def _image(request, content, path, root):
  """The file of the picture, or else its contents within the JSON."""
  places = [request.images or path.parent]
  name = content.get("imagePath") or path.name
  image = folders.find(str(name), places, str(path), request.problems)
  if not image.is_file():
    # Image and JSON are renamed together, which "imagePath" does not follow.
    for suffix in image_files.SUFFIXES:
      if (renamed := places[0] / f"{path.stem}{suffix}").is_file():
        return renamed
    if data := content.get("imageData"):
      data = _decoded(data, f"{path}: imageData")
      name = "-".join(path.relative_to(root).with_suffix("").parts)
      suffix = image_files.suffix(data, where=f"{path}: imageData")
      return entries.Contents(pathlib.Path(f"{name}{suffix}"), data)
  return image


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
    return entries.Object(label, None, where, [shapes.polygon(points, where)])
  if kind in _BOXES and len(points) >= 2:
    return entries.Object(label, shapes.box(points), where)
  if kind == "circle" and len(points) == 2:
    radius = math.dist(*points)
    circle = shapes.ellipse(*points[0], radius, radius)
    return entries.Object(label, None, where, [circle])
  if kind == "mask" and len(points) == 2:
    if size is None:
      raise ValueError(f"{where}: a mask, and no imageHeight and imageWidth")
    data = _decoded(files.get(shape, "mask", str, where), where)
    left, top = (int(c) for c in points[0])
    mask = shapes.paste(shapes.read_mask(data, where) > 0, top, left, size)
    return shapes.masked(label, mask, where)
  raise ValueError(
    f"{where}: {kind!r:.40} of {len(points)} points is no box; expected "
    "polygon, rectangle, circle or mask"
  )


def _decoded(text, where):
  try:
    return base64.b64decode(text)
  except (TypeError, ValueError) as error:
    raise ValueError(f"{where}: malformed base64: {error}") from None


def _joined(objects):
  """One object of several shapes."""
  label, where = objects[0].label, objects[0].where
  masks = [obj.mask for obj in objects]
  if len({type(mask) for mask in masks}) > 1:
    raise ValueError(
      f"{where}: its group has outlines and others, expected one kind"
    )
  if isinstance(masks[0], dict):
    raise ValueError(f"{where}: its group has several masks, expected one")
  if masks[0]:
    return entries.Object(label, None, where, [*itertools.chain(*masks)])
  corners = [(x0, y0, x1, y1) for y0, x0, y1, x1 in (x.box for x in objects)]
  return entries.Object(label, shapes.box(corners), where)
