"""Images of any aspect ratio as patches."""

import math

import numpy as np
import pytest

from paligemma.data import naflex


def largest(size, patch, most):
  """By trying all scales at which the number of patches changes."""
  best = None
  for side in size:
    for count in range(1, most + 1):
      scale = count * patch / side
      grid = [max(math.ceil(x * scale / patch - 1e-9), 1) for x in size]
      if math.prod(grid) <= most and (best is None or scale > best[0]):
        best = scale, tuple(grid)
  return best[1]


@pytest.mark.parametrize("patch", [14, 16])
def test_as_large_as_it_can_be(patch):
  rng = np.random.default_rng(0)
  for _ in range(50):
    size = tuple(rng.integers(20, 2000, 2).tolist())
    most = int(rng.integers(4, 300))
    found = naflex.grid(size, patch, most)
    assert found == largest(size, patch, most)
    assert math.prod(found) <= most


@pytest.mark.parametrize(
  ("size", "expected"),
  [
    ((256, 256), (16, 16)),
    ((480, 640), (14, 18)),
    ((100, 3000), (3, 85)),
    ((1, 5000), (1, 256)),
    ((1, 1), (7, 7)),  # not more than 100 times as large
  ],
)
def test_examples(size, expected):
  assert naflex.grid(size, 16, 256) == expected


def test_patches_in_order_then_padding():
  image = np.arange(4 * 6 * 3, dtype=np.float32).reshape(4, 6, 3)
  patches, kind, y, x = naflex.patchify(image, 2, 8)
  assert patches.shape == (8, 12) and patches.dtype == np.float32
  for i in range(6):
    row, column = divmod(i, 3)
    expected = image[2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
    np.testing.assert_array_equal(patches[i], expected.ravel())
  assert kind.tolist() == [1] * 6 + [0] * 2
  assert y.tolist() == [0, 0, 0, 1, 1, 1, 0, 0]
  assert x.tolist() == [0, 1, 2, 0, 1, 2, 0, 0]
  assert not patches[6:].any() and kind.dtype == np.int32


def test_what_cannot_be_patched():
  with pytest.raises(ValueError, match="4x5 pixels does not divide into pat"):
    naflex.patchify(np.zeros((4, 5, 3), np.float32), 2, 8)
  with pytest.raises(ValueError, match="has 9 patches, expected 1 to 8"):
    naflex.patchify(np.zeros((6, 6, 3), np.float32), 2, 8)
