"""Outlines that annotation programs draw, and boxes around them.

Points are (x, y) in pixels, y downwards. A polygon is [x0, y0, x1, y1, ...], as
in COCO.
"""

import math
from collections.abc import Sequence

import numpy as np

_CORNERS = 128  # of an ellipse: its outline is true to 0.03 % of its radius


def polygon(points: Sequence[Sequence[float]], where: str) -> list[float]:
  """The polygon of 3 points or more."""
  if len(points) < 3:
    raise ValueError(
      f"{where}: a polygon of {len(points)} points, expected 3 or more"
    )
  return [float(c) for point in points for c in point]


def ellipse(
  x: float, y: float, rx: float, ry: float, degrees: float = 0
) -> list[float]:
  """The polygon of an ellipse, turned clockwise around its centre."""
  angles = np.arange(_CORNERS) * (2 * math.pi / _CORNERS)
  points = np.stack([x + rx * np.cos(angles), y + ry * np.sin(angles)], 1)
  return turned(points, (x, y), degrees)


def rectangle(x0: float, y0: float, x1: float, y1: float) -> list[float]:
  """The polygon of a rectangle."""
  return [x0, y0, x1, y0, x1, y1, x0, y1]


def turned(
  points: Sequence[float] | np.ndarray,
  pivot: tuple[float, float],
  degrees: float,
) -> list[float]:
  """A polygon turned clockwise around a point."""
  found = np.reshape(points, (-1, 2)).astype(float)
  if degrees:
    angle = math.radians(degrees)
    cos, sin = math.cos(angle), math.sin(angle)
    found = (found - pivot) @ [[cos, sin], [-sin, cos]] + pivot
  return found.ravel().tolist()


def box(polygons: Sequence[Sequence[float]]) -> tuple[float, ...]:
  """The box (y0, x0, y1, x1) around all of some polygons."""
  xs = [x for polygon in polygons for x in polygon[::2]]
  ys = [y for polygon in polygons for y in polygon[1::2]]
  return min(ys), min(xs), max(ys), max(xs)
