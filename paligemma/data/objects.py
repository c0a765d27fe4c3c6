"""The objects of an example: boxes, labels and masks in pixels of its image.

    example["objects"] = [
      {"box": (y0, x0, y1, x1), "label": "cat", "mask": bool[H, W]}, ...
    ]

Boxes go from the corner at (0, 0), which is the upper left one of pixel (0, 0),
to the one at (height, width), as in data/location.py; they need not be whole
pixels. A mask may be missing. Other fields of an object are kept, except its
"area" when that changes.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from paligemma.data import example_fields, location, masks

Object = dict[str, Any]


def read(example: example_fields.Example) -> list[Object]:
  """Returns a new list of the objects of an example, checked.

  Raises:
    ValueError: The example has no "objects", or one is malformed.
  """
  found = example_fields.read(example, "objects")
  if not isinstance(found, list | tuple):
    raise example_fields.wrong(
      example, "objects", "a list of boxes with labels"
    )
  found = [_stated(item) for item in found]
  for i, item in enumerate(found):
    if problem := _problem(item):
      shown = " ".join(repr(item).split())  # arrays print on several lines
      raise example_fields.error(
        example, f'object {i} of "objects" is {shown:.80}, expected {problem}'
      )
  return found


def crop(
  items: Sequence[Object], window: location.Box, min_visible: float
) -> list[Object]:
  """Crops objects to a window of the image.

  Args:
    items: The objects.
    window: (y0, x0, y1, x1), whole pixels.
    min_visible: An object is kept if at least this share, in [0, 1], of its
      mask or else of its box is inside the window. Objects that are wholly
      outside or have no area are always dropped.

  Returns:
    The objects that are kept, in pixels of the window. Boxes are clipped; if a
    mask was cut, its box shrinks to the rest of the mask.
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
  items: Sequence[Object], corner: tuple[int, int], size: tuple[int, int]
) -> list[Object]:
  """Moves objects with an image that is put onto a larger canvas.

  Args:
    items: The objects.
    corner: (y, x) of the image on the canvas, in pixels.
    size: (height, width) of the canvas.
  """
  y, x = corner

  def on_canvas(mask):
    canvas = np.zeros(size, bool)
    canvas[y : y + mask.shape[0], x : x + mask.shape[1]] = mask
    return canvas

  return _each(items, lambda box: np.add(box, (y, x, y, x)), on_canvas)


def resize(
  items: Sequence[Object], old: tuple[int, int], new: tuple[int, int]
) -> list[Object]:
  """Scales objects; masks by nearest neighbour.

  Args:
    items: The objects.
    old: (height, width) of their image.
    new: (height, width) of the resized image.
  """
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


def flip(items: Sequence[Object], width: int) -> list[Object]:
  """Mirrors objects left to right in an image of this width."""
  return _each(
    items,
    lambda box: (box[0], width - box[3], box[2], width - box[1]),
    lambda mask: mask[:, ::-1],
  )


def _each(items, move_box, move_mask):
  """Applies functions to all boxes and masks."""
  return [
    _moved(
      item,
      move_box(item["box"]),
      move_mask(item["mask"]) if "mask" in item else None,
    )
    for item in items
  ]


def _moved(item, box, mask):
  """Returns the object with another box and mask, without its area."""
  moved = {key: value for key, value in item.items() if key != "area"}
  moved["box"] = tuple(map(float, box))
  return moved if mask is None else {**moved, "mask": mask}


def _area(box):
  return (box[2] - box[0]) * (box[3] - box[1])


def _stated(item):
  """Returns an object without what is null in it, which counts as absent."""
  if not isinstance(item, dict):
    return item
  return {key: value for key, value in item.items() if value is not None}


def _problem(item):
  """Returns what was expected of a malformed object, "" for a good one."""
  if not isinstance(item, dict) or not isinstance(item.get("label"), str):
    return '{"box": ..., "label": text}'
  box = location.corners(item.get("box"))
  if box is None or (box[2:] < box[:2]).any():
    return '(y0, x0, y1, x1) in pixels with y0 <= y1 and x0 <= x1 as "box"'
  mask = item.get("mask")
  if "mask" in item and (
    not isinstance(mask, np.ndarray) or mask.dtype != bool or mask.ndim != 2
  ):
    return 'bool[height, width] as "mask"'
  return ""
