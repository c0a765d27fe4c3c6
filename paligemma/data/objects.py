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
  for i, item in enumerate(found):
    if problem := _problem(item):
      shown = " ".join(repr(item).split())  # arrays print on several lines
      raise example_fields.error(
        example, f'object {i} of "objects" is {shown:.80}, expected {problem}'
      )
  return list(found)


def crop(
  things: Sequence[Object], window: location.Box, min_visible: float
) -> list[Object]:
  """Crops objects to a window of the image.

  Args:
    things: The objects.
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
  for thing in things:
    whole = np.asarray(thing["box"], np.float64)
    box = np.clip(whole, (y0, x0, y0, x0), (y1, x1, y1, x1))
    visible = _area(box) / (_area(whole) or 1)
    box -= (y0, x0, y0, x0)
    moved = {"box": box}
    if "mask" in thing:
      moved["mask"] = mask = thing["mask"][y0:y1, x0:x1]
      visible = mask.sum() / max(thing["mask"].sum(), 1)
      if 0 < visible < 1:
        tight = np.array(masks.bounding_box(mask))
        box[:2] = np.maximum(box[:2], tight[:2])
        box[2:] = np.minimum(box[2:], tight[2:])
    if visible >= max(min_visible, np.finfo(float).tiny) and _area(box) > 0:
      kept.append(_moved(thing, **moved))
  return kept


def pad(
  things: Sequence[Object], corner: tuple[int, int], size: tuple[int, int]
) -> list[Object]:
  """Moves objects with an image that is put onto a larger canvas.

  Args:
    things: The objects.
    corner: (y, x) of the image on the canvas, in pixels.
    size: (height, width) of the canvas.
  """
  y, x = corner
  result = []
  for thing in things:
    moved = {"box": np.add(thing["box"], (y, x, y, x))}
    if "mask" in thing:
      moved["mask"] = np.zeros(size, bool)
      height, width = thing["mask"].shape
      moved["mask"][y : y + height, x : x + width] = thing["mask"]
    result.append(_moved(thing, **moved))
  return result


def resize(
  things: Sequence[Object], old: tuple[int, int], new: tuple[int, int]
) -> list[Object]:
  """Scales objects; masks by nearest neighbour.

  Args:
    things: The objects.
    old: (height, width) of their image.
    new: (height, width) of the resized image.
  """
  scale = np.divide(new, old)
  rows, columns = (
    ((np.arange(n) + 0.5) * o / n).astype(int)
    for o, n in zip(old, new, strict=True)
  )
  result = []
  for thing in things:
    moved = {"box": np.multiply(thing["box"], (*scale, *scale))}
    if "mask" in thing:
      moved["mask"] = thing["mask"][rows[:, None], columns[None]]
    result.append(_moved(thing, **moved))
  return result


def flip(things: Sequence[Object], width: int) -> list[Object]:
  """Mirrors objects left to right in an image of this width."""
  result = []
  for thing in things:
    y0, x0, y1, x1 = thing["box"]
    moved = {"box": (y0, width - x1, y1, width - x0)}
    if "mask" in thing:
      moved["mask"] = thing["mask"][:, ::-1]
    result.append(_moved(thing, **moved))
  return result


def _moved(thing, box, **mask):
  """Returns the object with another box and mask, without its area."""
  rest = {key: value for key, value in thing.items() if key != "area"}
  return {**rest, "box": tuple(map(float, box)), **mask}


def _area(box):
  return (box[2] - box[0]) * (box[3] - box[1])


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
