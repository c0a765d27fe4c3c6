"""Parameters of a checkpoint, read from its files when they are asked for.

A leaf has the name, shape and layout of our models; the tensors of the files
may be others. "llm/layers/mlp/gating_einsum" float[L, 2, D, F], for example, is
put together from 2 L tensors of Hugging Face, each of them float[F, D]:

    Piece(at=(3, 1), tensor=<model.layers.3.mlp.up_proj.weight>, arrange=.T)

says what lies at leaf[3, 1]. Nothing is read before `Leaf.read` or `place`, and
then only what is wanted of it, block by block, cast on the way: beside the
result there is never more than one block or one tensor of the file in memory.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import jax
import numpy as np
from etils import epath

from paligemma.checkpoints import layouts

# What is read and cast at a time, where a file can be read in part.
BLOCK_BYTES = 2**25
_STRIP = 32


class Tensor(Protocol):
  """What a file format gives: h5py, tensorstore and NumPy arrays fit as well.

  Slicing along the first axis, `tensor[start:stop]`, and `tensor[...]` return
  something that NumPy takes for an array.
  """

  shape: tuple[int, ...]
  dtype: np.dtype

  def __getitem__(self, index: Any) -> np.ndarray: ...


@dataclasses.dataclass(frozen=True)
class Mapped:
  """A tensor that lies uncompressed in a local file.

  It is mapped anew for each access and let go after it: pages that were read
  once would else count as memory of the process until the end.
  """

  path: epath.PathLike
  offset: int
  shape: tuple[int, ...]
  dtype: np.dtype

  def __getitem__(self, index: Any) -> np.ndarray:
    if 0 in self.shape:  # mmap refuses to map nothing
      return np.empty(self.shape, self.dtype)[index]
    # As a plain array: with np.memmap each slice costs ten times as much.
    mapped = np.memmap(self.path, np.uint8, "r", self.offset, self.nbytes)
    return np.asarray(mapped).view(self.dtype).reshape(self.shape)[index]

  @property
  def nbytes(self) -> int:
    return math.prod(self.shape) * self.dtype.itemsize


@dataclasses.dataclass(frozen=True)
class Piece:
  """One tensor at its place in a leaf.

  Attributes:
    at: Leading indices in the leaf; () is all of it.
    tensor: What lies there.
    arrange: Turns the axes of the tensor to those of the leaf by transposing,
      splitting or slicing (views, so that a part of it reads only a part of the
      file). Default: they agree.
  """

  at: tuple[int, ...]
  tensor: Tensor
  arrange: Callable[[np.ndarray], np.ndarray] | None = None

  def copy(self, out: np.ndarray, index: tuple[slice, ...]) -> None:
    """Casts leaf[at][index] into `out`."""
    if self.arrange is not None or not out.ndim:
      arrange = self.arrange or np.asarray
      source = arrange(np.asarray(self.tensor[...]))[index]
      columns = source.shape[-1] if source.ndim else 1
      # A transposed copy in strips stays in the cache: 2 to 3 times as fast.
      for start in range(0, columns, _STRIP):
        strip = (..., slice(start, start + _STRIP)) if source.ndim else ()
        out[strip] = source[strip]
      return
    rows, rest = index[0], index[1:]
    row_bytes = math.prod(self.tensor.shape[1:]) * self.tensor.dtype.itemsize
    count = max(BLOCK_BYTES // max(row_bytes, 1), 1)
    for start in range(rows.start, rows.stop, count):
      stop = min(start + count, rows.stop)
      block = np.asarray(self.tensor[start:stop])
      out[start - rows.start : stop - rows.start] = block[(slice(None), *rest)]


@dataclasses.dataclass(frozen=True)
class Leaf:
  """A parameter that has not been read yet.

  Attributes:
    shape: tuple of int.
    dtype: np.dtype of the file.
    pieces: What covers it, without gap or overlap.
  """

  shape: tuple[int, ...]
  dtype: np.dtype
  pieces: tuple[Piece, ...]

  @classmethod
  def of(cls, tensor: Tensor) -> "Leaf":
    """A leaf that is one tensor as it stands in the file."""
    return cls(
      tuple(tensor.shape), np.dtype(tensor.dtype), (Piece((), tensor),)
    )

  def read(
    self, dtype: Any = None, index: tuple[slice, ...] | None = None
  ) -> np.ndarray:
    """Reads the leaf, or a part of it.

    Args:
      dtype: Of the result, default that of the file.
      index: One slice per axis, with step 1. Default all.

    Returns:
      A new array, so aligned that JAX on a CPU takes it over without a copy.
    """
    index = tuple(
      slice(*part.indices(size)[:2])
      for part, size in zip(
        index or len(self.shape) * (slice(None),), self.shape, strict=True
      )
    )
    shape = tuple(part.stop - part.start for part in index)
    out = aligned_empty(shape, np.dtype(dtype or self.dtype))
    for piece in self.pieces:
      depth = len(piece.at)
      places = list(zip(piece.at, index[:depth], strict=True))
      if all(part.start <= i < part.stop for i, part in places):
        target = tuple(i - part.start for i, part in places)
        piece.copy(out[(*target, ...)], index[depth:])
    return out


def cast(leaf: Leaf, dtype: Any) -> Leaf:
  """The leaf in another dtype, which it is rounded to when it is read."""
  return Leaf.of(_Cast(leaf, np.dtype(dtype)))


@dataclasses.dataclass(frozen=True)
class _Cast:
  leaf: Leaf
  dtype: np.dtype

  @property
  def shape(self):
    return self.leaf.shape

  def __getitem__(self, index):
    if not isinstance(index, slice):
      return self.leaf.read(self.dtype)[index]
    every = (slice(None),) * (len(self.shape) - 1)
    return self.leaf.read(self.dtype, (index, *every))


def place(leaf: Leaf, dtype: Any, sharding: jax.sharding.Sharding) -> jax.Array:
  """Reads a leaf onto devices; each process reads only the parts of its own.

  Args:
    leaf: What to read.
    dtype: dtype of the result.
    sharding: Which part goes to which device.
  """
  parts = {}  # devices that hold the same part share one read

  def read(index):
    key = tuple((part.start, part.stop) for part in index)
    if key not in parts:
      parts[key] = leaf.read(dtype, index)
    return parts[key]

  return jax.make_array_from_callback(leaf.shape, sharding, read)


def stack_layers(leaves: Mapping[str, Leaf]) -> dict[str, Leaf]:
  """Loop layout to scan layout; names that are no layer's pass through.

  Raises:
    ValueError: A layer lacks a leaf that another one has, or shapes differ.
  """
  return layouts.stack(leaves, stack)


def unstack_layers(leaves: Mapping[str, Leaf]) -> dict[str, Leaf]:
  """Scan layout to loop layout, the inverse of `stack_layers`."""
  return layouts.unstack(leaves, _layer)


def layered_like(
  leaves: Mapping[str, Leaf], names: Iterable[str]
) -> dict[str, Leaf]:
  """Each tower in the layout that names have; stacked where they tell none."""
  found = stack_layers(leaves)
  for tower in ("img/", "llm/"):
    if any(n.startswith(tower) and layouts.split_layer(n) for n in names):
      ours = {n: found.pop(n) for n in list(found) if n.startswith(tower)}
      found |= unstack_layers(ours)
  return found


@dataclasses.dataclass(frozen=True)
class _Row:
  """tensor[i] of a tensor that holds all layers."""

  tensor: Tensor
  i: int

  @property
  def shape(self):
    return tuple(self.tensor.shape[1:])

  @property
  def dtype(self):
    return self.tensor.dtype

  def __getitem__(self, index):
    return np.asarray(self.tensor[self.i : self.i + 1])[0][index]


def stack(name: str, layers: list[Leaf]) -> Leaf:
  """One leaf of those of all layers; see layouts.stack_shapes."""
  shape = layouts.stack_shapes(name, [leaf.shape for leaf in layers])
  pieces = tuple(
    dataclasses.replace(piece, at=(i, *piece.at))
    for i, leaf in enumerate(layers)
    for piece in leaf.pieces
  )
  dtype = np.result_type(*{leaf.dtype for leaf in layers})
  return Leaf(shape, dtype, pieces)


def _layer(leaf: Leaf, i: int) -> Leaf:
  pieces = []
  for piece in leaf.pieces:
    if piece.at:
      if piece.at[0] == i:
        pieces.append(dataclasses.replace(piece, at=piece.at[1:]))
    else:
      assert piece.arrange is None, "arranged pieces lie within a layer"
      pieces.append(Piece((), _Row(piece.tensor, i)))
  return Leaf(leaf.shape[1:], leaf.dtype, tuple(pieces))


def aligned_empty(
  shape: tuple[int, ...], dtype: np.dtype, alignment: int = 64
) -> np.ndarray:
  """An array that JAX on a CPU takes over without a copy."""
  size = math.prod(shape) * dtype.itemsize
  buffer = np.empty(size + alignment, np.uint8)
  start = -buffer.ctypes.data % alignment
  return buffer[start : start + size].view(dtype).reshape(shape)
