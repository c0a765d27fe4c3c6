"""Encoded video -> a few RGB frames, decoded by PyAV.

stride 3, num_frames 4, from frame 0           0     3     6     9
a clip of 8 frames has three of them           0     3     6
short="tile" repeats them                      0     3     6     0
short="pad" appends black                      0     3     6   black
"""

import contextlib
import dataclasses
import io
import itertools
import os
import struct
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

from paligemma import registry
from paligemma.data import example_fields
from paligemma.data import image as image_lib
from paligemma.data.example_fields import Example

SHORT = {
  "tile": "repeat the frames there are, from the first one on",
  "pad": "append black frames of the same size",
}
START = {
  "first": "the first frame",
  "random": "any that leaves room for all frames, else the first",
}

# Types of elements of MP4 and QuickTime, and the sync byte of MPEG transport
# streams, by which the format of a file is recognized.
_BOXES = (b"ftyp", b"styp", b"moov", b"mdat", b"free", b"skip", b"wide")
_TRANSPORT = ((0, 188), (4, 192))  # offset of the sync byte, packet length
_SYNC = 0x47


@dataclasses.dataclass(frozen=True)
class Frames:
  """An op: decodes "image", the contents of a video file, to frames.

  Attributes:
    num_frames: Number of frames.
    stride: Distance between frames, in frames of the video.
    short: Key of SHORT: what to do with a clip that has fewer.
    start: Key of START: the first frame; "random" reads the file twice.

  Source: big_vision, configs/proj/paligemma/transfers/msrvtt_cap.py, with its
  defaults. There a random first frame is within the bounds of DMVR
  (sample_sequence); here a clip that is too short begins at its first frame.
  """

  num_frames: int = 16
  stride: int = 9
  short: str = "tile"
  start: str = "first"

  def __post_init__(self):
    registry.lookup(SHORT, self.short, "choice of short")
    registry.lookup(START, self.start, "choice of start")
    for name in ("num_frames", "stride"):
      if (value := getattr(self, name)) < 1:
        raise ValueError(f"{name} is {value}, expected at least 1")

  def __call__(self, example: Example, rng: np.random.Generator) -> Example:
    data = example_fields.read(example, "image")
    where = example_fields.where(example)
    if not isinstance(data, bytes):
      raise example_fields.wrong(example, "image", "the bytes of a video")
    first = 0
    if self.start == "random":
      room = count(data, where=where) - (self.num_frames - 1) * self.stride
      first = int(rng.integers(max(room, 1)))
    return {**example, "image": self.sample(data, first=first, where=where)}

  def sample(
    self, data: bytes | BinaryIO, *, first: int = 0, where: str = "video"
  ) -> list[image_lib.Pixels]:
    """Returns the frames first, first + stride, ..., num_frames in all."""
    found = decode(data, self.num_frames, self.stride, first, where=where)
    if self.short == "pad":
      black = [np.zeros_like(found[-1])] * (self.num_frames - len(found))
      return found + black
    return [found[i % len(found)] for i in range(self.num_frames)]


def decode(
  data: bytes | BinaryIO,
  num_frames: int,
  stride: int,
  first: int = 0,
  *,
  where: str = "video",
) -> list[image_lib.Pixels]:
  """Decodes every stride-th frame from `first` on, and no later ones.

  Frames are counted in the order in which they are shown. The rotation that the
  file states, such as that of a phone held upright, is applied; mirroring and
  pixels that are not square are ignored.

  Args:
    data: Contents of a file in any format that FFmpeg reads, or the file,
      opened in binary mode. Its first video stream that is not a cover picture
      is decoded.
    num_frames: Most frames to return; there may be fewer, at least one.
    stride: Distance between frames, in frames of the video.

  Raises:
    ValueError: No video, damaged, or truncated before num_frames frames; no
      frame at `first`; or PyAV is missing. A truncated file is recognized by
      the lengths that Matroska, WebM, AVI and MP4 state, else if it ends a
      second before the stated duration. MPEG streams and live recordings state
      neither: they may end between any two packets.
  """
  found, frame = [], None
  wanted = range(first, first + num_frames * stride, stride)
  with _opened(data, where) as stream:
    packets = (packet.decode() for packet in stream.packets())
    for i, frame in enumerate(itertools.chain.from_iterable(packets)):
      if i in wanted:
        found.append(stream.to_rgb(frame))
      if i == wanted[-1]:
        return found
    if not found:
      stream.check_whole()
      reason = "no frame" if frame is None else f"no frame {first}"
      raise ValueError(f"{where}: {reason} in the video")
    stream.check_end(frame)
  return found


def count(data: bytes | BinaryIO, *, where: str = "video") -> int:
  """Returns the number of frames of a video, without decoding them."""
  with _opened(data, where) as stream:
    if stated := stream.video.frames:
      return stated
    found = sum(packet.size > 0 for packet in stream.packets())
    stream.check_whole()
  return found


@contextlib.contextmanager
def _opened(data, where):
  """Yields the first video stream; errors of FFmpeg become one line."""
  try:
    import av
  except ImportError:
    raise ValueError(
      'videos are decoded by PyAV, which is missing: pip install "paligemma'
      '[video]"'
    ) from None
  file = io.BytesIO(data) if isinstance(data, bytes) else data
  cover = av.stream.Disposition.attached_pic
  try:
    with av.open(file, metadata_errors="ignore") as container:
      streams = [
        stream
        for stream in container.streams.video
        if not stream.disposition & cover and stream.codec_context
      ]
      if not streams:
        kinds = {stream.type for stream in container.streams}
        raise ValueError(
          f"{where}: no video to decode in the file, found streams of "
          f"{', '.join(sorted(kinds)) or 'no kind'}"
        )
      context = streams[0].codec_context
      if context.width * context.height > image_lib.MAX_PIXELS:
        raise ValueError(
          f"{where}: frames are too large: {context.width}x{context.height} "
          f"pixels, at most {image_lib.MAX_PIXELS} in all"
        )
      yield _Stream(file, container, streams[0], where)
  except av.error.FFmpegError as error:
    reason = error.strerror or type(error).__name__
    raise ValueError(
      f"{where}: damaged video, or of a kind that FFmpeg does not read: "
      f"{reason}"
    ) from None


class _Stream:
  def __init__(self, file, container, video, where):
    self._file, self._container, self.video = file, container, video
    self._where = where
    self._seconds_seen = 0.0  # of all streams

  def packets(self) -> Iterator:
    for packet in self._container.demux():
      if packet.pts is not None:
        end = (packet.pts + (packet.duration or 0)) * packet.time_base
        self._seconds_seen = max(self._seconds_seen, float(end))
      if packet.stream.index == self.video.index:
        yield packet

  def to_rgb(self, frame) -> np.ndarray:
    if frame.is_corrupt:
      raise ValueError(f"{self._where}: damaged video: a frame is incomplete")
    pixels = frame.to_ndarray(format="rgb24")
    # Degrees counterclockwise.
    turned = np.rot90(pixels, round(frame.rotation / 90) % 4)
    return np.ascontiguousarray(turned)

  def check_end(self, frame):
    """Raises if a file that was read to its end is truncated.

    A second is missing by the stated duration of the video, or else of all
    streams together; or bytes are.
    """
    self.check_whole()
    stream, container = self.video, self._container
    reached = self._seconds_seen
    if stream.duration is not None and frame.time is not None:
      start = (stream.start_time or 0) * stream.time_base
      stated = float(start + stream.duration * stream.time_base)
      reached = frame.time
    elif container.duration is not None:
      stated = ((container.start_time or 0) + container.duration) / 1e6
    else:
      return
    longest = 2 / (stream.average_rate or 1)  # slides may last for seconds
    if stated - reached > max(1, longest):
      raise ValueError(
        f"{self._where}: truncated or damaged video: the last frame is at "
        f"{frame.time:.1f} s of {stated:.1f} s"
      )

  def check_whole(self):
    """Raises if a file ends within one of its elements."""
    if missing := missing_bytes(self._file):
      raise ValueError(
        f"{self._where}: truncated or damaged video: at least {missing} bytes "
        "are missing at its end"
      )


def missing_bytes(file: BinaryIO) -> int:
  """Returns the least number of bytes that are missing at the end of a file.

  A demuxer takes the end of a file for the end of the video, but elements of
  Matroska, WebM, AVI, MP4 and QuickTime state their lengths. It is 0 for other
  formats, or if a file was written as a stream without lengths. Of an MPEG
  transport stream, only the bytes missing in the last packet are known.

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
