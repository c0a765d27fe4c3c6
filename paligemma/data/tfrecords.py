"""Records of TFRecord files, in any order, without TensorFlow.

A record is its length, uint64 in little endian, the checksum of these 8 bytes,
its contents, and their checksum.

Source: TensorFlow, tsl/lib/io/record_writer.h.
"""

import itertools
import struct
from collections.abc import Sequence
from typing import BinaryIO

import numpy as np
from etils import epath

from paligemma.data import files

_LENGTH = struct.Struct("<Q")
_CHECKSUM = struct.Struct("<I")
_HEAD = _LENGTH.size + _CHECKSUM.size


class Records:
  """Random access to records of several files; each is indexed at its first.

  Args:
    parts: (path, skip, take): of each file, how many records to leave out, and
      how many to take.

  Raises:
    ValueError: On access, a file is missing, cut, compressed or damaged, or has
      less records than that.
  """

  def __init__(self, parts: Sequence[tuple[epath.PathLike, int, int]]):
    self._parts = list(parts)
    self._ends = list(itertools.accumulate(take for *_, take in self._parts))
    self._offsets = {}

  def __len__(self) -> int:
    return self._ends[-1] if self._ends else 0

  def __getitem__(self, index: int) -> bytes:
    part = int(np.searchsorted(self._ends, index, side="right"))
    path, skip, take = self._parts[part]
    number = skip + index - (self._ends[part] - take)
    with files.open_binary(path, what="data") as file:
      if part not in self._offsets:
        self._offsets[part] = _offsets(path, file)
      offsets = self._offsets[part]
      if skip + take > len(offsets):
        raise ValueError(
          f"{path}: holds {len(offsets)} records, expected {skip + take}; is "
          "it of another version of the data set?"
        )
      file.seek(offsets[number])
      (length,) = _LENGTH.unpack(file.read(_HEAD)[: _LENGTH.size])
      data, checksum = file.read(length), file.read(_CHECKSUM.size)
    if _checksum(data) != checksum:
      raise ValueError(f"{path}: damaged at record {number}, copy it again")
    return data


def _offsets(path: epath.PathLike, file: BinaryIO) -> np.ndarray:
  """Where the records of a file begin."""
  offsets, offset, size = [], 0, file.seek(0, 2)
  while offset < size:
    file.seek(offset)
    head = file.read(_HEAD)
    if len(head) == _HEAD and _checksum(head[:8]) != head[8:]:
      raise ValueError(
        f"{path}: no record at byte {offset}, expected an uncompressed "
        "TFRecord file; if it is one, copy it again"
      )
    offsets.append(offset)
    if len(head) == _HEAD:
      offset += _HEAD + _LENGTH.unpack(head[:8])[0] + _CHECKSUM.size
    if len(head) < _HEAD or offset > size:
      raise ValueError(
        f"{path}: ends within record {len(offsets) - 1}, copy it again"
      )
  return np.array(offsets, np.int64)


def _checksum(data: bytes) -> bytes:
  """CRC-32C, rotated and shifted, as TensorFlow stores it."""
  try:
    import google_crc32c  # of an extra
  except ImportError:
    raise ValueError(
      'TFRecord files need a package: pip install "paligemma[tfds]"'
    ) from None
  crc = google_crc32c.value(data)
  rotated = (crc >> 15 | crc << 17) + 0xA282EAD8
  return _CHECKSUM.pack(rotated & 0xFFFFFFFF)
