"""The position embedding of another resolution, smaller or larger."""

import math

import numpy as np

from paligemma.checkpoints.leaves import Computed, Leaf
from paligemma.parameters import POSITIONS


def resample(leaf: Leaf, positions: int) -> Leaf:
  """Returns a position embedding on another square grid, computed when read.

  Linear between the nearest four positions; the corners of both grids coincide,
  so that 2 x 2 becomes 3 x 3 with its old values in the corners:

      0 2      0 1 2
      4 6  ->  2 3 4
               4 5 6

  Args:
    leaf: float[1, P, D], P = h * h positions row by row: 256, 1024 and 4096 at
      224, 448 and 896 pixels.
    positions: Number of positions wanted, a square too.

  Returns:
    Leaf float[1, positions, D] of the same dtype, computed in float32; `leaf`
    itself if it has as many positions.

  Raises:
    ValueError: Not a position embedding, or one of the grids is not square.

  Source: big_vision, models/vit.py, resample_posemb: scipy.ndimage.zoom of
  order 1. Differs where that rounds the last coordinate to beyond the grid and
  takes zeros for the last row and column: 448 to 224 pixels (32 to 16 patches)
  with scipy 1.17; from and to 896, and from 224 to 448, they agree.
  """
  if len(leaf.shape) != 3 or leaf.shape[0] != 1:
    raise ValueError(
      f"{POSITIONS}: found shape {leaf.shape}, expected (1, positions, width)"
    )
  if leaf.shape[1] == positions:
    return leaf
  old, new = math.isqrt(leaf.shape[1]), math.isqrt(max(positions, 0))
  if (old * old, new * new) != (leaf.shape[1], positions) or 0 in (old, new):
    raise ValueError(
      f"{POSITIONS}: cannot resample {leaf.shape[1]} positions to "
      f"{positions}: both must be squares; load at the resolution of the file, "
      "or at one that gives as many patches in height as in width"
    )
  weights = _weights(old, new)
  shape = (1, positions, leaf.shape[2])

  def compute(index):
    grid = leaf.read(np.float32).reshape(old, -1)
    rows = (weights @ grid).reshape(new, old, -1)
    return (weights @ rows).reshape(shape).astype(leaf.dtype)[index]

  return Leaf.of(Computed(shape, leaf.dtype, compute))


def _weights(old: int, new: int) -> np.ndarray:
  """float32[new, old]: the weight of each old position in each new one."""
  position = np.linspace(0, old - 1, new)[:, None]
  distance = np.abs(position - np.arange(old))
  return np.maximum(0, 1 - distance).astype(np.float32)
