"""Position embeddings on other grids: by hand, and as big_vision does it."""

import itertools

import jax
import ml_dtypes
import numpy as np
import pytest
import scipy.ndimage

from paligemma.checkpoints import leaves
from paligemma.checkpoints.resample import resample
from tests.checkpoints.watched import Watched

WIDTH = 5


def embedding(side, width=WIDTH, dtype=np.float32):
  values = np.random.default_rng(side).normal(size=(1, side * side, width))
  return values.astype(dtype)


def reference(old, positions, mode="constant"):
  """The steps of big_vision's resample_posemb.

  It leaves `mode` at the default: what lies outside of the grid is 0. With
  "nearest" it is the edge, and only rounding leads outside.
  """
  side, new = round(old.shape[1] ** 0.5), round(positions**0.5)
  grid = old.reshape(side, side, -1)
  grid = scipy.ndimage.zoom(
    grid, (new / side, new / side, 1), order=1, mode=mode
  )
  return grid.reshape(1, positions, -1)


def test_worked_example():
  old = np.array([0, 2, 4, 6], np.float32).reshape(1, 4, 1)
  new = resample(leaves.Leaf.of(old), 9)
  assert new.shape == (1, 9, 1)
  np.testing.assert_array_equal(
    new.read()[0, :, 0], [0, 1, 2, 2, 3, 4, 4, 5, 6]
  )


def test_rows_and_columns_keep_their_order():
  old = np.arange(9, dtype=np.float32).reshape(1, 9, 1)
  new = resample(leaves.Leaf.of(old), 25).read()[0, :, 0].reshape(5, 5)
  np.testing.assert_allclose(new[0], [0, 0.5, 1, 1.5, 2])
  np.testing.assert_allclose(new[:, 0], [0, 1.5, 3, 4.5, 6])
  smaller = resample(leaves.Leaf.of(old), 4).read()[0, :, 0]
  np.testing.assert_array_equal(smaller, [0, 2, 6, 8])


PALIGEMMA = list(itertools.permutations([16, 32, 64], 2))


@pytest.mark.parametrize(
  ("old", "new"), [*PALIGEMMA, (3, 7), (7, 3), (1, 5), (5, 1), (16, 30)]
)
def test_equals_scipy(old, new):
  values = embedding(old)
  result = resample(leaves.Leaf.of(values), new * new).read()
  expected = reference(values, new * new, mode="nearest")
  np.testing.assert_allclose(result, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize(("old", "new"), PALIGEMMA)
def test_equals_big_vision_where_that_keeps_the_edge(old, new):
  values = np.random.default_rng(old).uniform(1, 2, (1, old * old, WIDTH))
  result = resample(leaves.Leaf.of(values), new * new).read()
  expected = reference(values, new * new)
  kept = expected != 0
  np.testing.assert_allclose(result[kept], expected[kept], rtol=0, atol=2e-6)
  lost = np.zeros((new, new), bool)
  if (old, new) == (32, 16):
    lost[-1, :] = lost[:, -1] = True
  np.testing.assert_array_equal(~kept[0, :, 0], lost.ravel())


def test_there_and_back_on_a_grid_that_contains_the_other():
  old = embedding(4)
  larger = resample(leaves.Leaf.of(old), 7 * 7)  # 6 steps for 3
  back = resample(larger, 4 * 4).read()
  np.testing.assert_allclose(back, old, rtol=0, atol=1e-6)


def test_equal_positions_give_the_leaf_itself():
  leaf = leaves.Leaf.of(np.zeros((1, 6, WIDTH), np.float32))  # even no square
  assert resample(leaf, 6) is leaf


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16])
def test_computed_in_float32_and_rounded_once(dtype):
  old = embedding(3, dtype=dtype)
  leaf = resample(leaves.Leaf.of(old), 49)
  assert leaf.dtype == dtype
  exact = resample(leaves.Leaf.of(old.astype(np.float32)), 49).read()
  np.testing.assert_array_equal(leaf.read(), exact.astype(dtype))
  (piece,) = leaf.pieces
  assert piece.tensor[...].dtype == dtype


def test_nothing_is_read_before_it_is_asked_for():
  values = embedding(3)
  tensor = Watched(values[0])
  piece = leaves.Piece((), tensor, lambda x: x[None])
  leaf = resample(leaves.Leaf(values.shape, values.dtype, (piece,)), 25)
  assert leaf.shape == (1, 25, WIDTH)
  assert len(tensor.read) == 0
  whole = resample(leaves.Leaf.of(values), 25).read()
  np.testing.assert_array_equal(leaf.read(), whole)
  assert len(tensor.read) == 1
  part = leaf.read(index=(slice(None), slice(3, 11), slice(1, 4)))
  np.testing.assert_array_equal(part, whole[:, 3:11, 1:4])


def test_placed_in_parts():
  values = embedding(3)
  leaf = resample(leaves.Leaf.of(values), 16)
  mesh = jax.make_mesh((8,), ("data",))
  sharding = jax.sharding.NamedSharding(
    mesh, jax.sharding.PartitionSpec(None, "data")
  )
  array = leaves.place(leaf, np.float32, sharding)
  np.testing.assert_array_equal(array, leaf.read())


@pytest.mark.parametrize(
  ("old", "new"), [(6, 9), (9, 6), (9, 0), (9, -4), (0, 4)]
)
def test_grids_that_are_not_square(old, new):
  leaf = leaves.Leaf.of(np.zeros((1, old, WIDTH), np.float32))
  with pytest.raises(
    ValueError,
    match=rf"^img/pos_embedding: cannot resample {old} positions to {new}: "
    "both must be squares",
  ):
    resample(leaf, new)


@pytest.mark.parametrize("shape", [(9, WIDTH), (2, 9, WIDTH)])
def test_not_a_position_embedding(shape):
  leaf = leaves.Leaf.of(np.zeros(shape, np.float32))
  with pytest.raises(ValueError, match=r"expected \(1, positions, width\)"):
    resample(leaf, 16)
