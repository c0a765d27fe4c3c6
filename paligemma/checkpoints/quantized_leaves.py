"""How parameters are stored: their dtypes, and which matrices are quantized.

Matrices are quantized block by block along the first axis, the layers of a
stack or the rows of the vocabulary. No scale belongs to two of them, so blocks
give the same as the whole, and only one is in memory in full precision.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from paligemma import parameters, quantization
from paligemma.checkpoints import leaves, stated_fields

# What frozen parameters may be held in.
HELD_IN = dict.fromkeys((*stated_fields.DTYPES, *quantization.KINDS))


@dataclasses.dataclass(frozen=True)
class Pair:
  """A matrix that is quantized in the files.

  Attributes:
    name: Of the matrix.
    kind: One of quantization.KINDS.
    arrays: {kind: values, "scale": scale}.
  """

  name: str
  kind: str
  arrays: Mapping[str, leaves.Leaf]

  @property
  def shape(self) -> tuple[int, ...]:
    """Shape of the matrix in full precision."""
    return quantization.full_shape(self.kind, self.arrays[self.kind])

  @property
  def dtype(self) -> np.dtype:
    return self.arrays[quantization.SCALE].dtype

  def read(self, dtype: Any = None, index: Any = None) -> np.ndarray:
    """Raises a ValueError: full precision cannot be read from so few bits."""
    raise ValueError(
      f"{self.name}: is {self.kind} in the files, expected full precision; "
      f'keep it as it is with "{self.kind}", or read the checkpoint that it '
      "was made from"
    )


def kinds(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
  """Which matrices are quantized: name -> kind.

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
  """Name -> shape of every parameter in full precision; errors as `kinds`."""
  full = {n: shape for n, shape in shapes.items() if not quantization.split(n)}
  return full | {
    matrix: quantization.full_shape(kind, shapes[f"{matrix}/{kind}"])
    for matrix, kind in kinds(shapes).items()
  }


def paired(found: Mapping[str, leaves.Leaf]) -> dict[str, leaves.Leaf | Pair]:
  """One leaf per parameter: a Pair where it is quantized.

  Raises:
    ValueError: As `kinds`, and for arrays of another dtype.
  """
  joined = {n: leaf for n, leaf in found.items() if not quantization.split(n)}
  for name, kind in kinds({n: x.shape for n, x in found.items()}).items():
    names = {part: f"{name}/{part}" for part in (kind, quantization.SCALE)}
    pair = Pair(name, kind, {part: found[n] for part, n in names.items()})
    for part, like in quantization.shapes(name, pair.shape, kind).items():
      if pair.arrays[part].dtype != like.dtype:
        raise ValueError(
          f"{names[part]}: dtype {pair.arrays[part].dtype}, expected "
          f"{like.dtype}"
        )
    joined[name] = pair
  return joined


def storage_dtypes(names: Iterable[str], dtype: Any) -> dict[str, np.dtype]:
  """Name -> dtype: float32 where parameters.stays_float32, else `dtype`."""
  return {
    name: jnp.dtype("float32" if parameters.stays_float32(name) else dtype)
    for name in names
  }


def storage(
  found: Mapping[str, Any], dtypes: Mapping[str, Any], kind: str | None
) -> dict[str, jax.ShapeDtypeStruct]:
  """Names, shapes and dtypes of the arrays that parameters are kept in.

  Args:
    found: Name -> Leaf, Pair or anything with a `shape`.
    dtypes: Name -> dtype of what is not quantized.
    kind: One of quantization.KINDS, of the model, see quantization.kind_for;
      None: those that are a Pair stay one.

  Raises:
    ValueError: A Pair is of another kind, or as quantization.shapes.
  """
  arrays = {}
  for name, leaf in found.items():
    stored = _stored_kind(name, leaf, kind)
    if stored is None:
      arrays[name] = jax.ShapeDtypeStruct(leaf.shape, dtypes[name])
      continue
    for part, array in quantization.shapes(name, leaf.shape, stored).items():
      arrays[f"{name}/{part}"] = array
  return arrays


def each_array(
  found: Mapping[str, Any], kind: str | None
) -> Iterator[tuple[str, Any]]:
  """Yields the arrays of `storage`, quantized one by one.

  Args:
    found: Name -> Leaf or Pair; without `kind` also arrays.
    kind: As in `storage`, with its errors.
  """
  for name, leaf in found.items():
    stored = _stored_kind(name, leaf, kind)
    if stored is None:
      yield name, leaf
      continue
    is_pair = isinstance(leaf, Pair)
    both = leaf.arrays if is_pair else read(name, leaf, stored)
    for part, array in both.items():
      yield f"{name}/{part}", array


def _stored_kind(name, leaf, kind):
  """The kind in which a parameter is stored, None for full precision."""
  wanted = quantization.kind_for(name, kind) if kind else None
  if not isinstance(leaf, Pair):
    return wanted
  if kind and leaf.kind not in (kind, wanted):
    raise ValueError(
      f"{name}: is {leaf.kind} in the files, expected {wanted} or full "
      f'precision; to round it once more would lose twice, give "{leaf.kind}"'
      " or read the checkpoint that it was made from"
    )
  return leaf.kind


def rounded(
  found: Mapping[str, leaves.Leaf], kind: str
) -> dict[str, leaves.Leaf]:
  """Leaves of the arrays of `storage`, quantized when they are read.

  Args:
    found: Name -> leaf of every array; quantized ones stay.
    kind: As in `storage`, with the errors of quantization.shapes.
  """
  last_read = {}  # name -> both arrays, of one matrix

  def array_of(name, part, like, stored):
    def compute(index):
      if name not in last_read:
        last_read.clear()
        last_read[name] = read(name, found[name], stored)
      return last_read[name][part][index]

    tensor = leaves.Computed(like.shape, np.dtype(like.dtype), compute)
    return leaves.Leaf.of(tensor)

  arrays = {}
  for name, leaf in found.items():
    stored = quantization.kind_for(name, kind)
    if stored is None:
      arrays[name] = leaf
      continue
    for part, like in quantization.shapes(name, leaf.shape, stored).items():
      arrays[f"{name}/{part}"] = array_of(name, part, like, stored)
  return arrays


def restored(arrays: Mapping[str, Any]) -> dict[str, Any]:
  """Every parameter in full precision, dequantized when it is read.

  Args:
    arrays: Name -> Leaf, Pair or array; the two arrays of a matrix, or a Pair.
  """
  joined = paired(
    {
      name: leaves.Leaf.of(x)
      if quantization.split(name) and not isinstance(x, leaves.Leaf)
      else x
      for name, x in arrays.items()
    }
  )
  return {
    name: _dequantized(x) if isinstance(x, Pair) else x
    for name, x in joined.items()
  }


def _dequantized(pair):
  def compute(index):
    rows = slice(None)
    if isinstance(index, slice) and _shares_no_scale(pair.name, pair):
      rows, index = index, slice(None)
    both = {
      part: leaf.read(index=(rows,)) for part, leaf in pair.arrays.items()
    }
    return np.asarray(quantization.dequantize(both, np.float32))[index]

  return leaves.Leaf.of(
    leaves.Computed(pair.shape, np.dtype(np.float32), compute)
  )


def place_all(
  found: Mapping[str, leaves.Leaf | Pair],
  arrays: Mapping[str, jax.ShapeDtypeStruct],
  *,
  progress: Callable[[int, int], None] | None = None,
) -> dict[str, jax.Array]:
  """Reads parameters onto devices, one at a time.

  Of a matrix that is quantized here, each process reads all.

  Args:
    found: Name -> leaf.
    arrays: What `storage` returned, with shardings.
    progress: Called with the number of bytes placed so far, and that of all.

  Raises:
    ValueError: As `storage`.
  """
  total = sum(math.prod(x.shape) * x.dtype.itemsize for x in arrays.values())
  progress = progress or (lambda done, total: None)
  progress(0, total)
  placed, done = {}, 0
  for name, array in _each_placed(found, arrays):
    placed[name] = array
    progress(done := done + array.nbytes, total)
  return placed


def _each_placed(found, arrays):
  for name, leaf in found.items():
    if like := arrays.get(name):
      yield name, leaves.place(leaf, like.dtype, like.sharding)
      continue
    (kind,) = (k for k in quantization.KINDS if f"{name}/{k}" in arrays)
    for array_name, array in each_array({name: leaf}, kind):
      like = arrays[array_name]
      if isinstance(array, leaves.Leaf):
        yield array_name, leaves.place(array, like.dtype, like.sharding)
      else:
        yield (
          array_name,
          jax.make_array_from_callback(
            like.shape, like.sharding, array.__getitem__
          ),
        )


def read(name: str, leaf: leaves.Leaf, kind: str) -> dict[str, np.ndarray]:
  """Reads and quantizes a matrix: {kind: values, "scale": float32}.

  Returns:
    New arrays, which JAX on a CPU takes over without a copy.
  """
  both = {
    part: leaves.aligned_empty(x.shape, np.dtype(x.dtype))
    for part, x in quantization.shapes(name, leaf.shape, kind).items()
  }
  for rows in blocks(name, leaf):
    block = leaf.read(index=(rows,))
    for part, array in quantization.quantize(name, block, kind).items():
      both[part][rows] = array
  return both


def blocks(name: str, leaf: leaves.Leaf) -> Iterator[slice]:
  """Slices of rows that share no scale with other rows, one block each."""
  rows = count = leaf.shape[0]
  if _shares_no_scale(name, leaf):
    row_bytes = math.prod(leaf.shape[1:]) * leaf.dtype.itemsize
    count = max(leaves.BLOCK_BYTES // row_bytes, 1)
  for start in range(0, rows, count):
    yield slice(start, min(start + count, rows))


def _shares_no_scale(name, leaf):
  """Whether no two rows share a scale: they are layers or tokens."""
  return -len(leaf.shape) not in quantization.summed_axes(name)
