"""Objects of the outlines and mask images that annotation programs write.

Points are (x, y) in pixels, y downwards. A polygon is [x0, y0, x1, y1, ...], as
in COCO.
"""

import math
import pathlib
from collections.abc import Sequence

import numpy as np

from paligemma.data import image_files, masks
from scripts.imports import entries, files

# Formats that keep values as they are; JPEG changes them.
SUFFIXES = (".png", ".bmp", ".gif", ".tif", ".tiff")
_GRAY = ("1", "L", "P", "I", "I;16", "I;16B")
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


def rectangle(
  x0: float,
  y0: float,
  x1: float,
  y1: float,
  pivot: tuple[float, float] = (0, 0),
  degrees: float = 0,
) -> tuple[float, ...]:
  """The box (y0, x0, y1, x1) around a rectangle turned clockwise."""
  if not degrees:
    return y0, x0, y1, x1
  return box([turned([x0, y0, x1, y0, x1, y1, x0, y1], pivot, degrees)])


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


def masked(label: str, mask: np.ndarray, where: str) -> entries.Object:
  """The object of a bool[height, width] mask, which must not be empty."""
  with files.at(where):
    edges = masks.bounding_box(mask)
  return entries.Object(label, edges, where, masks.to_rle(mask))


def paste(
  mask: np.ndarray, top: int, left: int, size: tuple[int, int]
) -> np.ndarray:
  """Pastes bool[h, w] into an empty bool[height, width]; the rest is cut."""
  found = np.zeros(size, bool)
  y0, x0 = max(top, 0), max(left, 0)
  y1 = max(y0, min(top + mask.shape[0], size[0]))
  x1 = max(x0, min(left + mask.shape[1], size[1]))
  found[y0:y1, x0:x1] = mask[y0 - top : y1 - top, x0 - left : x1 - left]
  return found


def read_mask(
  file: pathlib.Path | bytes, where: str, colours: bool = False
) -> np.ndarray:
  """The gray level or palette index of each pixel of an upright image.

  Args:
    file: Path or contents of an image in a format of SUFFIXES.
    where: Of a file its path.
    colours: Whether to return colours, 65536 R + 256 G + B, instead. Without
      it only images whose channels differ have colours.
  """
  place = where if isinstance(file, bytes) else None
  if image_files.suffix(file, where=place) not in SUFFIXES:
    raise ValueError(
      f"{where}: the mask is in a format that may change values, expected a "
      "PNG, BMP, GIF or TIFF"
    )
  picture = image_files.stored(file, where=place)
  if picture.mode in _GRAY and not colours:
    return np.asarray(picture).astype(np.int32)
  if "A" in picture.getbands():
    low, high = picture.getchannel("A").getextrema()
    if low < high:
      raise ValueError(
        f"{where}: the mask is transparent in part, expected values alone"
      )
  red, green, blue = np.moveaxis(
    np.asarray(picture.convert("RGB")).astype(np.int32), 2, 0
  )
  if not colours and (red == green).all() and (green == blue).all():
    return red
  return 65536 * red + 256 * green + blue
