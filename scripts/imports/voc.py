"""Pascal VOC: a folder with an XML file of boxes for each image."""

import dataclasses
import pathlib
import re

from paligemma import messages
from paligemma.data import image_files
from scripts.imports import boxes, entries, files, folders

_XML = ("annotations", "xmls")  # folders of XML, in any case
_IMAGES = ("jpegimages", "images")  # of images
_EDGES = ("xmin", "ymin", "xmax", "ymax")


def read(request: entries.Request) -> entries.Entries:
  """Reads the XML files of a folder, of its folder Annotations, or of others.

  A folder of folders, as one for each split or VOCdevkit, gives all of theirs.
  ImageSets/Main/train.txt, val.txt and test.txt tell the splits, or else the
  name of such a folder; without them all is "train". An image is the one that
  its XML names, whatever its suffix, or else the one named as the XML.

  A box of VOC holds its last pixel and counts pixels from 1: xmin 1 is the left
  edge. Where any box of a data set begins at 0, as many programs write it, all
  its edges are taken as distances from the left and upper edge. Objects that
  are marked difficult are kept. Without `images` the images lie in JPEGImages,
  in images, or beside the XML.
  """
  src, problems = request.src, request.problems
  if not src.is_dir():
    raise ValueError(f"{src}: no such folder; expected one of XML files of VOC")
  found = _files(src, "train", problems)
  if not found:
    for folder in filter(pathlib.Path.is_dir, folders.matching(src, "*")):
      found += _files(folder, entries.split_of(folder.name), problems)
  if not found:
    raise ValueError(f"{src}: no annotations of VOC, expected XML files")
  index, parsed = {}, []
  for split, path, images in dict.fromkeys(found):
    with problems:
      parsed.append(
        _entry(path, split, request.images or images, index, problems)
      )
  request.forms = ("yxyx",)
  objects = [obj for entry in parsed for obj in entry.objects]
  at_zero = [obj for obj in objects if 0 <= min(obj.box[:2]) < 1]
  if any(max(obj.box) > 1.02 for obj in objects):  # they are no shares
    for obj in at_zero:
      what = "boxes at pixel 0: the data set counts from 0"
      problems.note(what, obj.where)
  shift = 0 if at_zero else 1
  for entry in parsed:
    shifted = []
    for obj in entry.objects:
      y0, x0, y1, x1 = obj.box
      box = y0 - shift, x0 - shift, y1, x1
      shifted.append(dataclasses.replace(obj, box=box))
    yield dataclasses.replace(entry, objects=tuple(shifted))


def _files(src, split, problems):
  """(split, XML file, its folder of images) of a data set in a folder."""
  folder = _folder(src, _XML) or src
  images = _folder(src, _IMAGES) or folder
  present = folders.matching(folder, "*")
  present = [path for path in present if path.suffix.lower() == ".xml"]
  sets = folders.image_sets(src, "Main")
  if not sets:
    return [(split, path, images) for path in present]
  # A line can go on with whether a class is in the image.
  listed = [
    (split, folder / f"{line.split()[0]}.xml", images)
    for split, lines in sets
    for line in lines
  ]
  for path in sorted(set(present) - {path for _, path, _ in listed}):
    what = "XML files that no list of ImageSets/Main names, left out"
    problems.note(what, str(path))
  return listed


def _folder(src, names):
  """The folder of one of these names, in any case."""
  found = {path.name.lower(): path for path in src.iterdir() if path.is_dir()}
  return next((found[name] for name in names if name in found), None)


def _entry(path, split, images, index, problems):
  """The entry of an XML file, with box edges as they are written."""
  root = files.read_xml(path)
  for element in root.iter():  # without their namespace
    element.tag = str(element.tag).rpartition("}")[2]
  if root.tag != "annotation":
    raise ValueError(
      f"{path}: the root is <{root.tag:.60}>, expected <annotation> of VOC"
    )
  image = _image(images, path, root.findtext("filename"), index, problems)
  sides = [root.findtext(f"size/{side}") for side in ("height", "width")]
  objects = tuple(
    _object(obj, f"{path}: object {i}")
    for i, obj in enumerate(root.iter("object"), start=1)
  )
  size = boxes.size(*sides)
  return entries.Entry((image,), str(path), split, size=size, objects=objects)


def _image(images, path, name, index, problems):
  """The image that an XML file names, or else one of the XML's name.

  Images of a folder are kept in `index`, {folder: {lower-case stem: images}}.
  """
  # Some programs write the whole path it had on another machine.
  name = pathlib.PurePath((name or "").strip().replace("\\", "/")).name
  if name and (images / name).is_file():
    return images / name
  if images not in index:
    index[images] = {}
    for file in folders.matching(images, "*"):
      if file.suffix.lower() in image_files.SUFFIXES:
        index[images].setdefault(file.stem.lower(), []).append(file)
  stems = [name, re.sub(r"\.[^.]*[a-zA-Z][^.]*$", "", name), path.stem]
  options = [index[images].get(stem.lower()) for stem in stems]
  found = next(filter(None, options), None)
  if not found:
    wanted = messages.shown(f"{name} or {path.stem}" if name else path.stem)
    raise ValueError(
      f"{path}: missing image {wanted}.*: {images} has none of such a name"
    )
  if len(found) > 1:
    names = " and ".join(file.name for file in found[:2])
    raise ValueError(f"{path}: its image is one of {names} in {images}")
  if name:
    what = "images of another name or suffix than their XML says"
    problems.note(what, str(path))
  return found[0]


def _object(obj, where):
  label = _text(obj, "name", where)
  found = obj.findall("bndbox")
  if len(found) != 1:
    others = [x.tag for x in obj if x.tag in ("robndbox", "polygon")]
    other = f", but a {others[0]}, which is not read" if others else ""
    count = f"{len(found)} of them" if found else f"no bndbox{other}"
    raise ValueError(
      f"{where}: {messages.shown(label)} has {count}, expected one bndbox"
    )
  edges = [_text(found[0], name, where) for name in _EDGES]
  x0, y0, x1, y1 = files.numbers(edges, 4, "of a bndbox", where)
  return entries.Object(label, (y0, x0, y1, x1), where, shares=None)


def _text(element, name, where):
  text = element.findtext(name)
  if text is None or not text.strip():
    raise ValueError(f"{where}: {element.tag} has no {name}")
  return text.strip()
