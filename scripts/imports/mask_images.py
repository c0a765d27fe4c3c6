"""Masks: a folder with masks that are pictures, images, and classes.txt.

The layouts of Pascal VOC (SegmentationClass and SegmentationObject, as labelme
and CVAT's "Segmentation mask 1.1" also write them), of images/ beside masks/,
and of Kaggle's Data Science Bowl 2018 (a folder of masks for each picture).
"""

import re

import numpy as np

from paligemma.data import image_files
from scripts.imports import entries, files, folders, shapes

# folder of masks -> that of their images, beside it
_LAYOUTS = {"SegmentationClass": "JPEGImages", "masks": "images"}
_BY_COLOUR = "labelmap.txt"
_CLASSES = (_BY_COLOUR, "classes.txt", "class_names.txt")
_BACKGROUND = ("background", "_background_", "__ignore__", "void", "ignore")
_VOID = 255  # of VOC, the border of objects


def read(request: entries.Request) -> entries.Entries:
  """Reads masks and the classes of their values.

  The mask of a.jpg is a.png or a_anything.png; each of its values is one
  object, except for 0 and what the classes call background, void or ignore; 255
  is void unless it is a class, or the white of the only one. An image in
  SegmentationObject divides a class into objects. Several masks, a_1.png or
  a/1.png, are an object each: of the only class, or of that in its name,
  a/cat_1.png. Images without a mask are left out.

  The data set is a folder, in or below which SegmentationClass lies beside
  JPEGImages, or masks beside images; with `images`, which is then laid out
  alike, the folder of masks itself. Folders tell the splits, or
  ImageSets/Segmentation. Its classes are in it or the folder above: in
  classes.txt, a line "1 cat" for each value or a name a line, the background
  first; or in labelmap.txt, "cat:128,0,0::" for each colour.
  """
  src, problems = request.src, request.problems
  pairs = [(src, request.images)] if request.images else _pairs(src)
  path, classes = _classes(src)
  request.labels = list(dict.fromkeys(filter(None, classes.values())))
  for masks, images in pairs:
    splits = {
      line: split
      for split, lines in folders.image_sets(masks.parent, "Segmentation")
      for line in lines
    }
    root = src if images.is_relative_to(src) else images
    for image, members in _masks_of(masks, images, problems).items():
      if not members:
        problems.note("pictures without a mask left out", str(image))
        continue
      split = entries.split_of(image.relative_to(root).parent)
      split = splits.get(image.stem, split)
      by_colour = path.name == _BY_COLOUR
      with problems:
        yield _entry(image, members, classes, by_colour, split, problems)


def _pairs(src):
  """Folders of masks, each with that of its images."""
  found = [
    (path, path.parent / images)
    for masks, images in _LAYOUTS.items()
    for path in (src, *folders.matching(src, f"**/{masks}"))
    if path.name == masks and (path.parent / images).is_dir()
  ]
  if not found:
    raise ValueError(
      f"{src}: no masks beside images, and no SegmentationClass beside "
      "JPEGImages; name the folder of masks, and --images"
    )
  return found


def _classes(src):
  """The file of the classes, and {value: class, or None for background}."""
  options = [folder / name for folder in (src, src.parent) for name in _CLASSES]
  path = next((path for path in options if path.is_file()), None)
  if path is None:
    raise ValueError(
      f"{src}: no classes.txt, which names the values of masks: 1 cat"
    )
  lines = files.read_words(path)
  if path.name == _BY_COLOUR:
    named = {}
    for line in lines:
      if line.startswith("#"):
        continue
      found = re.fullmatch(r"([^:]+):(\d+),(\d+),(\d+)(?::.*)?", line)
      if not found:
        raise ValueError(f"{path}: expected cat:128,0,0::, found {line!r:.60}")
      red, green, blue = map(int, found.groups()[1:])
      named[65536 * red + 256 * green + blue] = found[1]
  elif all(found := [re.fullmatch(r"(\d+)[\s:,]+(.+)", x) for x in lines]):
    named = {int(match[1]): match[2] for match in found}
  else:
    named = dict(enumerate(x for x in lines if x != "__ignore__"))
    if named.get(0, "").lower() not in _BACKGROUND:
      raise ValueError(
        f'{path}: line 1 names value 0, expected "background", or a value '
        f'before each name, found "{lines[0]:.60}"'
      )
  classes = {
    value: None if name.lower() in _BACKGROUND else name
    for value, name in named.items()
  }
  if not any(classes.values()):
    raise ValueError(f"{path}: names no class but background")
  return path, classes


def _masks_of(masks, images, problems):
  """Image -> its masks, each with the rest of its name."""
  found = {path: [] for path in folders.ending(images, *image_files.SUFFIXES)}
  stems = {_stem(path, images): path for path in found}
  for mask in folders.ending(masks, *shapes.SUFFIXES):
    with problems:
      stem, rest = _owner(_stem(mask, masks), stems, str(mask))
      found[stems[stem]].append((mask, rest))
  return found


def _stem(path, folder):
  return path.relative_to(folder).with_suffix("").as_posix()


def _owner(name, stems, where):
  """The image of a mask, and the rest of the mask's name."""
  if name in stems:
    return name, ""
  for match in reversed(list(re.finditer(r"[/_.\-]", name))):
    if name[: match.start()] in stems:
      return name[: match.start()], name[match.end() :]
  if len(stems) == 1:
    return next(iter(stems)), name
  raise ValueError(f"{where}: no picture has this mask")


def _entry(image, members, classes, by_colour, split, problems):
  objects, sizes = [], set()
  for mask, rest in members:
    where = str(mask)
    values = shapes.read_mask(mask, where, by_colour)
    sizes.add(values.shape)
    if len(sizes) > 1:
      raise ValueError(f"{where}: of another size than others of its picture")
    label = _named(rest, classes, len(members), where)
    if label is None:
      objects += _objects(values, mask, classes, where, problems)
      continue
    found = np.unique(values)
    if len(found) > 2:
      raise ValueError(
        f"{where}: {len(found)} values in the mask of one object, expected 2"
      )
    objects.append(shapes.masked(label, values > 0, where))
  return entries.Entry(
    (image,), where, split, size=sizes.pop(), objects=tuple(objects)
  )


def _named(rest, classes, count, where):
  """The class in the name of a mask; None if its values are classes."""
  labels = {label.lower(): label for label in classes.values() if label}
  name = re.sub(r"[_.\- ]*\d*$", "", rest.rpartition("/")[2]).lower()
  if name in labels:
    return labels[name]
  if count == 1:
    return None
  if len(labels) == 1:
    return next(iter(labels.values()))
  raise ValueError(
    f"{where}: one of {count} masks of its picture, expected the class in its "
    "name, such as cat_1.png"
  )


def _objects(values, mask, classes, where, problems):
  """Yields an object for each instance in SegmentationObject, or each class."""
  instances = values
  path = mask.parent.with_name("SegmentationObject") / mask.name
  if mask.parent.name == "SegmentationClass" and path.is_file():
    instances = shapes.read_mask(path, str(path))
    if instances.shape != values.shape:
      raise ValueError(f"{where}: of another size than in SegmentationObject")
  for number in np.unique(instances):
    inside = instances == number
    found, counts = np.unique(values[inside], return_counts=True)
    if number == 0 and instances is not values:
      if any(classes.get(value) for value in found):
        raise ValueError(
          f"{where}: pixels of a class are of no object in SegmentationObject"
        )
      continue
    label = _label(found[counts.argmax()], values, classes, where, problems)
    if label is not None:
      yield shapes.masked(label, inside, where)


def _label(value, values, classes, where, problems):
  """The class of a value; None for background and void."""
  if value in classes:
    return classes[value]
  if value == 0:
    return None
  labels = [label for label in classes.values() if label]
  if value == _VOID:
    if len(labels) == 1 and np.isin(values, (0, _VOID)).all():
      return labels[0]
    problems.note("pixels of value 255, void, are of no object", where)
    return None
  if value > 65535:
    rgb = value >> 16, value >> 8 & 255, value & 255
    raise ValueError(
      f"{where}: colour {','.join(map(str, rgb))} is that of no class"
    )
  raise ValueError(
    f"{where}: value {value} is that of no class, the classes name "
    f"{', '.join(map(str, classes)):.80}"
  )
