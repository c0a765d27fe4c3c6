"""Arrays in the zarr files of Orbax and of JAX, read and written in part.

tensorstore does the work. An array is cut in chunks, each of them one file or
one value of a database (OCDBT), and whole chunks are read and written.
"""

import contextlib
import dataclasses
import itertools
import math
import os
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
import tensorstore as ts
from etils import epath

from paligemma.checkpoints import errors
from paligemma.checkpoints.leaves import BLOCK_BYTES, Leaf, check_dtype

# The largest chunk that is read, in elements: this multiple of its array (the
# last chunk may be cut), or this number.
_LARGEST_CHUNK = 16
_SMALL = 2**20


@dataclasses.dataclass(frozen=True, eq=False)
class Array:
  """An array in a file; a leaves.Tensor.

  Orbax by default writes one chunk per array or shard. Decoding it anew for
  every few rows would take hours, so a decoded chunk is kept until its last
  row, or a row of another chunk of the checkpoint, is read.

  Attributes:
    where: File and name, for errors.
    store: Open TensorStore.
    recent: (array, first row) -> decoded rows, at most one; shared by the
      arrays of a checkpoint.
  """

  where: str
  store: ts.TensorStore
  recent: dict[Any, np.ndarray]

  @property
  def shape(self) -> tuple[int, ...]:
    return self.store.shape

  @property
  def dtype(self) -> np.dtype:
    return self.store.dtype.numpy_dtype

  def __getitem__(self, index: Any) -> np.ndarray:
    if index is ... or not self.shape:
      return self._read(...)
    start, stop, step = index.indices(self.shape[0])
    assert step == 1, step
    rows = self.store.chunk_layout.read_chunk.shape[0]
    first = start - start % rows
    end = min(first + rows, self.shape[0])
    if stop > end or (start, stop) == (first, end):
      return self._read(slice(start, stop))
    if (self, first) not in self.recent:
      self.recent.clear()
      self.recent[self, first] = self._read(slice(first, end))
    kept = self.recent[self, first]
    if stop == end:
      self.recent.clear()
    return kept[start - first : stop - first]

  def _read(self, index):
    with one_line(self.where):
      return self.store[index].read().result()


def open_all(where: str, specs: Mapping[str, Mapping]) -> dict[str, Array]:
  """Opens arrays at once; reads only what their metadata says.

  Args:
    where: The checkpoint, for errors.
    specs: By name, what tensorstore opens.

  Raises:
    ValueError: An array is missing or its metadata unreadable; names the first.
  """
  opening = {}
  for name, spec in specs.items():
    with one_line(f"{where}: {name}"):
      opening[name] = ts.open(ts.Spec(dict(spec)), open=True, read=True)
  arrays = {}
  recent = {}
  for name, future in opening.items():
    with one_line(f"{where}: {name}"):
      store = future.result()
      arrays[name] = Array(f"{where}: {name}", store, recent)
      np.dtype(arrays[name].dtype)
      _check_chunks(store)
  return arrays


def _check_chunks(store):
  """Raises for chunks far larger than the array.

  tensorstore 0.1.86 allocates a whole chunk, and ends the process if there is
  no memory for it.
  """
  chunk = store.chunk_layout.read_chunk.shape
  if chunk and math.prod(chunk) > max(_LARGEST_CHUNK * store.size, _SMALL):
    raise ValueError(f"chunks of shape {chunk} in an array of {store.shape}")


def kvstore(folder: epath.PathLike) -> Any:
  """What tensorstore calls a folder: of this machine, or "gs://bucket/..."."""
  path = str(folder).rstrip("/") + "/"
  if "://" in path:
    return path
  return {"driver": "file", "path": f"{os.path.abspath(path)}/"}


@contextlib.contextmanager
def one_line(where: str) -> Iterator[None]:
  """Turns what is raised on a bad file into one ValueError of one line."""
  try:
    yield
  except errors.BAD_FILE as e:
    # tensorstore appends the whole spec: "NOT_FOUND: ... [tensorstore_spec=".
    reason = " ".join(str(e).partition(" [")[0].split()) or type(e).__name__
    raise ValueError(
      f"{where}: cannot be read, missing, corrupt or cut short ({reason})"
    ) from None


def write(folder: epath.PathLike, name: str, array: Any, dtype: Any) -> None:
  """Writes an array as zarr 3 with checksums, at most a block at a time.

  All processes call it. Each fetches and writes its shards of a jax.Array, one
  by one; other arrays are written by the first process.

  Args:
    folder: Made for this array.
    name: For errors.
    array: Leaf, jax.Array or np.ndarray.
    dtype: Cast to it; None: as it is.

  Raises:
    ValueError: A dtype that zarr cannot hold.
  """
  parts, part_shape = _parts(array)
  dtype = np.dtype(dtype or array.dtype)
  check_dtype(name, dtype)
  chunk = _chunk_shape(array.shape, part_shape, dtype.itemsize)
  grid = {"chunk_shape": chunk}
  store = ts.open(
    {
      "driver": "zarr3",
      "kvstore": kvstore(folder),
      "metadata": {
        "shape": array.shape,
        "data_type": dtype.name,
        "chunk_grid": {"name": "regular", "configuration": grid},
        "codecs": [
          {"name": "bytes", "configuration": {"endian": "little"}},
          {"name": "crc32c"},
        ],
      },
      # A chunk of zeros is written as well: one that is missing is an error.
      "store_data_equal_to_fill_value": True,
    },
    create=True,
    open=True,
  ).result()
  for offset, leaf in parts:
    for box in _boxes(leaf, chunk):
      place = tuple(
        slice(first + part.start, first + part.stop)
        for first, part in zip(offset, box, strict=True)
      )
      store[place].write(leaf.read(dtype, box)).result()


def _parts(array):
  """(Offset, Leaf) of what this process writes, and the shape of a shard."""
  if not isinstance(array, jax.Array):
    leaf = array if isinstance(array, Leaf) else Leaf.of(np.asarray(array))
    parts = [((0,) * len(leaf.shape), leaf)]
    return parts if jax.process_index() == 0 else [], leaf.shape
  parts = (
    (tuple(part.start or 0 for part in shard.index), _fetch(shard.data))
    for shard in array.addressable_shards
    if shard.replica_id == 0
  )
  return parts, array.sharding.shard_shape(array.shape)


def _fetch(data):
  # JAX caches the copy on the host in the array: here, in a temporary one.
  wrapper = jax.make_array_from_single_device_arrays(
    data.shape, data.sharding, [data]
  )
  return Leaf.of(np.asarray(wrapper))


def _chunk_shape(shape, part_shape, itemsize):
  """Cuts leading axes until chunks fit BLOCK_BYTES; none crosses a shard."""
  chunk = [max(size, 1) for size in part_shape]
  for axis, size in enumerate(part_shape):
    rest = math.prod(chunk[axis + 1 :]) * itemsize
    if rest * size <= BLOCK_BYTES:
      break
    rows = max(BLOCK_BYTES // rest, 1)
    if size != shape[axis]:
      rows = next(n for n in range(rows, 0, -1) if size % n == 0)
    chunk[axis] = rows
    if rows > 1:
      break
  return chunk


def _boxes(leaf: Leaf, chunk: list[int]) -> Iterator[tuple[slice, ...]]:
  """Cuts a leaf in boxes of whole chunks, reading no tensor of it twice."""
  apart = max((len(piece.at) for piece in leaf.pieces), default=0)
  if not any(piece.arrange for piece in leaf.pieces):
    apart += 1  # rows of a tensor can be read alone
  unit = chunk
  if all(size == 1 for size in chunk[:apart]):
    unit = [*chunk[:apart], *(max(size, 1) for size in leaf.shape[apart:])]
  starts = (range(0, n, m) for n, m in zip(leaf.shape, unit, strict=True))
  for corner in itertools.product(*starts):
    yield tuple(
      slice(start, min(start + m, n))
      for start, m, n in zip(corner, unit, leaf.shape, strict=True)
    )
