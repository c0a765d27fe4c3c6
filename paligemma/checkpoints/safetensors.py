"""The safetensors file format, read and written one tensor at a time.

    8 bytes   N, little-endian
    N bytes   JSON: {"__metadata__": {str: str},
                     name: {"dtype": "F32", "shape": [2, 3],
                            "data_offsets": [begin, end]}, ...}
    the rest  the tensors, without gap or overlap, in C order, little-endian

Source: the format's description in github.com/huggingface/safetensors, which
this reader is as strict as.
"""

import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
from etils import epath

from paligemma import disk, messages
from paligemma.checkpoints.leaves import Mapped, Tensor, nbytes

DTYPES = {
  **{f"F{bits}": np.dtype(f"float{bits}") for bits in (64, 32, 16)},
  "BF16": np.dtype(ml_dtypes.bfloat16),
  **{f"I{bits}": np.dtype(f"int{bits}") for bits in (64, 32, 16, 8)},
  **{f"U{bits}": np.dtype(f"uint{bits}") for bits in (64, 32, 16, 8)},
  "BOOL": np.dtype(bool),
}

_METADATA = "__metadata__"
_MAX_HEADER = 100_000_000  # bytes, the limit of the reference implementation
_MAX_BYTES = 2**63 - 1


def open(path: epath.PathLike) -> dict[str, Mapped]:
  """Reads the header of a local file; data is mapped anew for each access.

  Raises:
    ValueError: No such file, or not a safetensors file, or corrupt or cut
      short: the header must describe every byte exactly once.
  """
  header, start, size = _read_header(path)
  tensors = {}
  for name, entry in header.items():
    if name == _METADATA:
      values = entry.values() if isinstance(entry, dict) else [None]
      if not all(isinstance(value, str) for value in values):
        raise ValueError(f"{path}: {_METADATA} must map strings to strings")
    elif not name.isprintable():
      raise ValueError(f"{path}: {name!r:.80}: expected a name to print")
    else:
      tensors[name] = _tensor(f"{path}: {name}", path, entry, start)
  _check_coverage(path, tensors, start, size)
  return tensors


def read_metadata(path: epath.PathLike) -> dict[str, str]:
  """The strings beside the tensors of a local file that `open` found good."""
  return _read_header(path)[0].get(_METADATA, {})


def save(
  path: epath.PathLike,
  tensors: Mapping[str, Tensor],
  metadata: Mapping[str, str] | None = None,
) -> None:
  """Writes tensors one at a time.

  Args:
    tensors: Name -> tensor, of which `tensor[...]` is read when its turn comes.
    metadata: Strings beside them: {"format": "pt"} is what transformers wants.

  Raises:
    ValueError: A tensor has a dtype that the format cannot hold.
  """
  names = {dtype: name for name, dtype in DTYPES.items()}
  header = {_METADATA: dict(metadata)} if metadata else {}
  # Big items first keeps every tensor aligned; equal tensors, equal files.
  order = sorted(tensors, key=lambda n: (-tensors[n].dtype.itemsize, n))
  end = 0
  for name in order:
    shape, dtype = tensors[name].shape, np.dtype(tensors[name].dtype)
    if dtype not in names:
      raise ValueError(
        f"{path}: {name}: dtype {dtype}, expected one of: "
        f"{', '.join(map(str, names))}"
      )
    begin, end = end, end + nbytes(tensors[name])
    header[name] = {
      "dtype": names[dtype],
      "shape": list(shape),
      "data_offsets": [begin, end],
    }
  encoded = json.dumps(header, separators=(",", ":")).encode()
  encoded += b" " * (-len(encoded) % 8)
  with pathlib.Path(path).open("wb") as file:
    file.write(len(encoded).to_bytes(8, "little") + encoded)
    for name in order:
      array = np.ascontiguousarray(tensors[name][...])
      begin, end = header[name]["data_offsets"]
      assert array.nbytes == end - begin, f"{name}: other than announced"
      file.write(array.reshape(-1).view(np.uint8))


def _read_header(path) -> tuple[dict[str, Any], int, int]:
  """Returns the header, where the data starts, and the size of the file."""
  try:
    size = pathlib.Path(path).stat().st_size
    with disk.path(path).open("rb") as file:
      length = int.from_bytes(file.read(8), "little")
      if size < 8 or length > min(size - 8, _MAX_HEADER):
        raise ValueError(
          f"{path}: not a safetensors file, or cut short: {size} bytes with a "
          f"header of {length}"
        )
      text = file.read(length)
  except OSError as e:
    reason = e.strerror or e
    raise ValueError(f"{path}: {reason}, expected a safetensors file") from None
  try:
    header = json.loads(text.decode(), object_pairs_hook=_without_duplicates)
  except (ValueError, RecursionError) as e:
    reason = str(e).splitlines()[0]
    raise ValueError(
      f"{path}: not a safetensors file, or corrupt ({reason})"
    ) from None
  if not isinstance(header, dict):
    raise ValueError(f"{path}: the header is no JSON object")
  return header, 8 + length, size


def _without_duplicates(pairs):
  found = dict(pairs)
  if len(found) < len(pairs):
    keys = [key for key, _ in pairs]
    twice = next(key for key in found if keys.count(key) > 1)
    raise ValueError(f'"{twice}" stands twice in the header')
  return found


def _tensor(where, path, entry, start) -> Mapped:
  def wrong(key, expected):
    found = messages.shown(repr(entry[key]))
    return ValueError(f"{where}: {key} {found}, expected {expected}")

  keys = {"dtype", "shape", "data_offsets"}
  if not isinstance(entry, dict) or entry.keys() != keys:
    found = messages.shown(repr(entry))
    raise ValueError(f"{where}: {found} in the header, expected {keys}")
  name, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
  if not isinstance(name, str) or name not in DTYPES:
    raise wrong("dtype", f"one of: {', '.join(DTYPES)}")
  if not _are_sizes(shape):
    raise wrong("shape", "sizes")
  if not (_are_sizes(offsets) and len(offsets) == 2):
    raise wrong("data_offsets", "two")
  dtype = DTYPES[name]
  # An empty tensor may not have sizes that NumPy cannot multiply either.
  if math.prod(max(n, 1) for n in shape) * dtype.itemsize > _MAX_BYTES:
    raise wrong("shape", "less, it is too big")
  begin, end = offsets
  tensor = Mapped(path, start + begin, tuple(shape), dtype)
  if end - begin != nbytes(tensor):
    raise ValueError(
      f"{where}: data_offsets {offsets} span {end - begin} bytes, "
      f"{name}{shape} has {nbytes(tensor)}"
    )
  return tensor


def _are_sizes(value) -> bool:
  # NumPy has at most 64 axes.
  return (
    isinstance(value, list)
    and len(value) <= 64
    and all(type(n) is int and 0 <= n <= _MAX_BYTES for n in value)
  )


def _check_coverage(path, tensors, start, size):
  end = start
  for name, tensor in sorted(
    tensors.items(), key=lambda item: (item[1].offset, nbytes(item[1]))
  ):
    if tensor.offset != end:
      kind = "overlaps what precedes" if tensor.offset < end else "gap before"
      raise ValueError(
        f"{path}: {name}: {kind}, starts at byte {tensor.offset}, expected "
        f"{end}"
      )
    end += nbytes(tensor)
  if end != size:
    raise ValueError(
      f"{path}: {size} bytes, the header describes {end}; the file is cut "
      "short or has bytes to spare"
    )
