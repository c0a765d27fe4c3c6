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
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

from paligemma import registry
from paligemma.data import containers, example_fields
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


@dataclasses.dataclass(frozen=True)
class Frames:
  """An op: decodes "image", the contents of a video file, to frames.

  Attributes:
    num_frames: Number of frames.
    stride: Distance between frames, in frames of the video.
    short: Key of SHORT: what to do with a clip that has fewer.
    start: Key of START: the first frame; "random" reads the file twice.

  Source: big_vision, configs/proj/paligemma/transfers/msrvtt_cap.py, with its
  defaults; it has no video reader. It begins at the first frame in evaluations
  and at a random one in training, within the bounds of DMVR (sample_sequence),
  except that here a clip that is too short begins at its first frame.
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
  found, end = [], None
  wanted = range(first, first + num_frames * stride, stride)
  with _opened(data, where) as stream:
    packets = (packet.decode() for packet in stream.packets())
    for i, frame in enumerate(itertools.chain.from_iterable(packets)):
      end = frame
      if i in wanted:
        found.append(stream.to_rgb(frame))
      if i == wanted[-1]:
        return found
    if not found:
      stream.check_whole()
      reason = "no frame" if end is None else f"no frame {first}"
      raise ValueError(f"{where}: {reason} in the video")
    stream.check_end(end)
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
  """A video stream of a file."""

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
    if missing := containers.missing_bytes(self._file):
      raise ValueError(
        f"{self._where}: truncated or damaged video: at least {missing} bytes "
        "are missing at its end"
      )
