"""Parameters of a checkpoint, read from its files when they are asked for.

A leaf has the name, shape and layout of our models; the tensors of the files
may be others. "llm/layers/mlp/gating_einsum" float[L, 2, D, F], for example, is
put together from 2 L tensors of Hugging Face, each of them float[F, D]:

    Piece(at=(3, 1), tensor=<model.layers.3.mlp.up_proj.weight>, arrange=.T)

says what leaf[3, 1] is. Nothing is read before `Leaf.read` or `place`, and
then only what is wanted of it, block by block, cast on the way: beside the
result there is never more than one block or one tensor of the file in memory.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from etils import epath

from paligemma import parameters
from paligemma.checkpoints import layouts

# How much is read and cast at a time, where a file can be read in part.
BLOCK_BYTES = 2**25
_STRIP = 32
_ALIGNMENT = 64  # bytes; JAX on a CPU copies arrays that are aligned to less


class Tensor(Protocol):
  """What a file format gives: h5py, tensorstore and NumPy arrays fit as well.

  `tensor[start:stop]` and `tensor[...]` return something that NumPy takes for
  an array.
  """

  shape: tuple[int, ...]
  dtype: np.dtype

  def __getitem__(self, index: Any) -> np.ndarray: ...


def nbytes(tensor: Tensor) -> int:
  return math.prod(tensor.shape) * tensor.dtype.itemsize


@dataclasses.dataclass(frozen=True)
class Computed:
  """A tensor that a function of the index computes whenever it is read."""

  shape: tuple[int, ...]
  dtype: np.dtype
  compute: Callable[[Any], np.ndarray]

  def __getitem__(self, index: Any) -> np.ndarray:
    return self.compute(index)


@dataclasses.dataclass(frozen=True)
class Mapped:
  """A tensor that is stored uncompressed in a local file.

  It is mapped for each access and unmapped after it: else pages that were read
  once count as memory of the process until its end.
  """

  path: epath.PathLike
  offset: int
  shape: tuple[int, ...]
  dtype: np.dtype

  def __getitem__(self, index: Any) -> np.ndarray:
    if 0 in self.shape:  # mmap refuses to map nothing
      return np.empty(self.shape, self.dtype)[index]
    # As a plain array: with np.memmap each slice costs ten times as much.
    mapped = np.memmap(self.path, np.uint8, "r", self.offset, nbytes(self))
    return np.asarray(mapped).view(self.dtype).reshape(self.shape)[index]


@dataclasses.dataclass(frozen=True)
class Piece:
  """A leaf, or what it is at some leading indices, as one tensor of a file.

  Attributes:
    at: The leading indices; () is all of the leaf.
    tensor: The tensor of the file.
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
    dtype: That of the file.
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
      index: A slice with step 1 for each leading axis. Default: all.

    Returns:
      A new array, which JAX on a CPU takes over without a copy.
    """
    index = tuple(
      slice(*part.indices(size)[:2])
      for part, size in itertools.zip_longest(
        index or (), self.shape, fillvalue=slice(None)
      )
    )
    shape = tuple(part.stop - part.start for part in index)
    out = aligned_empty(shape, np.dtype(dtype or self.dtype))
    for piece in self.pieces:
      depth = len(piece.at)
      leading = list(zip(piece.at, index[:depth], strict=True))
      if all(part.start <= i < part.stop for i, part in leading):
        target = tuple(i - part.start for i, part in leading)
        piece.copy(out[(*target, ...)], index[depth:])
    return out


def check_dtype(where: str, dtype: np.dtype) -> None:
  """Raises a ValueError for what no format can hold, such as objects."""
  if dtype.kind not in "fiub" and dtype != ml_dtypes.bfloat16:
    raise ValueError(
      f"{where}: dtype {dtype}, expected bfloat16 or a number of NumPy"
    )


def cast(leaf: Leaf, dtype: np.dtype) -> Leaf:
  """The leaf in another dtype, which it is rounded to when it is read."""

  def read(index):
    if isinstance(index, slice):
      return leaf.read(dtype, (index,))
    return leaf.read(dtype)[index]

  return Leaf.of(Computed(leaf.shape, dtype, read))


def place(leaf: Leaf, dtype: Any, sharding: jax.sharding.Sharding) -> jax.Array:
  """Reads a leaf onto devices; each process reads only what its own hold."""
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
  """Each tower in the layout of its names; stacked if none is a layer's."""
  found = stack_layers(leaves)
  for tower in (f"{name}/" for name in parameters.LAYERS):
    if any(n.startswith(tower) and layouts.split_layer(n) for n in names):
      ours = {n: found.pop(n) for n in list(found) if n.startswith(tower)}
      found |= unstack_layers(ours)
  return found


def row_of(tensor: Tensor, i: int) -> Computed:
  """tensor[i]."""
  return Computed(
    tuple(tensor.shape[1:]),
    tensor.dtype,
    lambda index: np.asarray(tensor[i : i + 1])[0][index],
  )


def stack(name: str, layers: list[Leaf]) -> Leaf:
  """One leaf of those of all layers; see layouts.stack_shapes."""
  shape = layouts.stack_shapes(name, [leaf.shape for leaf in layers])
  pieces = tuple(
    dataclasses.replace(piece, at=(i, *piece.at))
    for i, leaf in enumerate(layers)
    for piece in leaf.pieces
  )
  return Leaf(shape, common_dtype(layers), pieces)


def common_dtype(tensors: Iterable[Tensor | Leaf]) -> np.dtype:
  """The smallest dtype of all their numbers: float32 of 16 bits of two kinds.

  NumPy itself knows none for float16 and bfloat16.
  """
  return functools.reduce(jnp.promote_types, {x.dtype for x in tensors})


def _layer(leaf: Leaf, i: int) -> Leaf:
  pieces = []
  for piece in leaf.pieces:
    if piece.at:
      if piece.at[0] == i:
        pieces.append(dataclasses.replace(piece, at=piece.at[1:]))
    else:
      assert piece.arrange is None, "arranged pieces lie within a layer"
      pieces.append(Piece((), row_of(piece.tensor, i)))
  return Leaf(leaf.shape[1:], leaf.dtype, tuple(pieces))


def aligned_empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
  """An array that JAX on a CPU takes over without a copy."""
  size = math.prod(shape) * dtype.itemsize
  buffer = np.empty(size + _ALIGNMENT, np.uint8)
  start = -buffer.ctypes.data % _ALIGNMENT
  return buffer[start : start + size].view(dtype).reshape(shape)
