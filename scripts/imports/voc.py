"""Pascal VOC: an XML file of boxes for each image."""

import pathlib
from xml.etree import ElementTree

from scripts.imports import entries, files, pictures


def read(src, images, problems):
  """Reads the XML files of a folder, or of its folder Annotations.

  ImageSets/Main/train.txt, val.txt and test.txt tell the splits; without them
  all is "train". A box of VOC holds its last pixel and counts pixels from 1:
  xmin 1 is the left edge. Objects that are marked difficult are kept.

  Args:
    src: the folder.
    images: folder of the images; None for JPEGImages, or that of the XML.
    problems: entries.Problems.

  Returns:
    entries.Annotations.

  Raises:
    ValueError: a file is malformed, or whatever `problems` does not skip.
  """
  src = pathlib.Path(src)
  folder = src / "Annotations" if (src / "Annotations").is_dir() else src
  if images is None:
    images = src / "JPEGImages" if (src / "JPEGImages").is_dir() else folder
  sets = {
    entries.split_name(name): path
    for name in entries.SPLITS
    if (path := src / "ImageSets" / "Main" / f"{name}.txt").is_file()
  }
  if sets:
    # A line can go on with whether a class is in the image.
    found = [
      (split, folder / f"{line.split()[0]}.xml")
      for split, path in sets.items()
      for line in files.read_text(path).splitlines()
      if line.strip()
    ]
  else:
    found = [("train", path) for path in sorted(folder.glob("*.xml"))]
  if not found:
    raise ValueError(f"{folder}: no annotations of VOC, expected XML files")
  return entries.Annotations(_entries(found, pathlib.Path(images), problems))


def _entries(found, images, problems):
  for split, path in found:
    with problems:
      yield _entry(path, split, images, problems)


def _entry(path, split, images, problems):
  try:
    root = ElementTree.fromstring(files.read_text(path))
  except ElementTree.ParseError as error:
    line, column = error.position
    reason = str(error).partition(":")[0]
    raise ValueError(
      f"{path}:{line}: malformed XML at column {column + 1}: {reason}"
    ) from None
  image = _image(images, path, root.findtext("filename"))
  size = root.find("size")
  stated = None
  if size is not None:
    sides = [_text(size, side, f"{path}: size") for side in ("height", "width")]
    where = f"{path}: size"
    height, width = files.numbers(sides, 2, "height and width", where)
    stated = (int(height), int(width)) if height and width else None
  things = []
  for i, thing in enumerate(root.iter("object"), start=1):
    with problems:
      things.append(_thing(thing, f"{path}: object {i}"))
  return entries.Entry(
    image, str(path), split, size=stated, things=tuple(things)
  )


def _image(images, path, name):
  """The image of an XML file: that it names, or that of its own name."""
  if name and name.strip():
    # Some programs write the whole path it had on another machine.
    return images / pathlib.PurePath(name.strip().replace("\\", "/")).name
  for suffix in pictures.SUFFIXES:
    if (image := images / f"{path.stem}{suffix}").is_file():
      return image
  raise ValueError(f"{path}: names no image, and {images} has none of its name")


def _thing(thing, where):
  label = _text(thing, "name", where)
  box = thing.find("bndbox")
  if box is None:
    raise ValueError(f"{where}: {label} has no bndbox")
  edges = [_text(box, name, where) for name in ("xmin", "ymin", "xmax", "ymax")]
  x0, y0, x1, y1 = files.numbers(edges, 4, "of a bndbox", where)
  return entries.Thing(label, (y0 - 1, x0 - 1, y1, x1), where)


def _text(element, name, where):
  text = element.findtext(name)
  if text is None or not text.strip():
    raise ValueError(f"{where}: {element.tag} has no {name}")
  return text.strip()
