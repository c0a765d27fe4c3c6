"""COCO: a JSON file of boxes, masks or captions, or a folder of some."""

import dataclasses
import pathlib
import re
from typing import Any

from paligemma import messages, registry
from scripts.imports import boxes, columns, entries, files, folders, prompts

_EXPORT = "_annotations.coco.json"  # of Roboflow, one in each split's folder
_TRIED = 50  # images by which the folder of images is found


@dataclasses.dataclass
class _Image:
  """An image of a file, with its annotations and where they are."""

  fields: dict[str, Any]
  where: str
  annotations: list[tuple[str, dict[str, Any]]]
  listed: int = 0  # how often


@dataclasses.dataclass
class _File:
  path: pathlib.Path
  split: str
  folder: pathlib.Path  # of its images
  images: list[_Image]
  labels: dict[Any, str]  # by id
  parents: set[str]  # supercategories
  captions: bool


def read(request: entries.Request) -> entries.Entries:
  """Reads instances or captions files of COCO.

  In a folder these are _annotations.coco.json of its folders, as Roboflow
  writes them; else instances_*.json (captions_*.json for captions) in it or in
  a folder of it; else all its JSON files, one for each split that a path names.

  The images of a file lie in a folder named as the file ("train2017" of
  instances_train2017.json) or as the split, in "images" or "data", or beside
  the file, or one folder above these: the first that holds one of them.

  A category that is never annotated and is the supercategory of another is left
  out. A size that is not stated is read from the image. An object without
  "bbox" has the box around its polygons or its run-length mask; others are
  "xywh". A crowd is kept as such. A bad annotation makes its image bad.
  """
  problems = request.problems
  found = [
    _parse(path, split, request.images, problems)
    for path, split in _files(request.src, request.task)
  ]
  if not any(file.captions for file in found):
    request.labels = _labels(found, problems)
  for file in found:
    for image in file.images:
      where, fields = image.where, image.fields
      with problems:
        name = files.get(fields, "file_name", str, where)
        path = folders.find(name, [file.folder], where, problems)
        if file.captions:
          annotated = {"captions": _captions(image)}
        else:
          size = boxes.size(fields.get("height"), fields.get("width"))
          if size is None:
            problems.note("images without a stated size, read from them", where)
          objects = _objects(image, file.labels, problems)
          annotated = {"size": size, "objects": objects}
        annotated["fields"] = {"image_id": fields["id"]}
        yield entries.Entry((path,), where, file.split, **annotated)


def _files(src, task):
  if not src.is_dir():
    return [(src, entries.split_of(src.name))]
  found = sorted(
    folders.matching(src, "*.json") + folders.matching(src, "*/*.json")
  )
  prefix = "captions_" if task == "caption" else "instances_"
  found = (
    [path for path in found if path.name == _EXPORT]
    or [path for path in found if path.name.startswith(prefix)]
    or found
  )
  if not found:
    raise ValueError(f"{src}: no JSON file in this folder or in a folder of it")
  splits = {}
  for path in found:
    split = entries.split_of(path.relative_to(src))
    if split in splits:
      raise ValueError(
        f'{path}: of the split "{split}", as is {splits[split]}; name one file '
        "instead of the folder"
      )
    splits[split] = path
  return [(path, split) for split, path in splits.items()]


def _parse(path, split, folder, problems):
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
  by_id = _images(path, listed, problems)
  for i, annotation in enumerate(annotations):
    where = f"{path}: annotation number {i}"
    if isinstance(annotation, dict) and "id" in annotation:
      where += f" (id {messages.shown(str(annotation['id']))})"
    with problems:
      key = _id(annotation, "image_id", where)
      if key not in by_id:
        raise ValueError(
          f"{where}: no image has its image_id {messages.shown(str(key))}"
        )
      by_id[key].annotations.append((where, annotation))
  images = list({id(image): image for image in by_id.values()}.values())
  captions = any(
    "caption" in x for image in images for _, x in image.annotations
  )
  folder = _folder(path, split, images, folder)
  labels = _categories(path, content)
  return _File(path, split, folder, images, *labels, captions)


def _categories(path, content):
  """{id: label}, and the supercategories, which are none of their own."""
  labels, parents = {}, set()
  categories = content.get("categories") and files.get(
    content, "categories", list, str(path)
  )
  for i, category in enumerate(categories or ()):
    where = f"{path}: category number {i}"
    key = _id(category, "id", where)
    if key in labels:
      raise ValueError(
        f"{where}: its id {messages.shown(str(key))} is that of another "
        "category"
      )
    labels[key] = str(files.get(category, "name", (str, int), where))
    parent = prompts.label_name(str(category.get("supercategory")))
    if parent != prompts.label_name(labels[key]):
      parents.add(parent)
  return labels, parents


def _images(path, listed, problems):
  """The images by id; several entries of one file are one image."""
  found, by_name = {}, {}
  for i, fields in enumerate(listed):
    where = f"{path}: image number {i}"
    key = None
    with problems:
      key = _id(fields, "id", where)
    if key is None:
      continue
    name = str(fields.get("file_name") or f"image {key}")
    image = _Image(fields, f"{path}: image {fields['id']}", [])
    image = by_name.setdefault(name, image)
    if found.setdefault(key, image) is not image:
      raise ValueError(
        f"{where}: its id {messages.shown(str(key))} is that of another image"
      )
    image.listed += 1
    if image.listed > 1:
      problems.note("images listed twice, read as one", where)
  return found


def _captions(image):
  texts = [
    columns.texts(annotation.get("caption"), where, "caption")[0]
    for where, annotation in image.annotations
  ]
  return tuple(texts if image.listed == 1 else dict.fromkeys(texts)) or None


def _objects(image, labels, problems):
  objects = [
    _object(annotation, labels, where, problems)
    for where, annotation in image.annotations
  ]
  if image.listed > 1:  # as often as each of its objects, perhaps
    objects = {(x.label, str(x.box or x.mask)): x for x in objects}.values()
  return tuple(objects)


def _object(annotation, labels, where, problems):
  category = _id(annotation, "category_id", where)
  if category not in labels:
    near = registry.did_you_mean(str(category), map(str, labels))
    raise ValueError(
      f"{where}: unknown category_id {messages.shown(str(category))}, the file "
      f"has {messages.shown(', '.join(map(str, labels))) or 'none'}.{near}"
    )
  mask = annotation.get("segmentation") or None
  if isinstance(mask, list | dict) and not annotation.get("bbox"):
    problems.note("objects without bbox, read as around their masks", where)
    box, shares = None, False if isinstance(mask, dict) else None
  else:
    box = files.get(annotation, "bbox", (list, str), where)
    box, shares = files.numbers(box, 4, "of a box", where), None
  return entries.Object(
    labels[category],
    box,
    where,
    mask,
    shares=shares,
    **boxes.details(annotation, where),
  )


def _labels(found, problems):
  """The labels of all files, without supercategories that are never used."""
  used = {
    prompts.label_name(file.labels[key])
    for file in found
    for image in file.images
    for _, annotation in image.annotations
    if (key := _plain(str(annotation.get("category_id")))) in file.labels
  }
  parents = set().union(*(file.parents for file in found)) - used
  labels = []
  for file in found:
    known = set(labels)
    for name in file.labels.values():
      if prompts.label_name(name) in parents:
        what = "supercategories that are never annotated, left out as labels"
        problems.note(what, f'{file.path}: "{messages.shown(name)}"')
      elif name not in known:
        labels.append(name)
  return labels


def _folder(path, split, images, given):
  bases = [path.parent, path.parent.parent] if given is None else [given]
  own = [path.stem.partition("_")[2]]
  own += [name for name, same in entries.SPLITS.items() if same == split]
  candidates = [
    base / middle / leaf
    for base in bases
    for leaf in (*filter(None, own), ".")
    for middle in (".", "images", "data")
  ]
  candidates = [folder for folder in candidates if folder.is_dir()]
  for image in images[:_TRIED]:
    name = image.fields.get("file_name")
    for folder in candidates if isinstance(name, str) else ():
      with entries.Problems(skip=True) as quiet:
        if folders.find(name, [folder], "", quiet).exists():
          return folder
  return bases[0]


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
