"""An annotated image -> the object of its line in PaliGemma JSONL."""

import collections
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from paligemma.data import location
from paligemma.data import masks as masks_lib
from scripts.imports import entries, pictures

TASKS = ("detect", "segment", "caption", "vqa")
LABELS = ("all", "present")

# Pixels that a box may lie outside of its image, as rounding leaves it.
_SLACK = 1.0


def record(
  entry: entries.Entry,
  task: str,
  problems: entries.Problems,
  *,
  labels: Sequence[str] | None = None,
  encode: Callable[[np.ndarray], np.ndarray] | None = None,
) -> dict[str, Any] | None:
  """Writes prompt and answer, but not the path of the image.

  Args:
    entry: its image is a file, whose head is read.
    task: one of TASKS.
    problems: an object that is bad is left out if they are skipped.
    labels: what to ask for, "detect a ; b"; None for what is there.
    encode: float[N, 64, 64] masks -> int[N, 16] codes, for "segment".

  Returns:
    "prefix", "suffix", entry.fields and the raw annotations: "captions";
    "question" and "answers"; or "height", "width" and "objects", a list of
    {"box": (y0, x0, y1, x1), "label": ...} with "area" and "iscrowd" where
    there are any. With "segment" also "annotations", the objects as COCO has
    them, with their masks, for object_ops.FromCoco(masks=True). None if labels
    is None and nothing is there.

  Raises:
    ValueError: the image is missing or of another size than is stated, or it
      has no annotation for the task.
  """
  height, width = size = pictures.size(entry.image, entry.where, entry.size)
  if task == "caption":
    captions = _annotated(entry, "captions", "caption")
    fields = {
      "prefix": "caption en",
      "suffix": captions[0],
      "captions": list(captions),
    }
  elif task == "vqa":
    question = _annotated(entry, "question", "question")
    answers = _annotated(entry, "answers", "answer")
    ((most_common, _),) = collections.Counter(answers).most_common(1)
    fields = {
      "prefix": f"answer en {question}",
      "suffix": most_common,
      "question": question,
      "answers": list(answers),
    }
  else:
    things = _annotated(entry, "things", "objects")
    fields = _objects(things, size, task, problems, labels, encode)
    if fields is None:
      return None
    fields |= {"height": height, "width": width}
  return {**entry.fields, **fields}


def _annotated(entry, name, what):
  value = getattr(entry, name)
  if value is None:
    raise ValueError(f"{entry.where}: the image has no {what}")
  return value


def _objects(things, size, task, problems, labels, encode):
  objects, raw, annotations, masks = [], [], [], []
  for thing in things:
    with problems:
      box = _box(thing, size)
      found = location.Object(box, thing.label.strip())
      _check(found, size, thing.where)
      fields = {"box": list(box), "label": found.label}
      if thing.area is not None:
        fields["area"] = thing.area
      if thing.crowd:
        raw.append({**fields, "iscrowd": 1})
        continue
      if task == "segment":
        masks.append(_crop(_mask(thing, size), box, thing.where))
        annotations.append(_annotation(thing, box))
      raw.append(fields)
      objects.append(found)
  if labels is None:
    labels = tuple(dict.fromkeys(thing.label for thing in objects))
    if not labels:
      return None
  if masks:
    objects = [
      location.Object(thing.box, thing.label, tuple(codes))
      for thing, codes in zip(objects, encode(np.stack(masks)), strict=True)
    ]
  written = {
    "prefix": f"{task} {location.SEPARATOR.join(labels)}",
    "suffix": location.encode(objects, size),
    "objects": raw,
  }
  return written | ({"annotations": annotations} if task == "segment" else {})


def _annotation(thing, box):
  y0, x0, y1, x1 = box
  return {
    "bbox": [x0, y0, x1 - x0, y1 - y0],
    "category_id": thing.label.strip(),
    "segmentation": thing.mask,
  }


def _box(thing, size):
  """The box of a thing within its image."""
  y0, x0, y1, x1 = thing.box
  box = "(y0, x0, y1, x1) = (" + ", ".join(f"{c:.6g}" for c in thing.box) + ")"
  problem = ""
  if y1 < y0 or x1 < x0:
    problem = "inverted"
  elif y1 == y0 or x1 == x0:
    problem = "without area"
  elif min(y0, x0) < -_SLACK or y1 > size[0] + _SLACK or x1 > size[1] + _SLACK:
    problem = f"outside of its image of {size[0]}x{size[1]} pixels"
  if problem:
    raise ValueError(f"{thing.where}: box {box} is {problem}")
  sides = np.array([*size, *size], float)
  return tuple(np.clip(thing.box, 0, sides).tolist())


def _check(thing, size, where):
  """Raises if an object does not come back from its text."""
  try:
    (back,) = location.parse(location.encode([thing], size), size)
  except ValueError as error:
    raise ValueError(f"{where}: {error}") from None
  if back.problem:
    raise ValueError(
      f"{where}: box {thing.box} is too thin for the 1024 locations of a side "
      f"of {size[0]}x{size[1]} pixels: {back.problem}"
    )
  if not back.label:
    raise ValueError(f"{where}: the label is empty")


def _mask(thing, size):
  try:
    if thing.mask is None:
      raise ValueError("no mask, expected polygons or a run-length mask")
    if isinstance(thing.mask, dict):
      return masks_lib.from_rle(thing.mask, *size)
    return masks_lib.from_polygons(thing.mask, *size)
  except ValueError as error:
    raise ValueError(f"{thing.where}: {error}") from None


def _crop(mask, box, where):
  try:
    cropped = masks_lib.crop(mask, box)
  except ValueError as error:
    raise ValueError(f"{where}: {error}") from None
  if not cropped.any():
    raise ValueError(f"{where}: nothing of the mask lies in its box {box}")
  return cropped
