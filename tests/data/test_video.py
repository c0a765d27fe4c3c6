"""Clips made here, whose frames tell their own number, and damaged ones."""

import builtins
import io
import pickle
import struct

import numpy as np
import pytest
from PIL import Image

from paligemma.data import video

av = pytest.importorskip("av")

HEIGHT, WIDTH = 34, 46


def picture(i):
  """uint8[HEIGHT, WIDTH, 3] whose level is 6 i, and 250 in the upper left."""
  pixels = np.full((HEIGHT, WIDTH, 3), 6 * i, np.uint8)
  pixels[:12, :16] = 250
  return pixels


def number(frame):
  return round(float(frame[20:, 20:].mean()) / 6)


def numbers(frames):
  return [number(frame) for frame in frames]


def clip(
  count, container="mp4", codec="libx264", pixels="yuv420p", sound=0, **options
):
  """A video of `count` frames, 10 a second, and some seconds of sound."""
  file = io.BytesIO()
  with av.open(file, "w", format=container, options=options) as out:
    stream = out.add_stream(codec, rate=10) if count else None
    voice, rate = ("libopus", 48000) if container == "webm" else ("aac", 8000)
    track = out.add_stream(voice, rate=rate) if sound else None
    if stream:
      stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, pixels
      for i in range(count):
        frame = av.VideoFrame.from_ndarray(picture(i), format="rgb24")
        out.mux(stream.encode(frame))
      out.mux(stream.encode(None))
    for i in range(8 * sound):
      silence = av.AudioFrame.from_ndarray(
        np.zeros((1, rate // 8), np.float32), format="fltp", layout="mono"
      )
      silence.sample_rate, silence.pts = rate, rate // 8 * i
      out.mux(track.encode(silence))
    if track:
      out.mux(track.encode(None))
  return file.getvalue()


def lossless(count):
  return clip(count, "matroska", "ffv1", "bgr0")


@pytest.mark.parametrize(
  ("count", "num_frames", "stride", "first", "expected"),
  [
    (23, 3, 9, 0, [0, 9, 18]),
    (23, 5, 2, 0, [0, 2, 4, 6, 8]),
    (23, 3, 7, 4, [4, 11, 18]),
    (8, 5, 3, 0, [0, 3, 6]),
    (10, 5, 3, 0, [0, 3, 6, 9]),
    (1, 2, 1, 0, [0]),
  ],
)
def test_every_stride_th_frame(count, num_frames, stride, first, expected):
  frames = video.decode(lossless(count), num_frames, stride, first)
  assert numbers(frames) == expected
  for frame, i in zip(frames, expected, strict=True):
    assert frame.dtype == np.uint8
    np.testing.assert_array_equal(frame, picture(i))


@pytest.mark.parametrize(
  ("container", "codec"),
  [("mp4", "libx264"), ("avi", "mpeg4"), ("webm", "libvpx")],
)
def test_containers(container, codec):
  data = clip(23, container, codec)
  frames = video.decode(data, 3, 9)
  assert numbers(frames) == [0, 9, 18]
  assert video.count(data) == 23


def test_an_open_file_is_like_its_contents(tmp_path):
  path = tmp_path / "a.mkv"
  path.write_bytes(lossless(11))
  with path.open("rb") as file:
    found = video.decode(file, 3, 4)
  np.testing.assert_array_equal(found, video.decode(lossless(11), 3, 4))


def test_nothing_is_decoded_behind_the_last_frame():
  data = lossless(40)
  assert numbers(video.decode(data, 2, 5)) == [0, 5]
  broken = data[: len(data) // 2]
  assert numbers(video.decode(broken, 2, 5)) == [0, 5]
  with pytest.raises(ValueError, match="damaged video"):
    video.decode(broken, 40, 1)


@pytest.mark.parametrize(
  ("short", "expected"),
  [("tile", [0, 3, 6, 0, 3, 6, 0]), ("pad", [0, 3, 6])],
)
def test_short_clips(short, expected):
  op = video.Frames(num_frames=7, stride=3, short=short)
  frames = op.sample(lossless(8))
  assert len(frames) == 7
  assert numbers(frames[: len(expected)]) == expected
  for frame in frames[len(expected) :]:
    np.testing.assert_array_equal(frame, np.zeros_like(picture(0)))


@pytest.mark.parametrize("short", video.SHORT)
def test_long_clips_are_never_filled_up(short):
  frames = video.Frames(num_frames=3, stride=3, short=short).sample(lossless(7))
  assert numbers(frames) == [0, 3, 6]


def test_defaults_are_those_of_msrvtt():
  op = video.Frames()
  assert (op.num_frames, op.stride, op.short) == (16, 9, "tile")


def test_op_replaces_the_contents_of_the_file():
  op = pickle.loads(pickle.dumps(video.Frames(num_frames=2, stride=5)))
  example = {"image": lossless(7), "prefix": "caption en", "_where": "x:1"}
  new = op(example, np.random.default_rng(0))
  assert numbers(new["image"]) == [0, 5]
  assert new["prefix"] == "caption en"
  assert isinstance(example["image"], bytes)  # a cache may hold it


def test_random_start_uses_all_places_that_leave_room():
  op = video.Frames(num_frames=3, stride=2, start="random")
  example = {"image": lossless(8), "_where": "x:1"}
  rng = np.random.default_rng(0)
  starts = set()
  for _ in range(40):
    found = numbers(op(example, rng)["image"])
    assert found == [found[0], found[0] + 2, found[0] + 4]
    starts.add(found[0])
  assert starts == {0, 1, 2, 3}


def test_random_start_of_a_short_clip_is_the_first_frame():
  op = video.Frames(num_frames=4, stride=3, start="random")
  example = {"image": lossless(8)}
  rng = np.random.default_rng(0)
  for _ in range(5):
    assert numbers(op(example, rng)["image"]) == [0, 3, 6, 0]


def rotated(data, matrix):
  """An MP4 whose track asks for a transform (tkhd box, 16.16 fixed point)."""
  place = data.index(b"tkhd") + 4 + 40
  numbers = [round(x * 65536) for row in matrix for x in row]
  values = [*numbers[:2], 0, *numbers[2:], 0, 0, 0, 1 << 30]
  return data[:place] + struct.pack(">9i", *values) + data[place + 36 :]


@pytest.mark.parametrize(
  ("matrix", "corner"),
  [
    (((1, 0), (0, 1)), (0, 0)),
    (((0, 1), (-1, 0)), (0, 1)),  # clockwise, as phones write it
    (((-1, 0), (0, -1)), (1, 1)),
    (((0, -1), (1, 0)), (1, 0)),
  ],
)
def test_rotation_is_applied(matrix, corner):
  # The bright corner goes round with the picture.
  (frame,) = video.decode(rotated(clip(1), matrix), 1, 1)
  upright = matrix[0][0] != 0
  assert frame.shape[:2] == ((HEIGHT, WIDTH) if upright else (WIDTH, HEIGHT))
  corners = frame[:: frame.shape[0] - 1, :: frame.shape[1] - 1].mean(-1)
  assert np.unravel_index(corners.argmax(), (2, 2)) == corner


def test_sound_that_outlasts_the_video_is_no_damage():
  for container in ("mp4", "matroska"):
    data = clip(5, container, sound=4)
    assert numbers(video.decode(data, 9, 2)) == [0, 2, 4]


def png():
  file = io.BytesIO()
  Image.new("RGB", (7, 5)).save(file, "PNG")
  return file.getvalue()


def song_with_a_cover():
  """Sound behind an ID3 tag with a picture in it."""
  file = io.BytesIO()
  with av.open(file, "w", format="mp3", options={"write_xing": "0"}) as out:
    track = out.add_stream("mp3", rate=44100)
    frame = av.AudioFrame.from_ndarray(
      np.zeros((2, 44100), np.float32), format="fltp", layout="stereo"
    )
    frame.sample_rate = 44100
    out.mux(track.encode(frame))
    out.mux(track.encode(None))
  sound = file.getvalue()
  body = b"\0image/png\0\x03\0" + png()
  frame = b"APIC" + struct.pack(">I", len(body)) + b"\0\0" + body
  size = len(frame)
  digits = bytes((size >> shift) & 127 for shift in (21, 14, 7, 0))
  return b"ID3\x03\0\0" + digits + frame + sound[sound.index(b"\xff\xfb") :]


@pytest.mark.parametrize(
  ("make", "message"),
  [
    (lambda: b"", "damaged video, or of a kind .*: Invalid data found"),
    (lambda: b"no video\n" * 99, "damaged video, or of a kind .*: Invalid"),
    (lambda: clip(40)[:-400], "damaged video, or of a kind"),
    (lambda: clip(0, sound=1), "no video to decode in .* streams of audio$"),
    (song_with_a_cover, "no video to decode in .* streams of audio, video$"),
    (
      lambda: lossless(7)[:600],
      r"truncated .* \d+ bytes are missing at its end",
    ),
    (lambda: without_lengths(lossless(7)[:600]), "no frame in the video$"),
  ],
)
def test_bad_files(make, message):
  with pytest.raises(ValueError, match=message) as info:
    video.decode(make(), 99, 1, where="clips.jsonl:3")
  assert str(info.value).startswith("clips.jsonl:3: ")
  assert "\n" not in str(info.value)


CONTAINERS = [
  ("matroska", "libx264"),
  ("webm", "libvpx"),
  ("avi", "mpeg4"),
  ("mp4", "libx264"),
  ("mov", "mpeg4"),
  ("mpegts", "mpeg2video"),
]


@pytest.mark.parametrize(
  ("container", "codec", "sound"),
  [(*kind, sound) for kind in CONTAINERS for sound in (0, 4)],
)
def test_a_file_that_is_cut_short(container, codec, sound):
  """Wherever it was, frames that lack are an error."""
  data = clip(40, container, codec, sound=sound)
  whole = numbers(video.decode(data, 99, 1, where="a:1"))
  assert len(whole) == 40
  for kept in (0.5, 0.8, 0.97, 1 - 11 / len(data)):
    cut = data[: round(kept * len(data))]
    if container == "mpegts":
      cut += data[len(cut) : len(cut) + 1] * (len(cut) % 188 == 0)
    with pytest.raises(ValueError, match=r"^a:1: .*(damaged|no video)"):
      video.decode(cut, 99, 1, where="a:1")


@pytest.mark.parametrize("container", ["matroska", "avi"])
def test_what_lacks_behind_the_last_frame_is_no_error(container):
  data = clip(40, container, "ffv1", "bgr0")
  cut = data[: len(data) * 4 // 5]
  assert numbers(video.decode(cut, 3, 2)) == [0, 2, 4]
  with pytest.raises(ValueError, match=r"^a:1: (truncated|damaged) "):
    video.decode(cut, 40, 1, where="a:1")


def without_lengths(matroska):
  """As what is recorded live: its segment goes on to the end of the file."""
  place = matroska.index(b"\x18\x53\x80\x67") + 4
  return matroska[:place] + b"\x01" + b"\xff" * 7 + matroska[place + 8 :]


@pytest.mark.parametrize("sound", [0, 4])
def test_a_cut_shows_by_the_duration(sound):
  data = clip(40, "matroska", "ffv1", "bgr0", sound=sound)
  data = without_lengths(data)
  assert len(video.decode(data, 99, 1)) == 40
  assert video.count(data) == 40
  cut = data[: len(data) // 2]
  with pytest.raises(
    ValueError, match=r"^a:1: truncated .* frame is at \d\.\d s of 4\.\d s$"
  ):
    video.decode(cut, 40, 1, where="a:1")
  assert numbers(video.decode(cut, 2, 1)) == [0, 1]


def test_frames_of_a_cut_file_are_not_counted():
  data = lossless(23)
  assert video.count(data) == 23
  with pytest.raises(
    ValueError, match=r"^a:1: truncated .* missing at its end"
  ):
    video.count(data[: len(data) // 2], where="a:1")


def test_a_file_that_is_damaged_in_the_middle():
  data = clip(40)
  place = data.index(b"mdat") + 4
  noise = np.random.default_rng(0).bytes(500)
  broken = data[: place + 700] + noise + data[place + 1200 :]
  with pytest.raises(ValueError, match=r"^a:1: damaged video"):
    video.decode(broken, 40, 1, where="a:1")


def test_a_frame_of_which_a_part_is_lost():
  data = clip(7, "avi", "mpeg4")
  first = data.index(b"movi") + 4 + 8  # contents of the first chunk
  (size,) = struct.unpack("<I", data[first - 4 : first])
  lost = size // 2
  broken = data[: first + size - lost] + bytes(lost) + data[first + size :]
  with pytest.raises(
    ValueError, match=r"^a:1: damaged video: a frame is incomp"
  ):
    video.decode(broken, 1, 1, where="a:1")


def test_first_frame_behind_the_end():
  with pytest.raises(ValueError, match=r"^a:1: no frame 9 in the video$"):
    video.decode(lossless(7), 2, 1, 9, where="a:1")


def test_frames_that_are_too_large(monkeypatch):
  monkeypatch.setattr(video.image_lib, "MAX_PIXELS", HEIGHT * WIDTH - 1)
  with pytest.raises(
    ValueError, match=r"^a:1: .* too large: 46x34 pixels, at most 1563 in all$"
  ):
    video.decode(lossless(1), 1, 1, where="a:1")


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ({"short": "tiled"}, r'unknown choice of short "tiled", .* mean "tile"'),
    ({"start": "frist"}, r'unknown choice of start "frist", .* mean "first"'),
    ({"num_frames": 0}, "num_frames is 0, expected at least 1"),
    ({"stride": -1}, "stride is -1, expected at least 1"),
  ],
)
def test_bad_arguments(arguments, message):
  with pytest.raises(ValueError, match=message):
    video.Frames(**arguments)


def test_op_wants_the_contents_of_a_file():
  op = video.Frames()
  with pytest.raises(ValueError, match=r'a:1: .* bytes of a video under "im'):
    op({"image": "clip.mp4", "_where": "a:1"}, np.random.default_rng(0))


def test_without_pyav(monkeypatch):
  real = builtins.__import__

  def no_av(name, *args, **kwargs):
    if name == "av":
      raise ImportError(name)
    return real(name, *args, **kwargs)

  monkeypatch.setattr(builtins, "__import__", no_av)
  with pytest.raises(
    ValueError, match=r'by PyAV, .* missing: pip install "paligemma\[video\]"$'
  ):
    video.decode(b"", 1, 1)
