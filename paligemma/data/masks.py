"""Masks in pixels: from annotations, and to and from 64x64 for the codec.

    annotation -> bool[H, W] -> crop -> float[64, 64] -> mask_codec.encode
    mask_codec.decode -> float[64, 64] -> paste -> float[H, W] -> above 0.5

Boxes are (y0, x0, y1, x1) in pixels, as in data/location.py.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float32, Shaped
from pycocotools import mask as coco

from paligemma.data import image as image_lib
from paligemma.data import location

SIDE = 64  # of the codec's masks, in pixels

Mask = Shaped[np.ndarray, "H W"]  # bool or number
Small = Float[np.ndarray, "64 64"]


def bounding_box(mask: Mask) -> tuple[int, int, int, int]:
  """Returns the smallest box around the pixels that are not 0; one must be."""
  mask = np.asarray(mask)
  if not mask.any():
    raise ValueError("mask is empty, nothing has a bounding box")
  rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
  return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1


def crop(mask: Mask, box: Sequence[float]) -> Small:
  """Crops a mask to a box and resizes it to 64x64, bilinear, antialiased.

  The mask is in [0, 1]. The box is rounded and clipped by location.to_pixels;
  location.widen makes one that is thinner than a pixel one pixel wide.

  Raises:
    ValueError: The mask has another shape or range, or the box covers no pixel.

  Source: refcoco_mask2str of big_vision, which fails at a thin box.
  """
  mask = np.asarray(mask)
  if mask.ndim != 2:
    raise ValueError(f"mask has shape {mask.shape}, expected (height, width)")
  wide = location.widen(box, mask.shape, mask.shape)
  y0, x0, y1, x1 = location.to_pixels(wide, mask.shape)
  part = mask[y0:y1, x0:x1]
  if not part.size:
    raise ValueError(
      f"box {tuple(box)} covers no pixel of a mask of "
      f"{mask.shape[0]}x{mask.shape[1]}"
    )
  if not (part.min() >= 0 and part.max() <= 1):
    raise ValueError(
      f"mask has values from {part.min()} to {part.max()}, expected [0, 1]; "
      "divide pixels by 255"
    )
  return image_lib.resize(part[:, :, None], (SIDE, SIDE))[:, :, 0]


def paste(
  decoded: Small, box: Sequence[float], size: image_lib.Size
) -> Float32[np.ndarray, "height width"]:
  """Resizes a decoded mask to its box and pastes it into an empty image.

  Args:
    decoded: A mask of models/mask_codec.decode: above 0 inside, about [-1, 1].
    box: Rounded and clipped by location.to_pixels.

  Returns:
    The mask, mapped to [0, 1] and clipped: above 0.5 is inside. All 0 if the
    box has no area.

  Source: the segmentation evaluator of big_vision, where pixels above 0 are
  inside; it rounds the box down, see location.to_pixels.
  """
  decoded = np.asarray(decoded)
  if decoded.ndim != 2:
    raise ValueError(
      f"decoded mask has shape {decoded.shape}, expected {(SIDE, SIDE)}"
    )
  if not np.isfinite(decoded).all():
    raise ValueError("decoded mask is not finite; are its codes in [0, 128)?")
  y0, x0, y1, x1 = location.to_pixels(box, size)
  pasted = np.zeros(size, np.float32)
  if y0 < y1 and x0 < x1:
    part = image_lib.resize(decoded[:, :, None], (y1 - y0, x1 - x0))[:, :, 0]
    pasted[y0:y1, x0:x1] = np.clip(0.5 + part / 2, 0, 1)
  return pasted


def from_polygons(
  polygons: Sequence[Sequence[float]], height: int, width: int
) -> Bool[np.ndarray, "height width"]:
  """Fills polygons of COCO with pycocotools.

  Args:
    polygons: Each is [x0, y0, x1, y1, ...] in pixels; points may lie outside by
      at most the size of the image. Their union is filled.

  Raises:
    ValueError: No polygon, or a malformed one.
  """
  _check_size(height, width)
  if not len(polygons):
    raise ValueError("no polygon, expected a list of [x0, y0, x1, y1, ...]")
  checked = [
    _checked_polygon(i, polygon, height, width)
    for i, polygon in enumerate(polygons)
  ]
  runs = coco.merge(coco.frPyObjects(checked, height, width))
  return from_rle(runs, height, width)


def from_rle(
  rle: Mapping[str, Any], height: int, width: int
) -> Bool[np.ndarray, "height width"]:
  """Decodes a run-length mask of COCO.

  Args:
    rle: {"size": [height, width], "counts": ...}, column by column: a list of
      the lengths of runs, beginning with one outside of the mask, or that list
      as compressed by pycocotools, str or bytes.

  Raises:
    ValueError: Malformed, or of another size than the image.

  Source: maskApi.c of pycocotools, which we do not call, because for counts
  that are too few it returns uninitialized memory.
  """
  _check_size(height, width)
  if not isinstance(rle, Mapping) or not {"size", "counts"} <= rle.keys():
    raise ValueError('run-length mask is no dict with "size" and "counts"')
  if not np.array_equal(rle["size"], [height, width]):
    raise ValueError(
      f"run-length mask has size {rle['size']}, expected [{height}, {width}], "
      "that of the image"
    )
  counts = rle["counts"]
  if isinstance(counts, str | bytes):
    counts = _decompress(counts)
  if not isinstance(counts, list | tuple | np.ndarray) or not all(
    isinstance(n, int | np.integer) and n >= 0 for n in counts
  ):
    raise ValueError("counts of a run-length mask are not all integers from 0")
  if (total := sum(map(int, counts))) != height * width:
    raise ValueError(
      f"counts of a run-length mask sum to {total}, expected "
      f"{height * width} = {height} * {width}"
    )
  inside = np.arange(len(counts)) % 2 == 1
  return inside.repeat(counts).reshape(width, height).T


def to_rle(mask: Bool[np.ndarray, "height width"]) -> dict[str, list[int]]:
  """Encodes a mask as run lengths of COCO, the inverse of `from_rle`."""
  height, width = mask.shape
  columns = np.concatenate([[False], mask.T.ravel()])
  edges = np.flatnonzero(columns[1:] != columns[:-1])
  counts = np.diff([0, *edges, mask.size]).tolist()
  return {"size": [height, width], "counts": counts}


def to_compressed_rle(mask: Bool[np.ndarray, "height width"]) -> dict[str, Any]:
  """As `to_rle`, with "counts" as the text of pycocotools, which is short."""
  rle = coco.encode(np.asfortranarray(mask, np.uint8))
  return {"size": list(mask.shape), "counts": rle["counts"].decode()}


def _decompress(text):
  """Decodes the counts of pycocotools' text: 6 bits a character, from "0" on.

  Five bits are of the count, least significant first, the sixth says whether
  more follow; the highest bit of all is the sign. From the fourth on, a count
  is stored as the difference to the last but one.
  """
  characters = text.encode() if isinstance(text, str) else text
  counts = []
  value = shift = 0
  for character in characters:
    six = character - 48
    if not 0 <= six < 64 or shift > 30:
      raise ValueError(
        f"counts of a run-length mask hold {bytes([character])!r} where "
        "compressed counts cannot, expected those of pycocotools"
      )
    value |= (six & 31) << shift
    shift += 5
    if six & 32:
      continue
    if six & 16:
      value -= 1 << shift
    if len(counts) > 2:
      value += counts[-2]
    counts.append(value)
    value = shift = 0
  if shift:
    raise ValueError("compressed counts of a run-length mask are cut short")
  return counts


def _check_size(height, width):
  if not 0 < height * width <= image_lib.MAX_PIXELS or height < 0:
    raise ValueError(
      f"image of {height}x{width} pixels, expected at least 1 and at most "
      f"{image_lib.MAX_PIXELS} in all"
    )


def _checked_polygon(i, polygon, height, width):
  try:
    numbers = np.asarray(polygon, np.float64)
  except (TypeError, ValueError):
    numbers = np.empty(0)
  # pycocotools would read four numbers as a box.
  if numbers.ndim != 1 or len(numbers) < 6 or len(numbers) % 2:
    raise ValueError(
      f"polygon {i} has shape {numbers.shape}, expected numbers [x0, y0, x1, "
      "y1, ...] of 3 points or more"
    )
  for x, y in numbers.reshape(-1, 2).tolist():
    if not (-width <= x <= 2 * width and -height <= y <= 2 * height):
      raise ValueError(
        f"polygon {i} has a point (x, y) = ({x}, {y}), expected it not farther "
        f"from an image of {height}x{width} than its size"
      )
  return numbers.tolist()
