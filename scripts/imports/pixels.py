"""Converts boxes and masks of all formats to pixels of their image."""

import math

import numpy as np

from paligemma.data import location
from paligemma.data import masks as masks_lib
from scripts.imports import entries, files

CUT = "boxes cut to their picture"
MOSTLY_OUTSIDE = f"{CUT}, more than half of which lay outside"

_DECIMALS = 2  # of a pixel


def rounded(number: float) -> float:
  """Rounds a coordinate as prompts.record says."""
  return round(float(number), _DECIMALS) + 0.0  # no -0.0


def box(obj: entries.Object, size: tuple[int, int]) -> location.Box:
  """The box of an object in pixels; raises if it is empty or outside."""
  sides = (*size, *size) if obj.shares else (1, 1, 1, 1)
  y0, x0, y1, x1 = found = [
    rounded(c * side) for c, side in zip(obj.box, sides, strict=True)
  ]
  problem = ""
  if not all(map(math.isfinite, found)):
    problem = "not finite"
  elif y1 < y0 or x1 < x0:
    problem = "inverted"
  elif y1 == y0 or x1 == x0:
    problem = "without area"
  elif y1 <= 0 or x1 <= 0 or y0 >= size[0] or x0 >= size[1]:
    problem = f"outside of its image of {size[0]}x{size[1]} pixels"
  if problem:
    shown = ", ".join(f"{c:.6g}" for c in found)
    raise ValueError(
      f"{obj.where}: box (y0, x0, y1, x1) = ({shown}) is {problem}"
    )
  return tuple(found)


def cut(
  box: location.Box,
  size: tuple[int, int],
  where: str,
  problems: entries.Problems,
) -> location.Box:
  """Clips a box to its image, and notes it."""
  inside = tuple(
    min(max(c, 0.0), float(side))
    for c, side in zip(box, (*size, *size), strict=True)
  )
  if inside != box:
    mostly_outside = _area(inside) < _area(box) / 2
    problems.note(MOSTLY_OUTSIDE if mostly_outside else CUT, where)
  return inside


def _area(box):
  y0, x0, y1, x1 = box
  return (y1 - y0) * (x1 - x0)


def is_area(area: float, box: location.Box) -> bool:
  """Whether an area is that of the box, up to rounding."""
  y0, x0, y1, x1 = box
  return abs(area - _area(box)) <= 0.01 * (1 + y1 - y0 + x1 - x0)


def mask(
  obj: entries.Object, size: tuple[int, int]
) -> tuple[list[list[float]] | dict, np.ndarray]:
  """The mask of an object: as it is written, in pixels, and as bool[H, W]."""
  with files.at(obj.where):
    if obj.mask is None:
      raise ValueError("no mask, expected polygons or a run-length mask")
    if isinstance(obj.mask, dict):
      return obj.mask, masks_lib.from_rle(obj.mask, *size)
    if not isinstance(obj.mask, list | tuple):
      raise ValueError(
        f"mask {obj.mask!r:.60}, expected polygons or a run-length mask"
      )
    unit = size[::-1] if obj.shares else (1, 1)
    polygons = [_polygon(points, unit) for points in obj.mask]
    return polygons, masks_lib.from_polygons(polygons, *size)


def _polygon(points, unit):
  """A polygon x, y, x, y, ... in pixels; what is none is returned as it is."""
  try:
    return [rounded(c * unit[i % 2]) for i, c in enumerate(points)]
  except (TypeError, ValueError, OverflowError):
    return points  # masks.from_polygons says what is wrong with them


def crop(mask: np.ndarray, box: location.Box, where: str) -> np.ndarray:
  """Crops a mask to a box, as the codec takes it: float[64, 64]."""
  with files.at(where):
    cropped = masks_lib.crop(mask, box)
    if not cropped.any():
      raise ValueError(f"nothing of the mask lies in its box {box}")
  return cropped
