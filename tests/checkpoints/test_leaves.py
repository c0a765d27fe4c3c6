"""Leaves are put together, taken apart, cast and placed without reading all."""

import jax
import ml_dtypes
import numpy as np
import pytest

from paligemma.checkpoints import leaves
from paligemma.checkpoints.leaves import Leaf, Mapped, Piece
from paligemma.training import sharding

RNG = np.random.default_rng(0)
LAYERS = [RNG.normal(size=(7, 5)).astype(np.float32) for _ in range(3)]


class Recorded:
  """An array that remembers what of it was asked for."""

  def __init__(self, array):
    self.array, self.asked = array, []
    self.shape, self.dtype = array.shape, array.dtype

  def __getitem__(self, index):
    self.asked.append(index)
    return self.array[index]


def assembled(tensors):
  """float[3, 2, 5, 7]: per layer the tensor transposed, and its double."""
  pieces = []
  for i, tensor in enumerate(tensors):
    pieces.append(Piece((i, 0), tensor, lambda x: x.T))
    pieces.append(Piece((i, 1), tensor, lambda x: 2 * x.T))
  return Leaf((3, 2, 5, 7), np.dtype("float32"), tuple(pieces))


EXPECTED = np.stack([np.stack([x.T, 2 * x.T]) for x in LAYERS])


def test_pieces_make_a_leaf():
  np.testing.assert_array_equal(assembled(LAYERS).read(), EXPECTED)


def test_wide_pieces_are_copied_in_strips():
  wide = RNG.normal(size=(67, 3)).astype(np.float32)
  leaf = Leaf((3, 67), wide.dtype, (Piece((), wide, lambda x: x.T),))
  np.testing.assert_array_equal(leaf.read(np.float16), wide.T.astype("f2"))
  one = Leaf((), wide.dtype, (Piece((), wide, lambda x: x[5, 1]),))
  np.testing.assert_array_equal(one.read(), wide[5, 1])


def test_a_part_asks_only_for_its_pieces():
  tensors = [Recorded(x) for x in LAYERS]
  part = (slice(1, 2), slice(1, 2), slice(2, 5), slice(0, 3))
  found = assembled(tensors).read(index=part)
  np.testing.assert_array_equal(found, EXPECTED[part])
  assert [len(x.asked) for x in tensors] == [0, 1, 0]


def test_blocks_are_cast_one_at_a_time(monkeypatch):
  monkeypatch.setattr(leaves, "BLOCK_BYTES", 2 * 5 * 4)
  tensor = Recorded(LAYERS[0])
  found = Leaf.of(tensor).read(ml_dtypes.bfloat16)
  assert tensor.asked == [slice(0, 2), slice(2, 4), slice(4, 6), slice(6, 7)]
  np.testing.assert_array_equal(found, LAYERS[0].astype(ml_dtypes.bfloat16))


@pytest.mark.parametrize("shape", [(), (0, 3), (1,), (11, 3)])
def test_any_shape(shape):
  array = RNG.normal(size=shape).astype(np.float32)
  found = Leaf.of(array).read()
  assert found.shape == shape
  assert found.ctypes.data % 64 == 0 or not found.size
  np.testing.assert_array_equal(found, array)


@pytest.mark.parametrize("shape", [(), (0, 3), (11, 3)])
def test_mapped(tmp_path, shape):
  array = RNG.normal(size=shape).astype(ml_dtypes.bfloat16)
  (tmp_path / "a").write_bytes(b"12345" + array.tobytes())
  tensor = Mapped(tmp_path / "a", 5, shape, np.dtype(ml_dtypes.bfloat16))
  np.testing.assert_array_equal(tensor[...], array)
  np.testing.assert_array_equal(Leaf.of(tensor).read(), array)
  if shape:
    np.testing.assert_array_equal(tensor[1:4], array[1:4])


def test_a_leaf_is_placed_part_by_part():
  mesh = sharding.make_mesh(data=4, model=2)
  array = RNG.normal(size=(8, 6)).astype(np.float32)
  rows = jax.sharding.PartitionSpec("data", None)
  tensor = Recorded(array)
  where = jax.sharding.NamedSharding(mesh, rows)
  placed = leaves.place(Leaf.of(tensor), np.float16, where)
  np.testing.assert_array_equal(placed, array.astype(np.float16))
  assert placed.sharding == where
  # Two devices hold each part, which is read once.
  assert tensor.asked == [slice(i, i + 2) for i in range(0, 8, 2)]


def as_leaves(flat):
  return {name: Leaf.of(array) for name, array in flat.items()}


def stack(flat):
  return read(leaves.stack_layers(as_leaves(flat)))


def unstack(flat):
  return read(leaves.unstack_layers(as_leaves(flat)))


def read(found):
  return {name: leaf.read() for name, leaf in found.items()}


def loop_shapes(shapes):
  """Shapes of scan layout -> of loop layout, written down anew."""
  loop = {}
  for name, shape in shapes.items():
    if "/encoderblock/" in name:
      for i in range(shape[0]):
        loop[name.replace("/encoderblock/", f"/encoderblock_{i}/")] = shape[1:]
    elif "/layers/" in name:
      for i in range(shape[0]):
        loop[name.replace("/layers/", f"/layers/{i}/")] = shape[1:]
    else:
      loop[name] = shape
  return loop


def small(stacked_layers):
  rng = np.random.default_rng(0)
  shapes = {
    "img/Transformer/encoderblock/MlpBlock_0/Dense_0/bias": (11, 5),
    "img/Transformer/encoder_norm/bias": (5,),
    "llm/layers/mlp/linear": (2, 3, 7),
    "llm/final_norm/scale": (7,),
  }
  shapes = shapes if stacked_layers else loop_shapes(shapes)
  return {name: rng.normal(size=shape) for name, shape in shapes.items()}


def test_stack_orders_layers_by_number():
  loop = small(stacked_layers=False)
  stacked = stack(loop)
  name = "img/Transformer/encoderblock/MlpBlock_0/Dense_0/bias"
  for i in range(11):  # as text, layer 10 would come before layer 2
    np.testing.assert_array_equal(
      stacked[name][i],
      loop[f"img/Transformer/encoderblock_{i}/MlpBlock_0/Dense_0/bias"],
    )
  assert {n: x.shape for n, x in stacked.items()} == {
    n: x.shape for n, x in small(stacked_layers=True).items()
  }


@pytest.mark.parametrize("stacked", [True, False])
def test_stack_and_unstack_are_inverse(stacked):
  flat = small(stacked)
  there = unstack if stacked else stack
  back = stack if stacked else unstack
  found = back(there(flat))
  assert there(flat).keys() != flat.keys()
  assert found.keys() == flat.keys()
  for name in flat:
    np.testing.assert_array_equal(found[name], flat[name])


def test_a_layout_that_is_there_already_passes_through():
  assert stack(small(True)).keys() == small(True).keys()
  assert unstack(small(False)).keys() == small(False).keys()


def test_a_tower_alone_without_its_prefix():
  flat = {"Transformer/encoderblock_0/w": np.ones(3), "layers/0/w": np.ones(2)}
  stacked = stack(flat)
  assert {n: x.shape for n, x in stacked.items()} == {
    "Transformer/encoderblock/w": (1, 3),
    "layers/w": (1, 2),
  }


def test_layers_of_pieces_are_taken_apart():
  flat = {"llm/layers/w": assembled(LAYERS)}
  apart = read(leaves.unstack_layers(flat))
  assert list(apart) == [f"llm/layers/{i}/w" for i in range(3)]
  for i in range(3):
    np.testing.assert_array_equal(apart[f"llm/layers/{i}/w"], EXPECTED[i])
  again = leaves.stack_layers(leaves.unstack_layers(flat))
  np.testing.assert_array_equal(again["llm/layers/w"].read(), EXPECTED)


def test_layers_that_do_not_fit_together():
  odd = {"layers/0/w": np.ones(3), "layers/1/w": np.ones(2)}
  with pytest.raises(ValueError, match="layers/w: layers differ in shape"):
    stack(odd)
  gap = {"layers/0/w": np.ones(3), "layers/2/w": np.ones(3)}
  with pytest.raises(ValueError, match="layers/1/w: missing, there are 3"):
    stack(gap)
  both = {"layers/0/w": np.ones(3), "layers/w": np.ones((1, 3))}
  with pytest.raises(ValueError, match="layers/w: layers are stacked, and ap"):
    stack(both)
