"""Parameters in one .npz file with big_vision's names.

A path may end in the sub-tree that is wanted: "siglip.npz:img" gives what lies
under "img/", without that prefix.

What arrays cannot tell, see stated_fields.py, is in the comment of the zip
file, which NumPy and big_vision ignore.
"""

import contextlib
import dataclasses
import functools
import hashlib
import math
import os
import re
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Generator, Iterable, Mapping
from typing import Any

import ml_dtypes
import numpy as np
from etils import epath

from paligemma import disk, quantization, registry, tree
from paligemma.checkpoints import errors, stated_fields
from paligemma.checkpoints.checkpoint import Checkpoint
from paligemma.checkpoints.leaves import (
  BLOCK_BYTES,
  Computed,
  Leaf,
  Mapped,
  Tensor,
  check_dtype,
)

# In front of the settings in the comment, which others may use as they like.
_COMMENT = b"paligemma "

_PATH = re.compile(r"(?P<file>.*?)(:(?P<subtree>\w[\w/]*))?")
# What zipfile, zlib and NumPy raise on bad files, beside ValueErrors.
_CORRUPT = (
  *errors.BAD_FILE,
  EOFError,
  SyntaxError,
  struct.error,
  zipfile.BadZipFile,
  tokenize.TokenError,
  zlib.error,
)


def open(path: epath.PathLike) -> Checkpoint:
  """Opens a file; reads only its headers.

  Args:
    path: File, with or without ":sub/tree"; whatever etils.epath opens. The
      names may carry big_vision's prefix "params/", and then only those that do
      are read (its training checkpoints also hold "opt/...").

  Returns:
    Checkpoint of the names without "params/". Void of two bytes, as which NumPy
    stores bfloat16, becomes ml_dtypes.bfloat16. Arrays of numpy.savez in a
    local file are mapped to memory when they are read; those of
    savez_compressed or of remote files are read as a stream. Both are checked
    against their CRC-32; reading a damaged one is a ValueError.

  Raises:
    ValueError: No such file, damaged, nothing under the sub-tree, or pickled:
      to unpickle would run code from the file.
  """
  found = {}
  with _open(path) as (archive, members):
    for name, member in members.items():
      with _one_line(path, name):
        found[name] = Leaf.of(_tensor(path, name, archive, member))
    stated = {}
    if archive.comment.startswith(_COMMENT):
      with _one_line(path, "comment"):
        stated = stated_fields.parse(archive.comment[len(_COMMENT) :].decode())
  return Checkpoint(
    path=str(path), format="big_vision npz", leaves=found, **stated
  )


def load(path: epath.PathLike) -> dict[str, np.ndarray]:
  """Reads all arrays: name -> array; path and errors as in `open`."""
  return {name: leaf.read() for name, leaf in open(path).leaves.items()}


def fingerprint(path: epath.PathLike) -> str:
  """Names the contents of what `load` returns, without reading the data.

  Returns:
    "sha256:..." over the sorted (name, CRC-32, size) of the zip directory. It
    does not depend on the order in the file, its dates or the "params/" prefix.
  """
  with _open(path) as (_, members):
    entries = sorted((n, m.CRC, m.file_size) for n, m in members.items())
  return f"sha256:{hashlib.sha256(repr(entries).encode()).hexdigest()}"


def save(
  path: epath.PathLike,
  flat: Mapping[str, Any] | Iterable[tuple[str, Any]],
  dtype: Any = None,
  **stated: Any,
) -> None:
  """Writes arrays under big_vision's names, "params/" in front.

  Arrays are fetched, cast and written one at a time, and the file is created or
  replaced when it is complete. With several processes let one of them write.

  Args:
    path: File to write; its folder is made.
    flat: Name -> Leaf, jax.Array or np.ndarray, or pairs of them.
    dtype: Cast every array to it but those of quantized matrices, default as
      they are. bfloat16 is stored as void of two bytes, as big_vision does and
      reads.
    **stated: img, llm, metadata and compute_dtype of the Checkpoint, as far as
      JSON holds it; default none.

  Raises:
    ValueError: An array has a dtype, or `stated` a length, that the format
      cannot hold.
  """
  comment = _COMMENT + stated_fields.dump(**stated).encode() if stated else b""
  if len(comment) > zipfile.ZIP_MAX_COMMENT:
    raise ValueError(
      f"{path}: the chat template and settings of the model take {len(comment)}"
      f" bytes, an npz holds {zipfile.ZIP_MAX_COMMENT}; write Orbax instead"
    )
  with (
    disk.file(path) as temporary,
    temporary.open("wb") as file,
    zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive,
  ):
    archive.comment = comment
    for name, array in flat.items() if isinstance(flat, Mapping) else flat:
      # ZipInfo without a date: equal arrays give equal files.
      member = zipfile.ZipInfo(f"params/{name}.npy")
      cast_to = None if quantization.split(name) else dtype
      if isinstance(array, Leaf):
        array = array.read(cast_to)
      array = np.asarray(array, dtype=cast_to)
      check_dtype(name, array.dtype)
      if array.dtype == ml_dtypes.bfloat16:
        array = array.view("V2")
      # Over 4 GiB: the gating_einsum of the 3B is 4.8 GB in float32.
      with archive.open(member, "w", force_zip64=True) as entry:
        np.lib.format.write_array(entry, array, allow_pickle=False)


@contextlib.contextmanager
def _open(path):
  """Yields the open archive and name -> ZipInfo of the wanted sub-tree."""
  subtree = _PATH.fullmatch(str(path))["subtree"]
  with contextlib.ExitStack() as stack:
    with _one_line(path):
      file = stack.enter_context(_file(path).open("rb"))
      archive = stack.enter_context(zipfile.ZipFile(file))
      members = {m.filename: m for m in archive.infolist()}
    if foreign := [name for name in members if not name.endswith(".npy")]:
      raise ValueError(f'{path}: "{foreign[0]}" in it is no .npy array')
    members = {n.removesuffix(".npy"): m for n, m in members.items()}
    members = tree.under("params/", members) or members
    if subtree:
      subtree = subtree.rstrip("/")
      tops = sorted({name.partition("/")[0] for name in members})
      members = tree.under(f"{subtree}/", members)
      if not members:
        raise ValueError(
          f'{path}: nothing under "{subtree}/", expected one of: '
          f"{', '.join(tops)}." + registry.did_you_mean(subtree, tops)
        )
    if not members:
      raise ValueError(f"{path}: holds no array")
    yield archive, members


def _file(path) -> epath.Path:
  return disk.path(_PATH.fullmatch(str(path))["file"])


@contextlib.contextmanager
def _one_line(path, name=None):
  """Turns what zip, zlib and NumPy raise on a bad file into one ValueError."""
  where = f"{path}: {name}" if name else f"{path}"
  try:
    yield
  except OSError as e:
    raise ValueError(f"{where}: {e.strerror or e}, expected an npz") from None
  except _CORRUPT as e:
    reason = str(e).splitlines()[0] if str(e) else type(e).__name__
    if "allow_pickle" in reason:
      reason = "pickled objects are refused, they can run code; save arrays"
    else:
      reason = f"not an npz file, or corrupt or cut short ({reason})"
    raise ValueError(f"{where}: {reason}") from None


@dataclasses.dataclass
class _Stream:
  """An array that can only be read from its beginning on.

  Slices that follow one another are read in one pass.
  """

  path: epath.PathLike
  name: str
  member: str
  shape: tuple[int, ...]
  dtype: np.dtype
  row: int = 0
  rows: Generator[np.ndarray, int] | None = None  # from `row` on

  def __getitem__(self, index):
    index = slice(None) if index is ... else index
    start, stop, _ = index.indices(self.shape[0])
    rows, self.rows = self.rows, None
    with _one_line(self.path, self.name):
      if rows is None or start < self.row:
        rows, self.row = self._read(), 0
        next(rows)
      rows.send(start - self.row)
      block = rows.send(stop - start)
    if stop < self.shape[0]:
      self.rows, self.row = rows, stop
    return block

  def _read(self):
    """Yields as many of the next rows as it is sent; holds the file open."""
    with (
      _file(self.path).open("rb") as file,
      zipfile.ZipFile(file) as archive,
      archive.open(self.member) as member,
    ):
      _read_header(member)
      block, stop = None, 0
      while True:
        count = yield block
        block = np.empty((count, *self.shape[1:]), self.dtype)
        left = block.reshape(-1).view(np.uint8)
        while left.size:
          if not (read := member.readinto(left)):
            raise EOFError("data is missing")
          left = left[read:]
        stop += count
        # At the end zipfile compares the CRC.
        if stop == self.shape[0] and member.read(1):
          raise ValueError("more data than its shape says")


def _tensor(path, name, archive, member) -> Tensor:
  with archive.open(member) as file:
    shape, fortran, dtype = _read_header(file)
    header_bytes = file.tell()
  if dtype.hasobject:
    raise ValueError("needs allow_pickle")
  data_bytes = math.prod(shape) * dtype.itemsize
  if header_bytes + data_bytes != member.file_size:
    raise ValueError(
      f"shape {shape} of {dtype} takes {data_bytes} bytes, found "
      f"{member.file_size - header_bytes}"
    )
  if dtype == np.dtype("V2"):
    dtype = np.dtype(ml_dtypes.bfloat16)
  check_dtype(f"{path}: {name}", dtype)
  file = member.filename
  if fortran or not shape:
    flat = _Stream(path, name, file, (math.prod(shape),), dtype)
    order = "F" if fortran else "C"
    return Computed(
      shape, dtype, lambda index: flat[...].reshape(shape, order=order)[index]
    )
  if member.compress_type != zipfile.ZIP_STORED or not os.path.isfile(
    _file(path)
  ):
    return _Stream(path, name, file, shape, dtype)
  offset = _data_offset(archive, member)
  data = Mapped(_file(path), offset + header_bytes, shape, dtype)
  whole = Mapped(_file(path), offset, (member.file_size,), np.dtype("u1"))

  @functools.cache
  def is_intact():
    crc = 0
    for start in range(0, member.file_size, BLOCK_BYTES):
      crc = zlib.crc32(whole[start : start + BLOCK_BYTES], crc)
    return crc == member.CRC

  def compute(index):
    with _one_line(path, name):
      if not is_intact():
        raise zipfile.BadZipFile("bad CRC-32")
      return data[index]

  return Computed(shape, dtype, compute)


def _read_header(file) -> tuple[tuple[int, ...], bool, np.dtype]:
  if np.lib.format.read_magic(file) == (1, 0):
    return np.lib.format.read_array_header_1_0(file)
  return np.lib.format.read_array_header_2_0(file)


def _data_offset(archive, member) -> int:
  """Where the bytes of an uncompressed member begin in the file."""
  archive.fp.seek(member.header_offset)
  header = archive.fp.read(30)
  name_bytes, extra_bytes = struct.unpack("<HH", header[26:30])
  offset = member.header_offset + 30 + name_bytes + extra_bytes
  end = archive.fp.seek(0, os.SEEK_END)
  if offset + member.file_size > end:
    raise EOFError(f"{offset + member.file_size - end} bytes are missing")
  return offset
