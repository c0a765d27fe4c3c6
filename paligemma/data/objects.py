"""The objects of an example: boxes, labels and masks in pixels of its image.

    example["objects"] = [
      {"box": (y0, x0, y1, x1), "label": "cat", "mask": bool[H, W]}, ...
    ]

Boxes are those of data/location.py. A mask may be missing. Other fields of an
object are kept, except its "area" when that changes.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from paligemma.data import example_fields, location, masks

Object = dict[str, Any]
# Such as functools.partial(mask_codec.decode, params).
DecodeMasks = Callable[[Int[np.ndarray, "B 16"]], Float[np.ndarray, "B 64 64"]]


def parse(
  answer: str,
  size: location.Size,
  *,
  decode: DecodeMasks | None = None,
  scores: Sequence[float] | None = None,
) -> list[Object]:
  """Returns the objects with a box in an answer, in its order.

  Objects without box or with a malformed one are left out; location.parse
  returns these, too, and their problems.

  Args:
    size: (height, width) of the image.
    decode: Decodes the codes of masks. Default: objects have no masks.
    scores: One for each box of location.parse, as "confidences" in a file of
      predictions. Default: objects have no scores.

  Raises:
    ValueError: The numbers of boxes and scores differ.
  """
  boxes = [item for item in location.parse(answer, size) if item.box]
  if scores is not None and len(scores) != len(boxes):
    raise ValueError(
      f"{len(scores)} scores for {len(boxes)} boxes, expected one for each"
    )
  found = []
  for i, item in enumerate(boxes):
    if item.problem:
      continue
    result = {"box": item.box, "label": item.label}
    if scores is not None:
      result["score"] = float(scores[i])
    if item.codes is not None and decode is not None:
      # One at a time: a single shape is compiled.
      (mask,) = np.asarray(decode(np.array([item.codes], np.int32)))
      result["mask"] = masks.paste(mask, item.box, size) > 0.5
    found.append(result)
  return found


def to_json(item: Object) -> Object:
  """Returns an object that JSON can hold.

  Its box is rounded to hundredths of a pixel; its mask becomes run lengths of
  COCO, compressed.
  """
  written = {**item, "box": [round(float(x), 2) for x in item["box"]]}
  if "mask" in item:
    written["mask"] = masks.to_compressed_rle(item["mask"])
  return written


def from_json(item: Mapping[str, Any]) -> Object:
  """The inverse of `to_json`, except for rounding."""
  read = {**item, "box": tuple(item["box"])}
  if isinstance(item.get("mask"), Mapping):
    read["mask"] = masks.from_rle(item["mask"], *item["mask"]["size"])
  return read


def read(example: example_fields.Example) -> list[Object]:
  """Returns a new list of the objects of an example, checked."""
  found = example_fields.read(example, "objects")
  if not isinstance(found, list | tuple):
    raise example_fields.wrong(
      example, "objects", "a list of boxes with labels"
    )
  checked = []
  for i, item in enumerate(found):
    if isinstance(item, dict):  # a null value counts as absent
      item = {key: value for key, value in item.items() if value is not None}
    if expected := _expected(item):
      shown = " ".join(repr(item).split())  # arrays print on several lines
      raise example_fields.error(
        example, f'object {i} of "objects" is {shown:.80}, expected {expected}'
      )
    checked.append(item)
  return checked


def crop(
  items: list[Object], window: location.Box, min_visible: float
) -> list[Object]:
  """Returns the objects that a crop keeps, in pixels of its window.

  Boxes are clipped; if a mask was cut, its box shrinks to the rest of the mask.

  Args:
    items: The objects.
    window: (y0, x0, y1, x1), whole pixels.
    min_visible: An object is kept if at least this share, in [0, 1], of its
      mask or else of its box is inside the window. Objects that are wholly
      outside or have no area are always dropped.
  """
  kept = []
  y0, x0, y1, x1 = window
  for item in items:
    whole = np.asarray(item["box"], np.float64)
    box = np.clip(whole, (y0, x0, y0, x0), (y1, x1, y1, x1))
    visible = _area(box) / (_area(whole) or 1)
    box -= (y0, x0, y0, x0)
    mask = item["mask"][y0:y1, x0:x1] if "mask" in item else None
    if mask is not None:
      visible = mask.sum() / max(item["mask"].sum(), 1)
      if 0 < visible < 1:
        tight = np.array(masks.bounding_box(mask))
        box[:2] = np.maximum(box[:2], tight[:2])
        box[2:] = np.minimum(box[2:], tight[2:])
    if visible >= max(min_visible, np.finfo(float).tiny) and _area(box) > 0:
      kept.append(_moved(item, box, mask))
  return kept


def pad(
  items: list[Object], corner: tuple[int, int], size: location.Size
) -> list[Object]:
  """Moves objects with an image to a corner (y, x) of a canvas of a size."""
  (y, x), (height, width) = corner, size

  def pad_mask(mask):
    below, right = height - y - mask.shape[0], width - x - mask.shape[1]
    return np.pad(mask, ((y, below), (x, right)))

  return _each(items, lambda box: np.add(box, (y, x, y, x)), pad_mask)


def resize(
  items: list[Object], old: location.Size, new: location.Size
) -> list[Object]:
  """Scales objects from (height, width) to another; masks to the nearest."""
  rows, columns = (
    ((np.arange(n) + 0.5) * o / n).astype(int)
    for o, n in zip(old, new, strict=True)
  )
  scale = np.tile(np.divide(new, old), 2)
  return _each(
    items,
    lambda box: np.multiply(box, scale),
    lambda mask: mask[rows[:, None], columns[None]],
  )


def flip(items: list[Object], width: int) -> list[Object]:
  """Mirrors objects left to right in an image of this width."""
  return _each(
    items,
    lambda box: (box[0], width - box[3], box[2], width - box[1]),
    lambda mask: mask[:, ::-1],
  )


def _each(items, move_box, move_mask):
  moved = []
  for item in items:
    mask = move_mask(item["mask"]) if "mask" in item else None
    moved.append(_moved(item, move_box(item["box"]), mask))
  return moved


def _moved(item, box, mask):
  """Returns the object with another box and mask, without its area."""
  moved = {key: value for key, value in item.items() if key != "area"}
  moved["box"] = tuple(map(float, box))
  return moved if mask is None else {**moved, "mask": mask}


def _area(box):
  return (box[2] - box[0]) * (box[3] - box[1])


def _expected(item):
  """Returns what was expected of a malformed object, "" for a good one."""
  if not isinstance(item, dict) or not isinstance(item.get("label"), str):
    return '{"box": ..., "label": text}'
  if location.corners(item.get("box")) is None:
    return '(y0, x0, y1, x1) in pixels with y0 <= y1 and x0 <= x1 as "box"'
  mask = item.get("mask")
  if "mask" in item and (
    not isinstance(mask, np.ndarray) or mask.dtype != bool or mask.ndim != 2
  ):
    return 'bool[height, width] as "mask"'
  return ""
