"""Masks that are pictures: their values, and the objects that they show."""

import pathlib

import numpy as np

from paligemma.data import image_files, masks
from scripts.imports import entries

# What keeps values as they are; JPEG changes them.
SUFFIXES = (".png", ".bmp", ".gif", ".tif", ".tiff")
_GRAY = ("1", "L", "P", "I", "I;16", "I;16B")


def values(
  file: pathlib.Path | bytes, where: str, colours: bool = False
) -> np.ndarray:
  """The gray level or palette index of each pixel of an upright image.

  Args:
    file: path or contents of a picture in one of SUFFIXES.
    where: of a file its path.
    colours: take colours in the place of gray and indices.

  Returns:
    int32[height, width]; of colours, 65536 R + 256 G + B. Gray in three
    channels is gray where colours are not asked for.
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


def paste(
  bitmap: np.ndarray, top: int, left: int, size: tuple[int, int]
) -> np.ndarray:
  """Pastes bool[h, w] into an empty bool[height, width]; the rest is cut."""
  found = np.zeros(size, bool)
  y0, x0 = max(top, 0), max(left, 0)
  y1 = max(y0, min(top + bitmap.shape[0], size[0]))
  x1 = max(x0, min(left + bitmap.shape[1], size[1]))
  found[y0:y1, x0:x1] = bitmap[y0 - top : y1 - top, x0 - left : x1 - left]
  return found


def to_object(label: str, mask: np.ndarray, where: str) -> entries.Object:
  """The object of a mask, with the box around it."""
  try:
    edges = masks.bounding_box(mask)
  except ValueError as error:
    raise ValueError(f"{where}: {error}") from None
  return entries.Object(label, edges, where, masks.to_rle(mask))
