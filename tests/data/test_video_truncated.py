"""How many bytes lack, by what the elements of a file say."""

import io
import struct

import pytest

from paligemma.data import video


def element(name, size, contents):
  """Of EBML, with a size in eight bytes; None is unknown."""
  length = b"\x01" + (
    size.to_bytes(7, "big") if size is not None else b"\xff" * 7
  )
  return name + length + contents


def box(kind, contents):
  return struct.pack(">I4s", 8 + len(contents), kind) + contents


def long_box(kind, contents):
  return struct.pack(">I4sQ", 1, kind, 16 + len(contents)) + contents


EBML = b"\x1a\x45\xdf\xa3"
SEGMENT = b"\x18\x53\x80\x67"
HEAD = EBML + b"\x84" + b"head"  # a size in one byte
MATROSKA = HEAD + element(SEGMENT, 300, bytes(300))
AVI = b"RIFF" + struct.pack("<I", 304) + b"AVI " + bytes(300)
MP4 = (
  box(b"ftyp", bytes(12)) + box(b"moov", bytes(40)) + box(b"mdat", bytes(99))
)
LONG_MP4 = box(b"ftyp", bytes(12)) + long_box(b"mdat", bytes(99))
PACKETS = (b"G" + bytes(187)) * 5
DISC = (bytes(4) + b"G" + bytes(187)) * 5


def missing(data):
  return video.missing_bytes(io.BytesIO(data))


@pytest.mark.parametrize(
  "data",
  [MATROSKA, MATROSKA * 2, AVI, AVI * 2, MP4, LONG_MP4, PACKETS, DISC],
)
def test_whole_and_cut_files(data):
  assert missing(data) == 0
  for count in (1, 7, 31):
    assert missing(data[:-count]) == count


@pytest.mark.parametrize(
  "data",
  [
    b"",
    b"RIFF",
    b"hello",
    bytes(999),
    HEAD + element(SEGMENT, None, bytes(300)),
    HEAD + SEGMENT + b"\xff" + bytes(300),  # unknown, in one byte
    b"RIFF\xff\xff\xff\xff" + bytes(99),
    b"RIFF\0\0\0\0" + bytes(99),
    box(b"ftyp", bytes(12)) + struct.pack(">I4s", 0, b"mdat") + bytes(99),
    MP4 + bytes(99),
    MATROSKA + b"more",
    AVI + b"more of something else",
    b"G" + bytes(999),
  ],
)
def test_what_does_not_tell_lacks_nothing(data):
  assert missing(data) == 0
