"""Matrices of a checkpoint that are quantized in its files, or when read.

They are quantized block by block along the first axis, the layers of a stack or
the rows of the vocabulary. No scale belongs to two of them, so the blocks give
what the whole would, and no more than one stands in memory in full precision.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from paligemma import quantization
from paligemma.checkpoints import leaves


@dataclasses.dataclass(frozen=True)
class Pair:
  """A matrix that is quantized in the files.

  Attributes:
    name: Of the matrix.
    kind: One of quantization.KINDS.
    values, scale: Leaves of its two arrays.
  """

  name: str
  kind: str
  values: leaves.Leaf
  scale: leaves.Leaf

  @property
  def shape(self) -> tuple[int, ...]:
    """Shape of the matrix in full precision."""
    return quantization.full_shape(self.kind, self.values)

  @property
  def dtype(self) -> np.dtype:
    return self.scale.dtype

  def read(self, dtype: Any = None, index: Any = None) -> np.ndarray:
    """Raises: full precision cannot be read from so few bits.

    Raises:
      ValueError: Always.
    """
    raise ValueError(
      f"{self.name}: is {self.kind} in the files, expected full precision; "
      f'keep it as it is with "{self.kind}", or read the checkpoint that it '
      "was made from"
    )


def kinds(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
  """Which matrices are quantized: name -> kind.

  Args:
    shapes: Name -> shape of every array.

  Raises:
    ValueError: One of the two arrays of a matrix is missing or of another
      shape, or the matrix is there twice.
  """
  parts = {}
  for name in shapes:
    if found := quantization.split(name):
      parts.setdefault(found[0], set()).add(found[1])
  return {
    matrix: _kind(matrix, sorted(found - {quantization.SCALE}), shapes)
    for matrix, found in parts.items()
  }


def _kind(matrix, found, shapes):
  scale = f"{matrix}/{quantization.SCALE}"
  if not found:
    raise ValueError(
      f"{scale}: has no values beside it, expected {matrix}/ and one of: "
      f"{', '.join(quantization.KINDS)}"
    )
  forms = found + ["full precision"] * (matrix in shapes)
  if len(forms) > 1:
    raise ValueError(
      f"{matrix}: is there as {' and as '.join(forms)}, expected one of them"
    )
  (kind,) = found
  if scale not in shapes:
    raise ValueError(f"{scale}: missing, {matrix}/{kind} is nothing without it")
  shape = shapes[f"{matrix}/{kind}"]
  if len(shape) < -min(quantization.summed_axes(matrix)) or 0 in shape:
    raise ValueError(f"{matrix}/{kind}: shape {shape}, which no matrix has")
  full = quantization.full_shape(kind, shape)
  expected = quantization.shapes(matrix, full, kind)[quantization.SCALE].shape
  if shapes[scale] != expected:
    raise ValueError(
      f"{scale}: shape {shapes[scale]}, expected {expected} beside {kind} "
      f"{shape}"
    )
  return kind


def full_shapes(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
  """Name -> shape of every parameter as it was before any was quantized.

  Args:
    shapes: As in `kinds`, which raises what is wrong with them.
  """
  full = {n: shape for n, shape in shapes.items() if not quantization.split(n)}
  return full | {
    matrix: quantization.full_shape(kind, shapes[f"{matrix}/{kind}"])
    for matrix, kind in kinds(shapes).items()
  }


def paired(found: Mapping[str, leaves.Leaf]) -> dict[str, leaves.Leaf | Pair]:
  """One leaf per parameter: a Pair where it is quantized.

  Args:
    found: Name -> leaf of every array.

  Raises:
    ValueError: As `kinds`, and for arrays of another dtype.
  """
  joined = {n: leaf for n, leaf in found.items() if not quantization.split(n)}
  for name, kind in kinds({n: x.shape for n, x in found.items()}).items():
    pair = Pair(
      name, kind, found[f"{name}/{kind}"], found[f"{name}/{quantization.SCALE}"]
    )
    for part, like in quantization.shapes(name, pair.shape, kind).items():
      if found[f"{name}/{part}"].dtype != like.dtype:
        raise ValueError(
          f"{name}/{part}: dtype {found[f'{name}/{part}'].dtype}, expected "
          f"{like.dtype}"
        )
    joined[name] = pair
  return joined


def storage(
  parameters: Mapping[str, Any],
  dtypes: Mapping[str, Any],
  kind: str | None,
) -> dict[str, jax.ShapeDtypeStruct]:
  """Names, shapes and dtypes of the arrays that parameters are kept in.

  Args:
    parameters: Name -> Leaf, Pair or anything with a `shape`.
    dtypes: Name -> dtype of what is not quantized.
    kind: One of quantization.KINDS, of the model, see quantization.kind_for;
      None: those that are a Pair stay one.

  Raises:
    ValueError: `kind` is not what a Pair is, or as quantization.shapes.
  """
  arrays = {}
  for name, leaf in parameters.items():
    of_this = kind and quantization.kind_for(name, kind)
    if isinstance(leaf, Pair):
      _check_kind(leaf, kind)
      of_this = leaf.kind
    if of_this is None:
      arrays[name] = jax.ShapeDtypeStruct(leaf.shape, dtypes[name])
      continue
    for part, array in quantization.shapes(name, leaf.shape, of_this).items():
      arrays[f"{name}/{part}"] = array
  return arrays


def each_array(
  found: Mapping[str, Any], kind: str | None
) -> Iterator[tuple[str, Any]]:
  """Yields the arrays that parameters are written as, quantized one by one.

  Args:
    found: Name -> Leaf, Pair or array.
    kind: As in `storage`; then all but the Pairs are leaves.

  Raises:
    ValueError: As `storage`.
  """
  for name, leaf in found.items():
    if isinstance(leaf, Pair):
      _check_kind(leaf, kind)
      yield f"{name}/{leaf.kind}", leaf.values
      yield f"{name}/{quantization.SCALE}", leaf.scale
    elif kind and (of_this := quantization.kind_for(name, kind)):
      for part, array in read(name, leaf, of_this).items():
        yield f"{name}/{part}", array
    else:
      yield name, leaf


def rounded(found: Mapping[str, Any], kind: str) -> dict[str, Any]:
  """The leaves of a checkpoint, quantized when they are read.

  Args:
    found: Name -> leaf of every array.
    kind: One of quantization.KINDS, of the model, see quantization.kind_for.

  Returns:
    Name -> leaf, two for every matrix; those that are there already stay.

  Raises:
    ValueError: As quantization.shapes.
  """
  read_last = {}
  leaves_of = {}
  for name, leaf in found.items():
    of_this = quantization.kind_for(name, kind)
    if of_this is None:
      leaves_of[name] = leaf
      continue
    for part, like in quantization.shapes(name, leaf.shape, of_this).items():
      dtype = np.dtype(like.dtype)
      tensor = _Rounded(name, leaf, of_this, part, like.shape, dtype, read_last)
      leaves_of[f"{name}/{part}"] = leaves.Leaf.of(tensor)
  return leaves_of


@dataclasses.dataclass(frozen=True)
class _Rounded:
  """Values or scale of a matrix, which is quantized when either is read.

  Attributes:
    name, leaf, kind: As in `read`.
    part: Name of the array.
    shape, dtype: Of the array.
    read_last: Name -> both arrays, of the matrix that was read last.
  """

  name: str
  leaf: leaves.Leaf
  kind: str
  part: str
  shape: tuple[int, ...]
  dtype: np.dtype
  read_last: dict[str, Mapping[str, np.ndarray]]

  def __getitem__(self, index: Any) -> np.ndarray:
    if self.name not in self.read_last:
      self.read_last.clear()
      self.read_last[self.name] = read(self.name, self.leaf, self.kind)
    return self.read_last[self.name][self.part][index]


def restored(arrays: Mapping[str, Any]) -> dict[str, Any]:
  """Every parameter in full precision, dequantized when it is read.

  Args:
    arrays: Name -> Leaf, Pair or array; the two arrays of a matrix, or a Pair.

  Returns:
    Name -> Leaf or array, of float32 where it is quantized.
  """
  whole, pairs, parts = {}, {}, {}
  for name, array in arrays.items():
    if isinstance(array, Pair):
      pairs[name] = array
    elif quantization.split(name):
      parts[name] = leaves.Leaf.of(array)
    else:
      whole[name] = array
  pairs |= paired(parts)
  return whole | {n: leaves.Leaf.of(_Restored(x)) for n, x in pairs.items()}


@dataclasses.dataclass(frozen=True)
class _Restored:
  """A matrix that is dequantized when it is read."""

  pair: Pair

  @property
  def shape(self) -> tuple[int, ...]:
    return self.pair.shape

  @property
  def dtype(self) -> np.dtype:
    return np.dtype(np.float32)

  def __getitem__(self, index: Any) -> np.ndarray:
    rows = slice(None)
    if isinstance(index, slice) and _shares_no_scale(self.pair.name, self.pair):
      rows, index = index, slice(None)
    every = (slice(None),) * (len(self.shape) - 1)
    both = {
      self.pair.kind: self.pair.values.read(index=(rows, *every)),
      quantization.SCALE: self.pair.scale.read(index=(rows, *every)),
    }
    return np.asarray(quantization.dequantize(both, np.float32))[index]


def place_all(
  found: Mapping[str, leaves.Leaf | Pair],
  arrays: Mapping[str, jax.ShapeDtypeStruct],
) -> dict[str, jax.Array]:
  """Reads parameters onto devices, one at a time.

  Args:
    found: Name -> leaf.
    arrays: Name -> what to make, with its sharding, see `storage`.

  Returns:
    Name -> array, of the names of `arrays`.
  """
  placed = {}
  for name, leaf in found.items():
    if like := arrays.get(name):
      placed[name] = leaves.place(leaf, like.dtype, like.sharding)
      continue
    (kind,) = (k for k in quantization.KINDS if f"{name}/{k}" in arrays)
    values, scale = (arrays[f"{name}/{part}"] for part in (kind, "scale"))
    both = place(name, leaf, kind, values, scale)
    placed |= {f"{name}/{part}": array for part, array in both.items()}
  return placed


def place(
  name: str,
  leaf: leaves.Leaf | Pair,
  kind: str,
  values: jax.ShapeDtypeStruct,
  scale: jax.ShapeDtypeStruct,
) -> dict[str, jax.Array]:
  """Quantizes a matrix onto devices; each process reads all of it.

  Args:
    name: Of the parameter.
    leaf: What to read. A Pair is placed as it is.
    kind: One of quantization.KINDS.
    values, scale: Shape, dtype and sharding of the two arrays.

  Returns:
    {kind: values, "scale": scale}.

  Raises:
    ValueError: A Pair of another kind, or as quantization.shapes.
  """
  like = {kind: values, quantization.SCALE: scale}
  if isinstance(leaf, Pair):
    _check_kind(leaf, kind)
    both = {kind: leaf.values, quantization.SCALE: leaf.scale}
    return {
      part: leaves.place(both[part], x.dtype, x.sharding)
      for part, x in like.items()
    }
  both = read(name, leaf, kind)
  return {
    part: jax.make_array_from_callback(
      x.shape, x.sharding, both[part].__getitem__
    )
    for part, x in like.items()
  }


def read(name: str, leaf: leaves.Leaf, kind: str) -> dict[str, np.ndarray]:
  """Reads and quantizes a matrix: {kind: values, "scale": float32}.

  Args:
    name, leaf, kind: As in `place`.

  Returns:
    New arrays, so aligned that JAX on a CPU takes them over without a copy.
  """
  both = {
    part: leaves.aligned_empty(x.shape, np.dtype(x.dtype))
    for part, x in quantization.shapes(name, leaf.shape, kind).items()
  }
  for rows in blocks(name, leaf):
    every = (slice(None),) * (len(leaf.shape) - 1)
    block = leaf.read(index=(rows, *every))
    for part, array in quantization.quantize(name, block, kind).items():
      both[part][rows] = array
  return both


def blocks(name: str, leaf: leaves.Leaf) -> Iterator[slice]:
  """Rows of a matrix that share no scale with others, few at a time."""
  rows = leaf.shape[0]
  count = rows  # of those that share scales: all
  if _shares_no_scale(name, leaf):
    row_bytes = math.prod(leaf.shape[1:]) * leaf.dtype.itemsize
    count = max(leaves.BLOCK_BYTES // row_bytes, 1)
  for start in range(0, rows, count):
    yield slice(start, min(start + count, rows))


def _shares_no_scale(name, leaf):
  """Whether the first axis is of layers or of the vocabulary."""
  return -len(leaf.shape) not in quantization.summed_axes(name)


def _check_kind(pair, kind):
  if kind not in (None, pair.kind):
    of_this = quantization.kind_for(pair.name, kind)
    if pair.kind != of_this:
      raise ValueError(
        f"{pair.name}: is {pair.kind} in the files, expected {of_this} or full "
        f'precision; to round it once more would lose twice, give "{pair.kind}"'
        " or read the checkpoint that it was made from"
      )
