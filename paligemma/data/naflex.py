"""Images of any aspect ratio as sequences of patches, for NaFlex.

Sources: big_vision, pp/proj/image_text/ops_naflex.py; transformers 5.23,
models/siglip2/image_processing_siglip2.py. Both search for the size as here.
"""

import math

import numpy as np
from jaxtyping import Float32, Int32

from paligemma.data import image as image_lib

_STEP = 1e-5  # how exactly the scale is found

# Patches, 1 at a patch and 0 at padding, row and column of each patch.
Patches = tuple[
  Float32[np.ndarray, "P Z"],
  Int32[np.ndarray, " P"],
  Int32[np.ndarray, " P"],
  Int32[np.ndarray, " P"],
]


def grid(
  size: image_lib.Size, patch_size: int, max_patches: int
) -> tuple[int, int]:
  """Returns (rows, columns) of patches that an image is resized to fill.

  It is scaled as large as it can be with at most `max_patches` patches; each
  side then grows to whole patches, so the aspect ratio changes a little:

      (480, 640), 16, 256    ->  (14, 18): 224 x 288 pixels
      (100, 3000), 16, 256   ->  (3, 85)

  Args:
    size: (height, width) in pixels.
    patch_size: Side of a patch in pixels.
    max_patches: 1 or more.
  """

  def count(scale):
    return [max(math.ceil(side * scale / patch_size), 1) for side in size]

  low, high = _STEP / 10, 100.0
  while high - low >= _STEP:
    middle = (low + high) / 2
    if math.prod(count(middle)) <= max_patches:
      low = middle
    else:
      high = middle
  rows, columns = count(low)
  return rows, columns


def patchify(
  image: Float32[np.ndarray, "H W 3"], patch_size: int, num_patches: int
) -> Patches:
  """Cuts an image into patches, row by row, and pads them with zeros.

  Args:
    image: In [-1, 1], of whole patches.
    patch_size: Side of a patch in pixels.
    num_patches: P, with padding.

  Returns:
    Patches, each with its pixels row by row; type, yidx and xidx.

  Raises:
    ValueError: The image is not of whole patches, or of too many.
  """
  height, width, _ = image.shape
  rows, columns = height // patch_size, width // patch_size
  if (rows * patch_size, columns * patch_size) != (height, width):
    raise ValueError(
      f"image of {height}x{width} pixels does not divide into patches of "
      f"{patch_size}x{patch_size}"
    )
  count = rows * columns
  if not 0 < count <= num_patches:
    raise ValueError(
      f"image of {height}x{width} pixels has {count} patches, expected 1 to "
      f"{num_patches}"
    )
  shape = rows, patch_size, columns, patch_size, 3
  cut = image.reshape(shape).swapaxes(1, 2).reshape(count, -1)
  patches = np.zeros((num_patches, cut.shape[1]), np.float32)
  patches[:count] = cut
  kind, y, x = np.zeros((3, num_patches), np.int32)
  kind[:count] = 1
  y[:count], x[:count] = np.divmod(np.arange(count), columns)
  return patches, kind, y, x


def join(
  patches: Float32[np.ndarray, "P Z"],
  kind: Int32[np.ndarray, " P"],
  y: Int32[np.ndarray, " P"],
  x: Int32[np.ndarray, " P"],
) -> Float32[np.ndarray, "H W 3"]:
  """Returns the image that `patchify` cut into these patches."""
  rows, columns, side = (
    y.max() + 1,
    x.max() + 1,
    math.isqrt(len(patches[0]) // 3),
  )
  cut = patches[kind == 1].reshape(rows, columns, side, side, 3)
  return cut.swapaxes(1, 2).reshape(rows * side, columns * side, 3)
