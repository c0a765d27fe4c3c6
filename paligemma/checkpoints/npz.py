"""Parameters in one .npz file with big_vision's names, one array at a time.

A path may end in the sub-tree that is wanted: "siglip.npz:img" gives what lies
under "img/", without that prefix.
"""

import contextlib
import hashlib
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import ml_dtypes
import numpy as np
from etils import epath

from paligemma import tree

_PATH = re.compile(r"(?P<file>.*?)(:(?P<subtree>\w[\w/]*))?")
_CORRUPT = (
  EOFError,
  RuntimeError,  # zipfile: flags or a compression that it does not know
  ValueError,
  struct.error,
  zipfile.BadZipFile,
  zlib.error,
)


def load(path: epath.PathLike) -> tree.Flat:
  """Returns all arrays of a file by name.

  Args:
    path: File, with or without ":sub/tree"; whatever etils.epath opens. The
      names may carry big_vision's prefix "params/", and then only those that do
      are read (its training checkpoints also hold "opt/...").

  Returns:
    Name without "params/" -> array. bfloat16, which NumPy stores as void of two
    bytes, comes back as ml_dtypes.bfloat16.

  Raises:
    ValueError: No such file, not an npz, corrupt, pickled (never unpickled, as
      that would run code from the file), or nothing under the sub-tree.
  """
  return dict(iterate(path))


def iterate(path: epath.PathLike) -> Iterator[tuple[str, np.ndarray]]:
  """Yields what `load` returns as (name, array), in the order of the file.

  Only one array is in memory at a time, so that 11 GB of float32 need not stand
  in host memory next to their copy on the devices.
  """
  with _open(path) as (archive, members):
    for name, member in members.items():
      with _one_line(path, name), archive.open(member) as file:
        array = np.lib.format.read_array(file, allow_pickle=False)
      yield name, _from_void(f"{path}: {name}", array)


def shapes(path: epath.PathLike) -> dict[str, tuple[int, ...]]:
  """Returns name -> shape of what `load` returns, reading only the headers."""
  found = {}
  with _open(path) as (archive, members):
    for name, member in members.items():
      with _one_line(path, name), archive.open(member) as file:
        found[name] = _read_shape(file)
  return found


def fingerprint(path: epath.PathLike) -> str:
  """Names the contents of what `load` returns, without reading the data.

  Args:
    path: As in `load`.

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
) -> None:
  """Writes arrays under big_vision's names, "params/" in front.

  Arrays are fetched, cast and written one at a time. The file appears under its
  name only when it is complete; an earlier one is replaced at that moment. With
  several processes let one of them write.

  Args:
    path: File to write; its folder is made.
    flat: Name -> array, or pairs of them from a generator. NumPy or JAX arrays.
    dtype: Cast every array to it, default as they are. bfloat16 is stored as
      void of two bytes, as big_vision does and reads.

  Raises:
    ValueError: An array has a dtype that the format cannot hold.
  """
  path = epath.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.parent / f".{path.name}.{os.getpid()}.tmp"
  try:
    with (
      temporary.open("wb") as file,
      zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive,
    ):
      for name, array in flat.items() if isinstance(flat, Mapping) else flat:
        # ZipInfo without a date: equal arrays give equal files.
        member = zipfile.ZipInfo(f"params/{name}.npy")
        array = _to_void(name, np.asarray(array, dtype=dtype))
        # Over 4 GiB: the gating_einsum of the 3B is 4.8 GB in float32.
        with archive.open(member, "w", force_zip64=True) as entry:
          np.lib.format.write_array(entry, array, allow_pickle=False)
    temporary.replace(path)
  finally:
    temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def _open(path):
  """Yields the open archive and name -> ZipInfo of the wanted sub-tree."""
  match = _PATH.fullmatch(str(path))
  with _one_line(path), contextlib.ExitStack() as stack:
    file = stack.enter_context(epath.Path(match["file"]).open("rb"))
    archive = stack.enter_context(zipfile.ZipFile(file))
    members = {m.filename: m for m in archive.infolist()}
    stack = stack.pop_all()
  with stack:
    if foreign := [name for name in members if not name.endswith(".npy")]:
      raise ValueError(f'{path}: "{foreign[0]}" in it is no .npy array')
    members = {n.removesuffix(".npy"): m for n, m in members.items()}
    members = _under("params/", members) or members
    if match["subtree"]:
      members = _wanted(path, match["subtree"].rstrip("/"), members)
    if not members:
      raise ValueError(f"{path}: holds no array")
    yield archive, members


def _under(prefix, members):
  return {
    name.removeprefix(prefix): member
    for name, member in members.items()
    if name.startswith(prefix)
  }


def _wanted(path, subtree, members):
  if wanted := _under(f"{subtree}/", members):
    return wanted
  tops = sorted({name.partition("/")[0] for name in members})
  raise ValueError(
    f'{path}: nothing under "{subtree}/", expected one of: {", ".join(tops)}.'
    + tree.did_you_mean(subtree, tops)
  )


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


def _read_shape(file) -> tuple[int, ...]:
  if np.lib.format.read_magic(file) == (1, 0):
    shape, _, _ = np.lib.format.read_array_header_1_0(file)
  else:
    shape, _, _ = np.lib.format.read_array_header_2_0(file)
  return shape


def _from_void(where: str, array: np.ndarray) -> np.ndarray:
  if array.dtype == np.dtype("V2"):
    return array.view(ml_dtypes.bfloat16)
  _check_dtype(where, array)
  return array


def _to_void(where: str, array: np.ndarray) -> np.ndarray:
  if array.dtype == ml_dtypes.bfloat16:
    return array.view("V2")
  _check_dtype(where, array)
  return array


def _check_dtype(where: str, array: np.ndarray) -> None:
  if array.dtype.kind not in "fiub":
    raise ValueError(
      f"{where}: dtype {array.dtype}, expected bfloat16 or a number of NumPy"
    )
