"""Detection of truncated video files by the lengths of their elements.

A demuxer takes the end of a file for the end of the video. The header of an
element has its length, so a truncated file is recognized without decoding.
"""

import os
import struct
from typing import BinaryIO

_BOXES = (b"ftyp", b"styp", b"moov", b"mdat", b"free", b"skip", b"wide")
_TRANSPORT = ((0, 188), (4, 192))  # offset of the sync byte, packet length
_SYNC = 0x47


def missing_bytes(file: BinaryIO) -> int:
  """Returns the least number of bytes that are missing at the end of a file.

  Args:
    file: Opened in binary mode; Matroska or WebM, AVI, MP4 or QuickTime, or an
      MPEG transport stream.

  Returns:
    0 if none is missing or it is unknown, because the file has another format
    or was written as a stream without lengths. Of a transport stream, only the
    bytes missing in the last packet are known.

  Source: RFC 8794 (EBML), section 6; ISO/IEC 14496-12, section 4.2; RIFF as of
  "AVI RIFF File Reference"; ISO/IEC 13818-1, section 2.4.3.
  """
  end = file.seek(0, os.SEEK_END)
  file.seek(0)
  head = file.read(256)
  length = _length_of(head)
  if length is None:
    return 0
  position = 0
  while position < end:
    file.seek(position)
    size = length(file.read(16), end)
    if not size:
      return 0
    position += size
  return position - end


def _length_of(head):
  """Returns the function that reads the length of an element."""
  if head[:4] == b"\x1a\x45\xdf\xa3":
    return _element
  if head[:4] == b"RIFF":
    return _riff
  if head[4:8] in _BOXES:
    return _box
  for first, packet in _TRANSPORT:
    syncs = head[first::packet]
    if len(syncs) > 1 and set(syncs) == {_SYNC}:
      return lambda _, end: -(-end // packet) * packet
  return None


def _element(head, end):
  """EBML: an id and a size of variable lengths."""
  if len(head) < 16 or not head[0]:
    return None
  start = 9 - head[0].bit_length()  # leading zeros give the lengths of both
  count = 9 - head[start].bit_length()
  if count > 8:
    return None
  size = int.from_bytes(head[start : start + count], "big")
  size -= 1 << 7 * count
  unknown = (1 << 7 * count) - 1
  return None if size == unknown else start + count + size


def _riff(head, end):
  if head[:4] != b"RIFF" or len(head) < 8:
    return None
  (size,) = struct.unpack("<I", head[4:8])
  return None if size in (0, 0xFFFFFFFF) else 8 + size


def _box(head, end):
  """MP4: the size comes first and includes the header."""
  if len(head) < 16 or not head[4:8].isalnum():
    return None
  size, _, long_size = struct.unpack(">I4sQ", head)
  return long_size if size == 1 else size
