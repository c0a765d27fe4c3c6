"""Image files of every kind: their pixels, their sizes, and damaged ones."""

import builtins
import functools
import io
import logging
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from paligemma.data import image as image_lib
from paligemma.data import image_files


def pixels(height, width, seed=0):
  rng = np.random.default_rng(seed)
  return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


def encode(picture, kind="PNG", **options):
  data = io.BytesIO()
  picture.save(data, kind, **options)
  return data.getvalue()


@pytest.mark.parametrize("options", [{}, {"lossless": True}])
def test_decode_is_exact_for_lossless_files(options):
  image = pixels(5, 7)
  kind = "WEBP" if options else "PNG"
  result = image_files.decode(encode(Image.fromarray(image), kind, **options))
  assert result.dtype == np.uint8
  np.testing.assert_array_equal(result, image)


def test_decode_jpeg():
  smooth = np.broadcast_to(np.arange(0, 230, 10)[:, None, None], (23, 17, 3))
  picture = Image.fromarray(smooth.astype(np.uint8))
  result = image_files.decode(encode(picture, "JPEG", quality=95))
  np.testing.assert_allclose(result.astype(int), smooth, rtol=0, atol=8)


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("size", [(1, 1), (37, 53), (163, 97)])
@pytest.mark.parametrize(
  "options",
  [
    {"quality": 30, "subsampling": "4:2:0"},
    {"quality": 85, "subsampling": "4:2:2", "progressive": True},
    {"quality": 95, "subsampling": "4:4:4", "restart_marker_rows": 1},
    {"keep_rgb": True},
    {"mode": "L"},
    {"mode": "CMYK"},
  ],
)
def test_a_jpeg_has_the_pixels_that_pillow_decodes(options, size, orientation):
  options = dict(options)
  noise = Image.fromarray(pixels(13, 11)).resize(size).convert("RGB")
  picture = noise.convert(options.pop("mode", "RGB"))
  data = encode(picture, "JPEG", exif=exif_of(orientation), **options)
  expected = image_files.to_rgb(Image.open(io.BytesIO(data)))
  np.testing.assert_array_equal(image_files.decode(data), expected)


def test_pillow_decodes_what_libjpeg_warns_of():
  data = encode(Image.fromarray(pixels(67, 71)), "JPEG")
  start = data.index(b"\xff\xda") + 300
  data = data[:start] + b"\xff\xd9"  # the pixels end early
  expected = np.asarray(Image.open(io.BytesIO(data)))
  np.testing.assert_array_equal(image_files.decode(data), expected)


def test_pillow_does_not_decode_a_sound_jpeg(monkeypatch):
  data = encode(Image.fromarray(pixels(67, 71)), "JPEG")
  monkeypatch.delattr(image_files, "_rgb")
  assert image_files.decode(data).shape == (67, 71, 3)


def test_decode_grayscale_and_one_bit():
  gray = pixels(5, 7)[:, :, 0]
  result = image_files.decode(encode(Image.fromarray(gray)))
  np.testing.assert_array_equal(result, np.stack([gray] * 3, axis=-1))
  bits = Image.fromarray(gray > 127)
  assert bits.mode == "1"
  result = image_files.decode(encode(bits))
  np.testing.assert_array_equal(result[:, :, 1], (gray > 127) * 255)


def test_decode_palette():
  picture = Image.fromarray(pixels(5, 7)).quantize(11)
  assert picture.mode == "P"
  result = image_files.decode(encode(picture))
  np.testing.assert_array_equal(result, np.asarray(picture.convert("RGB")))


def test_transparency_is_laid_over_white():
  rgba = np.zeros((1, 3, 4), np.uint8)  # black: nothing, half, opaque
  rgba[0, :, 3] = 0, 128, 255
  result = image_files.decode(encode(Image.fromarray(rgba)))
  np.testing.assert_array_equal(result[0, :, 2], [255, 127, 0])
  result = image_files.decode(encode(Image.fromarray(rgba).convert("LA")))
  np.testing.assert_array_equal(result[0, :, 0], [255, 127, 0])


def test_palette_with_a_transparent_entry():
  picture = Image.new("P", (3, 1))
  picture.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
  picture.putdata([0, 1, 2])
  result = image_files.decode(encode(picture, transparency=1))
  np.testing.assert_array_equal(
    result[0], [[10, 20, 30], [255, 255, 255], [70, 80, 90]]
  )


def test_decode_cmyk_jpeg():
  picture = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
  result = image_files.decode(encode(picture, "JPEG", quality=95))
  np.testing.assert_allclose(result[3, 3], [255, 0, 0], rtol=0, atol=4)


# The stored picture that a viewer turns upright, by orientation tag.
STORED = {
  1: lambda x: x,
  2: lambda x: x[:, ::-1],
  3: lambda x: x[::-1, ::-1],
  4: lambda x: x[::-1],
  5: lambda x: x.swapaxes(0, 1),
  6: lambda x: np.rot90(x, 1),
  7: lambda x: x[::-1, ::-1].swapaxes(0, 1),
  8: lambda x: np.rot90(x, -1),
}
UNDEFINED = (0, 9, 255)  # of EXIF; they count as 1

XMP = (
  '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="%d"/>'
  "</x:xmpmeta>"
)


def ramp(height, width):
  """Gray that differs from corner to corner, and survives lossy formats."""
  y, x = np.mgrid[:height, :width]
  gray = (2 * y + 3 * x).astype(np.uint8)
  return np.repeat(gray[:, :, None], 3, axis=2)


def exif_of(orientation):
  exif = Image.Exif()
  exif[0x0112] = orientation
  return exif


def chunk(kind, data):
  check = zlib.crc32(kind + data).to_bytes(4, "big")
  return struct.pack(">I", len(data)) + kind + data + check


def png_with(picture, *chunks, late):
  """A PNG with more chunks, before its pixels or behind them."""
  data = encode(picture)
  place = -12 if late else 33
  return data[:place] + b"".join(chunks) + data[place:]


def png_exif(picture, orientation, late=True):
  block = exif_of(orientation).tobytes().removeprefix(b"Exif\0\0")
  return png_with(picture, chunk(b"eXIf", block), late=late)


def png_xmp(picture, orientation, late=True):
  text = b"XML:com.adobe.xmp\0\0\0\0\0" + (XMP % orientation).encode()
  return png_with(picture, chunk(b"iTXt", text), late=late)


def saved(kind, **options):
  def write(picture, orientation):
    exif = exif_of(orientation)
    if kind == "TIFF":  # which holds its tags among its own
      return encode(picture, kind, exif=exif, **options)
    return encode(picture, kind, exif=exif.tobytes(), **options)

  return write


def heic(picture, orientation):
  pillow_heif = pytest.importorskip("pillow_heif")
  file = io.BytesIO()
  image = pillow_heif.from_pillow(picture)
  image.save(file, exif=exif_of(orientation).tobytes(), quality=95)
  return file.getvalue()


def tiff_xmp(picture, orientation):
  return encode(picture, "TIFF", tiffinfo={700: (XMP % orientation).encode()})


ORIENTED = {
  "jpeg": saved("JPEG", quality=95),
  "mpo": saved("MPO", quality=95),
  "png": saved("PNG"),
  "png, eXIf first": functools.partial(png_exif, late=False),
  "png, eXIf last": png_exif,
  "png, XMP first": functools.partial(png_xmp, late=False),
  "png, XMP last": png_xmp,
  "webp": saved("WEBP", lossless=True),
  "webp, lossy": saved("WEBP", quality=95),
  "tiff": saved("TIFF"),
  "tiff, lzw": saved("TIFF", compression="tiff_lzw"),
  "tiff, XMP": tiff_xmp,
  "avif": saved("AVIF", quality=95),
  "heic": heic,
}


@pytest.mark.parametrize(
  ("name", "orientation"),
  [
    (name, orientation)
    for name in ORIENTED
    for orientation in (*STORED, *UNDEFINED)
    # libtiff writes no other values; in XMP a value is one digit.
    if not (name == "tiff, lzw" and orientation in UNDEFINED)
    and not ("XMP" in name and orientation > 9)
  ],
)
def test_size_and_pixels_stand_upright(name, orientation):
  upright = ramp(29, 17)
  turn = STORED.get(orientation, STORED[1])
  stored = Image.fromarray(np.ascontiguousarray(turn(upright)))
  data = ORIENTED[name](stored, orientation)
  assert image_files.size(data) == (29, 17)
  found = image_files.decode(data)
  assert found.shape == upright.shape
  np.testing.assert_allclose(found.astype(int), upright, rtol=0, atol=8)
  if name != "heic":  # a picture that was opened is like its file
    with Image.open(io.BytesIO(data)) as opened:
      np.testing.assert_array_equal(image_files.to_rgb(opened), found)


@pytest.mark.parametrize(
  "block", [b"", b"Exif\0\0", b"Exif\0\0MM\0*\0\0\xff\xff", b"\xff" * 40]
)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.filterwarnings("ignore:Corrupt EXIF")  # by Pillow
def test_exif_that_cannot_be_read_turns_nothing(kind, block):
  data = encode(Image.fromarray(ramp(5, 7)), kind, exif=block)
  assert image_files.size(data) == (5, 7)
  assert image_files.decode(data).shape == (5, 7, 3)


def test_a_size_needs_no_pixels(tmp_path):
  """Of a PNG of 9001 x 9001 pixels none is there to be decoded."""
  head = struct.pack(">IIBBBBB", 9001, 9001, 8, 2, 0, 0, 0)
  noise = chunk(b"IDAT", bytes(99))
  block = exif_of(6).tobytes().removeprefix(b"Exif\0\0")
  chunks = [chunk(b"IHDR", head), noise, noise, chunk(b"eXIf", block)]
  data = b"\x89PNG\r\n\x1a\n" + b"".join(chunks) + chunk(b"IEND", b"")
  assert image_files.size(data) == (9001, 9001)
  (tmp_path / "a.png").write_bytes(data)
  assert image_files.size(tmp_path / "a.png") == (9001, 9001)
  with pytest.raises(ValueError, match="truncated or damaged image of"):
    image_files.decode(data)


@pytest.mark.parametrize("part", [0.3, 0.6, 0.95])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_size_of_a_file_that_is_cut_short(kind, part, tmp_path):
  data = encode(Image.fromarray(pixels(67, 71)), kind, exif=exif_of(1))
  path = tmp_path / "a.png"
  path.write_bytes(data[: int(len(data) * part)])
  for read in (image_files.size, image_files.decode):
    with pytest.raises(
      ValueError, match=rf"^b:7: {path}: truncated or damaged image of \d+ byte"
    ) as info:
      read(path, where="b:7")
    assert "\n" not in str(info.value)


def test_a_thumbnail_is_no_end_of_a_jpeg():
  exif = exif_of(1)
  exif[0x927C] = encode(Image.new("RGB", (3, 3)), "JPEG")
  data = encode(Image.fromarray(pixels(67, 71)), "JPEG", exif=exif)
  assert image_files.size(data) == (67, 71)
  assert image_files.size(data + bytes(70_000)) == (67, 71)
  with pytest.raises(ValueError, match="truncated or damaged image"):
    image_files.size(data[:-2])


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("part", [0.3, 0.6, 0.95])
def test_truncated_files(kind, part):
  data = encode(Image.fromarray(pixels(67, 71)), kind)
  data = data[: int(len(data) * part)]
  with pytest.raises(ValueError, match=r"^a\.jsonl:7: .*") as info:
    image_files.decode(data, where="a.jsonl:7")
  assert "\n" not in str(info.value)
  assert str(len(data)) in str(info.value)


def test_damaged_bytes_never_escape_as_another_error():
  data = bytearray(encode(Image.fromarray(pixels(11, 13)), "PNG"))
  rng = np.random.default_rng(0)
  refused = 0
  for _ in range(200):
    damaged = bytearray(data)
    for position in rng.integers(8, len(data), 3):
      damaged[position] ^= 1 << rng.integers(8)
    try:
      image_files.decode(bytes(damaged))
    except ValueError as error:
      assert str(error).startswith("image: ") and "\n" not in str(error)
      refused += 1
  assert refused > 100


@pytest.mark.parametrize(
  "data", [b"", b"<html>\nno such page</html>", b"GIF89a"]
)
def test_not_an_image(data):
  with pytest.raises(
    ValueError, match=rf"^x\.png: not a readable image: {len(data)} bytes"
  ) as info:
    image_files.decode(data, where="x.png")
  assert "\n" not in str(info.value)


def header_of(width, height):
  """A PNG that claims a size; nothing but the claim is read."""
  data = bytearray(encode(Image.new("L", (1, 1))))
  data[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
  data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
  return bytes(data)


@pytest.mark.parametrize("size", [(10_000, 10_000), (60_000, 60_000)])
def test_bombs_are_refused_by_their_size(size):
  with pytest.raises(ValueError, match=r"x\.png: image is too large") as info:
    image_files.decode(header_of(*size), where="x.png")
  assert "\n" not in str(info.value)


def test_max_pixels(monkeypatch):
  data = encode(Image.new("L", (101, 103)))
  monkeypatch.setattr(image_lib, "MAX_PIXELS", 101 * 103)
  image_files.decode(data)
  monkeypatch.setattr(image_lib, "MAX_PIXELS", 101 * 103 - 1)
  with pytest.raises(
    ValueError, match="too large: 101x103 pixels, at most 10402 "
  ):
    image_files.decode(data)


@pytest.mark.parametrize("size", [(0, 5), (5, 0)])
def test_empty_image(size):
  with pytest.raises(ValueError, match=r"x\.png: not a readable"):
    image_files.decode(header_of(*size), where="x.png")


def tiff(samples, bits, photometric=1, sample_format=1, channels=1):
  """A TIFF of one row, in the byte order of the machine that is usual."""
  tags = {
    256: (4, len(samples) * 8 // (bits * channels)),
    257: (4, 1),
    258: (3, bits),
    259: (3, 1),
    262: (3, photometric),
    273: (4, 8),
    277: (3, channels),
    278: (4, 1),
    279: (4, len(samples)),
    339: (3, sample_format),
  }
  samples += bytes(len(samples) % 2)
  entries = b"".join(
    struct.pack("<HHII", tag, kind, 1, value)
    for tag, (kind, value) in tags.items()
  )
  start = struct.pack("<2sHI", b"II", 42, 8 + len(samples))
  return start + samples + struct.pack("<H", len(tags)) + entries + bytes(4)


def png(samples, bits, color, *chunks):
  """A PNG of one row of packed samples, and chunks before them."""
  channels = {0: 1, 2: 3, 4: 2, 6: 4}[color]
  width = len(samples) * 8 // (bits * channels)
  head = struct.pack(">IIBBBBB", width, 1, bits, color, 0, 0, 0)
  data = chunk(b"IDAT", zlib.compress(b"\0" + samples))
  parts = [chunk(b"IHDR", head), *chunks, data, chunk(b"IEND", b"")]
  return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def words(*values, order=">"):
  return np.array(values, f"{order}u2").tobytes()


def row(data):
  return image_files.decode(data)[0].tolist()


def grays(data):
  found = image_files.decode(data)[0]
  assert (found == found[:, :1]).all()
  return found[:, 0].tolist()


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch):
  monkeypatch.setattr(image_files, "said", set())


@pytest.mark.parametrize(
  ("values", "levels", "bits"),
  [
    ((0, 255, 256, 0x1234, 0xFF00, 0xFFFF), (0, 0, 1, 0x12, 255, 255), 16),
    ((0, 15, 16, 2049, 4095), (0, 0, 1, 128, 255), 12),
    ((0, 1, 128, 255), (0, 1, 128, 255), 8),
    ((0, 4096, 4095), (0, 16, 15), 16),
  ],
)
def test_sixteen_bits_or_what_they_hold(values, levels, bits, caplog):
  """The high byte, as TensorFlow's; of 12 bits it would be black."""
  made = Image.fromarray(np.array([values], np.uint16))
  assert made.mode == "I;16"
  files = [
    png(words(*values), 16, 0),
    encode(made, "TIFF"),
    encode(made, "TIFF", compression="tiff_lzw"),
    tiff(words(*values, order="<"), 16),
  ]
  for data in files:
    assert grays(data) == list(levels)
  assert image_files.to_rgb(made)[0, :, 0].tolist() == list(levels)
  expected = (
    [] if bits == 16 else [f"no value above {(1 << bits) - 1}: is read"]
  )
  assert len(caplog.records) == len(expected)
  assert all(part in caplog.text for part in expected)


def test_white_is_zero_in_sixteen_bits():
  data = words(0, 0x1234, 0xFFFF, order="<")
  assert grays(tiff(data, 16, photometric=0)) == [255, 255 - 0x12, 0]


def test_twelve_bits_that_the_file_states(caplog):
  packed = bytes([0x00, 0x00, 0x10, 0x80, 0x10, 0x20])  # 0 16 2049 32
  assert grays(tiff(packed, 12)) == [0, 1, 128, 2]
  assert grays(b"P5 4 1 4095\n" + words(0, 16, 2049, 4095)) == [0, 1, 128, 255]
  assert not caplog.records


@pytest.mark.parametrize(
  ("values", "levels"),
  [
    ((0, 256, 65535), [0, 1, 255]),
    ((0, 16, 4095), [0, 1, 255]),
    ((0, 256, 65536), "integers from 0 to 65536, whose white is not known"),
    ((-1, 256, 65535), "integers from -1 to 65535, whose white is not known"),
  ],
)
def test_integers_of_32_bits(values, levels):
  data = tiff(np.array(values, "<i4").tobytes(), 32, sample_format=2)
  if isinstance(levels, list):
    assert grays(data) == levels
    return
  with pytest.raises(ValueError, match=f"^a.tif: {levels}"):
    image_files.decode(data, where="a.tif")


def test_signed_integers_of_16_bits():
  data = tiff(words(0, 16, 0xFFFF, order="<"), 16, sample_format=2)
  with pytest.raises(ValueError, match="integers from -1 to 16, whose white"):
    image_files.decode(data)


@pytest.mark.parametrize("photometric", [0, 1])
def test_floating_point_values(photometric):
  def make(*values):
    data = np.array(values, "<f4").tobytes()
    return tiff(data, 32, photometric=photometric, sample_format=3)

  levels = [0, 51, 128, 255]
  levels = levels if photometric else [255 - level for level in levels]
  assert grays(make(0, 0.2, 0.5, 1)) == levels
  for bad in (-0.001, 1.001, 255, np.nan, np.inf):
    with pytest.raises(
      ValueError, match=r"^image: floating-point .* expected them in \[0, 1\]$"
    ):
      image_files.decode(make(0.2, bad))


@pytest.mark.parametrize(
  ("data", "expected"),
  [
    (png(words(0x1234, 0xFF00, 0), 16, 2), [[0x12, 255, 0]]),
    (png(words(0x1234, 0xFFFF, 0x1234, 0), 16, 4), [[0x12] * 3, [255] * 3]),
    (
      png(words(0x1234, 0xFF00, 0, 0xFFFF, 1, 2, 3, 0), 16, 6),
      [[0x12, 255, 0], [255] * 3],
    ),
    (
      tiff(words(0x1234, 0xFF00, 0, order="<"), 16, photometric=2, channels=3),
      [[0x12, 255, 0]],
    ),
    (b"P6 1 1 4095\n" + words(0, 4095, 2049), [[0, 255, 128]]),
    (b"P6 1 1 65535\n" + words(0, 65535, 0x1234), [[0, 255, 0x12]]),
  ],
)
def test_sixteen_bits_in_colour(data, expected):
  assert row(data) == expected


def test_dark_colours_of_sixteen_bits_are_told(caplog):
  for _ in range(2):
    assert row(png(words(4095, 16, 0), 16, 2)) == [[15, 0, 0]]
  assert len(caplog.records) == 1
  assert "almost black, with no value above 4095 of 65535" in caplog.text
  caplog.clear()
  image_files.said.clear()
  row(png(words(0, 0, 0), 16, 2))  # black indeed
  row(png(bytes([15, 0, 0]), 8, 2))
  assert not caplog.records


@pytest.mark.parametrize(
  ("bits", "packed", "key", "expected"),
  [
    (1, bytes([0b10100000]), 1, [255, 0, 255, 0, 0, 0, 0, 0]),
    (1, bytes([0b10100000]), 0, [255] * 8),
    (2, bytes([0b00011011]), 1, [0, 255, 170, 255]),
    (4, bytes([0x05, 0xA2]), 5, [0, 255, 170, 34]),
    (8, bytes([0, 5, 170]), 5, [0, 255, 170]),
    (16, words(0x0500, 0x0501, 0xFF00), 0x0500, [255, 5, 255]),
  ],
)
def test_a_transparent_gray(bits, packed, key, expected):
  data = png(packed, bits, 0, chunk(b"tRNS", words(key)))
  assert grays(data) == expected


def test_a_transparent_colour():
  colours = bytes([1, 2, 3, 0, 0, 0, 1, 2, 4])
  data = png(colours, 8, 2, chunk(b"tRNS", words(1, 2, 3)))
  assert row(data) == [[255] * 3, [0, 0, 0], [1, 2, 4]]
  deep = words(0x0500, 0x0600, 0x0700, 1, 2, 3, 0xFFFF, 0, 0)
  data = png(deep, 16, 2, chunk(b"tRNS", words(0x0500, 0x0600, 0x0700)))
  assert row(data) == [[255] * 3, [0, 0, 0], [255, 0, 0]]


@pytest.mark.parametrize(
  ("mode", "colour", "expected"),
  [
    ("CMYK", (0, 255, 255, 0), (255, 0, 0)),
    ("CMYK", (0, 0, 0, 255), (0, 0, 0)),
    ("YCbCr", (76, 85, 255), (254, 0, 0)),
    ("LAB", (255, 128, 128), (255, 255, 255)),
    ("LAB", (138, 209, 198), (255, 0, 0)),  # CIE 54.3, 80.8, 69.9 at D50
    ("RGBA", (9, 8, 7, 0), (255, 255, 255)),
    ("1", 1, (255, 255, 255)),
    ("L", 7, (7, 7, 7)),
  ],
)
def test_colours_of_every_kind(mode, colour, expected):
  picture = Image.new(mode, (5, 3), colour)
  found = image_files.decode(encode(picture, "TIFF"))
  assert found.shape == (3, 5, 3)
  np.testing.assert_allclose(found[1, 2].astype(int), expected, atol=5)
  np.testing.assert_array_equal(image_files.to_rgb(picture), found)
  assert picture.mode == mode


SUN = struct.pack(">8I", 0x59A66A95, 2, 1, 24, 6, 1, 0, 0) + bytes(range(6))
PSD = (
  struct.pack(">4sH6xHIIHH", b"8BPS", 1, 3, 1, 2, 8, 3)
  + bytes(12)  # no palette, no resources, no layers
  + bytes(2)
  + bytes([2, 5, 1, 4, 0, 3])
)
XPM = b"""/* XPM */
static char *a[] = {
"2 1 2 1",
"a c #020100",
"b c #050403",
"ab"};
"""


@pytest.mark.parametrize("kind", image_files.FORMATS)
def test_every_format(kind, tmp_path):
  upright = ramp(29, 31)
  if kind in ("ICO", "ICNS"):  # squares of certain sides
    upright = ramp(32, 32)
  picture = Image.fromarray(upright)
  made = {"SUN": SUN, "PSD": PSD, "XPM": XPM}
  if kind in made:
    data, upright = made[kind], np.array([[[2, 1, 0], [5, 4, 3]]])
  elif kind == "XBM":
    data = encode(Image.fromarray(upright[:, :, 0] > 60), kind)
    upright = np.where(upright > 60, 255, 0)
  elif kind == "HEIF":
    data = heic(picture, 1)
  elif kind == "ICNS":
    data = b"icns" + struct.pack(">I", 16 + 3072 + 1032)
    data += b"il32" + struct.pack(">I", 8 + 3072) + upright.tobytes()
    data += b"l8mk" + struct.pack(">I", 8 + 1024) + b"\xff" * 1024
  else:
    data = encode(picture, kind)
  found = image_files.decode(data)
  assert found.shape == upright.shape
  np.testing.assert_allclose(found.astype(int), upright, rtol=0, atol=9)
  path = tmp_path / f"a{image_files.suffix(data)}"
  path.write_bytes(data)
  assert path.suffix == image_files.FORMATS[kind][0]
  for file in (data, path, str(path)):
    assert image_files.size(file) == upright.shape[:2]
    np.testing.assert_array_equal(image_files.decode(file), found)


@pytest.mark.parametrize(
  "data",
  [
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 5 7\n",
    b"SIMPLE  =                    T" + b" " * 3000,
    b"\xd7\xcd\xc6\x9a" + bytes(60),
    b"GRIB" + bytes(60),
    b"<svg xmlns='http://www.w3.org/2000/svg'/>",
  ],
)
def test_drawings_and_measurements_are_no_images(data):
  for read in (image_files.size, image_files.decode, image_files.suffix):
    with pytest.raises(
      ValueError,
      match=f"^a:1: not a readable image: {len(data)} bytes that beg",
    ):
      read(data, where="a:1")


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "WEBP", "PNG", "AVIF"])
def test_the_first_of_several_frames_is_told_once(kind, caplog):
  frames = [Image.fromarray(ramp(11, 13)), Image.new("RGB", (13, 11), "white")]
  options = {"save_all": True, "append_images": frames[1:]}
  data = encode(frames[0], kind, **options)
  for _ in range(2):
    found = image_files.decode(data, where="a.jsonl:3")
    assert image_files.size(data) == (11, 13)
  np.testing.assert_allclose(found.astype(int), ramp(11, 13), rtol=0, atol=12)
  (record,) = caplog.records
  assert record.levelno == logging.WARNING
  assert record.getMessage().startswith("a.jsonl:3: has several frames, of whi")


def test_a_heic_without_its_package(monkeypatch):
  data = heic(Image.fromarray(ramp(11, 13)), 1)
  real = builtins.__import__

  def without(name, *args, **kwargs):
    if name == "pillow_heif":
      raise ImportError(name)
    return real(name, *args, **kwargs)

  monkeypatch.setattr(builtins, "__import__", without)
  for read in (image_files.size, image_files.decode):
    with pytest.raises(
      ValueError,
      match=r'^a:1: HEIC .* missing: pip install "paligemma\[heic\]"$',
    ):
      read(data, where="a:1")


def test_a_picture_that_was_opened_is_left_alone():
  data = png(bytes([0x05, 0xA2]), 4, 0, chunk(b"tRNS", words(5)))
  with Image.open(io.BytesIO(data)) as picture:
    for _ in range(2):
      image_files.to_rgb(picture)
    assert picture.info["transparency"] == 5
    assert picture.mode == "L"
  upright = Image.fromarray(ramp(5, 7))
  upright.getexif()[0x0112] = 6
  for _ in range(2):
    assert image_files.to_rgb(upright).shape == (7, 5, 3)
  assert upright.size == (7, 5)
  cut = encode(Image.fromarray(pixels(31, 37)))[:500]
  with (
    Image.open(io.BytesIO(cut)) as picture,
    pytest.raises(ValueError, match=r"^images\[0\]: truncated or damaged im"),
  ):
    image_files.to_rgb(picture, where="images[0]")


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("mode", ["1", "L", "P", "I;16", "LA"])
def test_stored_keeps_values_and_turns(mode, kind, monkeypatch):
  values = pixels(5, 7)[:, :, 0]
  made = Image.fromarray(values)
  if mode == "P":
    made.putpalette([7] * 768)
  elif mode == "I;16":
    made = Image.fromarray(257 * values.astype(np.uint16))
  elif mode != "L":
    made = made.convert(mode)
  exif = Image.Exif()
  exif[0x0112] = 6
  data = encode(made, kind, exif=exif)
  found = image_files.stored(data)
  assert found.mode == mode and found.size[::-1] == image_files.size(data)
  np.testing.assert_array_equal(
    np.asarray(found), np.rot90(np.asarray(made), -1)
  )
  monkeypatch.setattr(image_lib, "MAX_PIXELS", 34)
  with pytest.raises(
    ValueError, match=r"^here: image is too large: .x. pixels"
  ):
    image_files.stored(data, where="here")
