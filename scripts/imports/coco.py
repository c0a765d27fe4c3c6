"""COCO: a JSON file of boxes, masks or captions, or a folder of some."""

import dataclasses
import itertools
import pathlib
import re
from collections.abc import Iterator
from typing import Any

from paligemma import messages, registry
from paligemma.data import masks
from scripts.imports import boxes as boxes_lib
from scripts.imports import columns, entries, files, folders, prompts

_EXPORT = "_annotations.coco.json"  # of Roboflow, one in each split's folder
_PREFIXES = {"caption": "captions_"}  # task -> of the official names
_TRIED = 50  # pictures by which the folder of pictures is found


@dataclasses.dataclass
class _Picture:
  """An image of a file, with its annotations."""

  fields: dict[str, Any]
  where: str
  annotations: list[tuple[str, dict[str, Any]]]
  listed: int = 0


@dataclasses.dataclass
class _File:
  """A JSON file: its images and labels by id, and its supercategories."""

  path: pathlib.Path
  split: str
  pictures: dict[Any, _Picture]
  labels: dict[Any, str]
  parents: set[str]
  captions: bool

  def annotations(self) -> Iterator[tuple[_Picture, str, dict[str, Any]]]:
    for picture in self.unique():
      for where, annotation in picture.annotations:
        yield picture, where, annotation

  def unique(self) -> list[_Picture]:
    return list({id(x): x for x in self.pictures.values()}.values())


def read(request: entries.Request) -> entries.Annotations:
  """Reads instances or captions files of COCO.

  In a folder these are _annotations.coco.json of its folders, as Roboflow
  writes them; else instances_*.json (captions_*.json for captions) in it or in
  a folder of it; else all its JSON files. There is one for each split, which
  its path names.

  The pictures of a file lie in a folder named as the file ("train2017" of
  instances_train2017.json) or as the split, in "images" or "data", or beside
  the file, or one folder above these: the first that holds one of its pictures.

  A category that is never annotated and is the supercategory of another is left
  out. An image whose size is not stated, or is no number, has that of its
  picture. An object without "bbox" has the box around its polygons or its
  run-length mask; others are "xywh". A crowd is kept as such. A bad annotation
  makes its image bad.
  """
  src, images, problems = request.src, request.images, request.problems
  parts = [_parse(*place, problems) for place in _files(src, request.task)]
  reading = boxes_lib.decide(
    _numbers(parts, images), src, problems, stated=request.boxes
  )
  found = (_entries(part, images, reading, problems) for part in parts)
  captions = any(part.captions for part in parts)
  return entries.Annotations(
    itertools.chain.from_iterable(found),
    None if captions else _labels(parts, problems),
  )


def _files(src, task):
  """(path, split) of every annotation file."""
  if not src.is_dir():
    return [(src, entries.split_of(pathlib.PurePath(src.name)) or "train")]
  found = sorted(
    path
    for pattern in ("*.json", "*/*.json")
    for path in folders.matching(src, pattern)
  )
  prefix = _PREFIXES.get(task, "instances_")
  found = (
    [path for path in found if path.name == _EXPORT]
    or [path for path in found if path.name.startswith(prefix)]
    or found
  )
  if not found:
    raise ValueError(f"{src}: no JSON file in this folder or in a folder of it")
  splits = {}
  for path in found:
    split = entries.split_of(path.relative_to(src)) or "train"
    if split in splits:
      raise ValueError(
        f'{path}: of the split "{split}", as is {splits[split]}; name one file '
        "instead of the folder"
      )
    splits[split] = path
  return [(path, split) for split, path in splits.items()]


def _parse(path, split, problems):
  content = files.read_json(path)
  if isinstance(content, list):
    raise ValueError(
      f"{path}: a list, as of results; expected annotations of COCO, with "
      '"images", "annotations" and "categories"'
    )
  listed = files.get(content, "images", list, str(path))
  annotations = files.get(content, "annotations", list, str(path))
  if any(isinstance(x, dict) and "segments_info" in x for x in annotations):
    raise ValueError(
      f"{path}: panoptic annotations (segments_info); expected those of "
      "instances or captions"
    )
  pictures = _pictures(path, listed, problems)
  for i, annotation in enumerate(annotations):
    where = f"{path}: annotation number {i}"
    if isinstance(annotation, dict) and "id" in annotation:
      where += f" (id {messages.shown(str(annotation['id']))})"
    with problems:
      key = _id(annotation, "image_id", where)
      if key not in pictures:
        raise ValueError(
          f"{where}: no image has its image_id {messages.shown(str(key))}"
        )
      pictures[key].annotations.append((where, annotation))
  named, parents = {}, set()
  categories = content.get("categories") and files.get(
    content, "categories", list, str(path)
  )
  for i, category in enumerate(categories or ()):
    place = f"{path}: category number {i}"
    key = _id(category, "id", place)
    if key in named:
      raise ValueError(
        f"{place}: its id {messages.shown(str(key))} is that of another "
        "category"
      )
    named[key] = str(files.get(category, "name", (str, int), place))
    parent = prompts.label_name(str(category.get("supercategory")))
    if parent != prompts.label_name(named[key]):
      parents.add(parent)
  annotations = (x for p in pictures.values() for _, x in p.annotations)
  captions = any("caption" in x for x in annotations)
  return _File(path, split, pictures, named, parents, captions)


def _pictures(path, listed, problems):
  """The images by id; several entries of one file are one image."""
  found, by_name = {}, {}
  for i, image in enumerate(listed):
    place = f"{path}: image number {i}"
    key = None
    with problems:
      key = _id(image, "id", place)
    if key is None:
      continue
    name = str(image.get("file_name") or f"image {key}")
    same = by_name.setdefault(
      name, _Picture(image, f"{path}: image {image['id']}", [])
    )
    if found.setdefault(key, same) is not same:
      raise ValueError(
        f"{place}: its id {messages.shown(str(key))} is that of another image"
      )
    same.listed += 1
    if same.listed > 1:
      problems.note("images listed twice, read as one", place)
  return found


def _numbers(parts, images):
  """Yields boxes, sizes and places, for boxes.decide; bad ones are left out."""
  sizes = boxes_lib.Sizes()
  for part in parts:
    if part.captions:
      continue
    folder = _folder(part, images)
    for picture, where, annotation in part.annotations():
      try:
        values = boxes_lib.numbers(annotation.get("bbox"), where)
      except ValueError:
        continue
      size, name = _size(picture.fields), picture.fields.get("file_name")
      if size is None and isinstance(name, str):
        size = sizes.named(name, folder)
      yield values, size, where


def _entries(part, images, reading, problems):
  folder = _folder(part, images)
  for picture in part.unique():
    where, fields = picture.where, picture.fields
    with problems:
      name = files.get(fields, "file_name", str, where)
      image = folders.find(name, [folder], where, problems)
      annotated = {"fields": {"image_id": fields["id"]}}
      if part.captions:
        annotated["captions"] = _captions(picture)
      else:
        annotated["size"] = _size(fields)
        if annotated["size"] is None:
          problems.note("images without a stated size, read from them", where)
        annotated["objects"] = _objects(picture, part, reading, problems)
      yield entries.Entry(image, where, part.split, **annotated)


def _captions(picture):
  texts = [
    columns.texts(annotation.get("caption"), where, "caption")[0]
    for where, annotation in picture.annotations
  ]
  return tuple(texts if picture.listed == 1 else dict.fromkeys(texts)) or None


def _objects(picture, part, reading, problems):
  objects = [
    _object(annotation, part.labels, reading, where, problems)
    for where, annotation in picture.annotations
  ]
  if picture.listed > 1:  # as often as each of its objects, perhaps
    objects = {(obj.label, obj.box): obj for obj in objects}.values()
  return tuple(objects)


def _object(annotation, named, reading, where, problems):
  category = _id(annotation, "category_id", where)
  if category not in named:
    near = registry.did_you_mean(str(category), map(str, named))
    raise ValueError(
      f"{where}: unknown category_id {messages.shown(str(category))}, the file "
      f"has {messages.shown(', '.join(map(str, named))) or 'none'}.{near}"
    )
  label, mask = named[category], annotation.get("segmentation") or None
  more = {"mask": mask, **boxes_lib.details(annotation, where)}
  if isinstance(mask, list | dict) and not annotation.get("bbox"):
    problems.note("objects without bbox, read as around their masks", where)
    if isinstance(mask, dict):
      values, reading = _around_runs(mask, where), boxes_lib.Reading("yxyx")
    else:
      values = boxes_lib.around(mask, where)
      reading = boxes_lib.Reading("yxyx", reading.shares)
    return reading.to_object(label, values, where, **more)
  box = files.get(annotation, "bbox", (list, str), where)
  return reading.to_object(label, boxes_lib.numbers(box, where), where, **more)


def _around_runs(mask, where):
  """The box (y0, x0, y1, x1) in pixels around a run-length mask."""
  what = "as the size of a run-length mask"
  height, width = files.numbers(mask.get("size"), 2, what, where)
  try:
    return masks.bounding_box(masks.from_rle(mask, int(height), int(width)))
  except ValueError as error:
    raise ValueError(f"{where}: {error}") from None


def _labels(parts, problems):
  """The labels of all files, without supercategories that are never used."""
  used = {
    prompts.label_name(part.labels[key])
    for part in parts
    for _, _, annotation in part.annotations()
    if (key := _plain(str(annotation.get("category_id")))) in part.labels
  }
  parents = set().union(*(part.parents for part in parts)) - used
  found = []
  for part in parts:
    known = set(found)
    for name in part.labels.values():
      if prompts.label_name(name) in parents:
        what = "supercategories that are never annotated, left out as labels"
        problems.note(what, f'{part.path}: "{messages.shown(name)}"')
      elif name not in known:
        found.append(name)
  return tuple(found)


def _folder(part, images):
  """The folder that a file's pictures are relative to."""
  parent = part.path.parent
  bases = [parent, parent.parent] if images is None else [images]
  own = [part.path.stem.partition("_")[2]]
  own += [name for name, split in entries.SPLITS.items() if split == part.split]
  candidates = [
    base / middle / leaf
    for base in bases
    for leaf in (*filter(None, own), ".")
    for middle in (".", "images", "data")
  ]
  candidates = [folder for folder in candidates if folder.is_dir()]
  for picture in part.unique()[:_TRIED]:
    name = picture.fields.get("file_name")
    for folder in candidates if isinstance(name, str) else ():
      with entries.Problems(skip=True) as quiet:
        if folders.find(name, [folder], "", quiet).exists():
          return folder
  return bases[0]


def _size(image):
  return boxes_lib.size(image.get("height"), image.get("width"))


def _id(fields, key, where):
  """An id; a whole number given as text or as a float is that number."""
  value = _plain(files.get(fields, key, (int, str, float), where))
  if isinstance(value, float):
    raise ValueError(
      f'{where}: expected a whole number under "{key}", found {value!r}'
    )
  return value


def _plain(value):
  """Normalizes an id, so that 7, "7" and 7.0 are equal; "007" stays a text."""
  if isinstance(value, int):
    return value
  whole = re.fullmatch(r"(-?[1-9]\d*|0)(\.0+)?", str(value).strip(), re.ASCII)
  return int(whole[1]) if whole else value
