"""The objects of an example: boxes, labels and masks in pixels of its image.

    example["objects"] = [
      {"box": (y0, x0, y1, x1), "label": "cat", "mask": bool[H, W]}, ...
    ]

Boxes are those of data/location.py. A mask may be missing. Other fields of an
object are kept, except its "area" when that changes.
"""

from typing import Any

import numpy as np

from paligemma.data import example_fields, location, masks

Object = dict[str, Any]


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
  """Applies functions to all boxes and masks."""
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
