"""COCO: one JSON of images and annotations, with boxes or with captions."""

import pathlib

from paligemma import tree
from scripts.imports import columns, entries, files


def read(src, images, problems):
  """Reads an instances or a captions file of COCO.

  Args:
    src: path of the JSON.
    images: folder that "file_name" is relative to; None for that of the JSON.
    problems: entries.Problems.

  Returns:
    entries.Annotations; a crowd is kept as such.

  Raises:
    ValueError: the file is malformed, or whatever `problems` does not skip.
  """
  src = pathlib.Path(src)
  content = files.read_json(src)
  named = files.get(content, "images", list, str(src))
  annotations = files.get(content, "annotations", list, str(src))
  labels = _labels(content, src)
  by_image = {}
  for i, image in enumerate(named):
    place = f"{src}: image number {i}"
    key = files.get(image, "id", (int, str), place)
    if key in by_image:
      raise ValueError(f"{place}: its id {key} is that of another image")
    by_image[key] = []
  captions = False
  for i, annotation in enumerate(annotations):
    where = f"{src}: annotation number {i}"
    with problems:
      key = files.get(annotation, "image_id", (int, str), where)
      if key not in by_image:
        raise ValueError(f"{where}: no image has its image_id {key}")
      if "caption" in annotation:
        captions = True
        (found,) = columns.texts(annotation["caption"], where, "caption")
      else:
        found = _thing(annotation, labels, where)
      by_image[key].append(found)
  folder = src.parent if images is None else pathlib.Path(images)
  return entries.Annotations(
    _entries(src, named, by_image, captions, folder, problems),
    None if captions else tuple(labels.values()),
  )


def _entries(src, named, by_image, captions, folder, problems):
  for image in named:
    where = f"{src}: image {image['id']}"
    with problems:
      name = files.get(image, "file_name", str, where)
      found = by_image[image["id"]]
      if captions:
        size, annotated = None, {"captions": tuple(found) or None}
      else:
        size = tuple(
          files.get(image, side, int, where) for side in ("height", "width")
        )
        annotated = {"things": tuple(found)}
      yield entries.Entry(
        folder / name,
        where,
        size=size,
        fields={"image_id": image["id"]},
        **annotated,
      )


def _labels(content, src):
  """The names of categories by id."""
  labels = {}
  for i, category in enumerate(content.get("categories", ())):
    place = f"{src}: category number {i}"
    key = files.get(category, "id", int, place)
    if key in labels:
      raise ValueError(f"{place}: its id {key} is that of another category")
    labels[key] = files.get(category, "name", str, place)
  return labels


def _thing(annotation, labels, where):
  box = files.get(annotation, "bbox", list, where)
  x, y, width, height = files.numbers(box, 4, "x, y, width, height", where)
  category = files.get(annotation, "category_id", int, where)
  if category not in labels:
    near = tree.did_you_mean(str(category), map(str, labels))
    raise ValueError(
      f"{where}: unknown category_id {category}, the file has categories "
      f"{', '.join(map(str, labels)) or 'of no kind'}.{near}"
    )
  area = annotation.get("area")
  return entries.Thing(
    label=labels[category],
    box=(y, x, y + height, x + width),
    where=where,
    mask=annotation.get("segmentation") or None,
    crowd=bool(annotation.get("iscrowd")),
    area=None if area is None else files.numbers([area], 1, "area", where)[0],
  )
