"""Image files: upright sizes from their headers, and upright RGB pixels.

`size` and `decode` apply the EXIF orientation in the same way, so that boxes
made with the one fit the pixels of the other.
"""

import contextlib
import io
import logging
import os
import struct
from collections.abc import Iterator

import numpy as np
import simplejpeg
from etils import epath
from jaxtyping import Float, UInt8
from PIL import ExifTags, Image, UnidentifiedImageError

from paligemma.data import files
from paligemma.data import image as image_lib

File = bytes | epath.PathLike  # contents, or a path

_NAMED_LIKE_SUFFIX = (
  *("WEBP", "GIF", "BMP", "AVIF", "PSD", "QOI", "DDS", "ICNS", "ICO", "DIB"),
  *("PCX", "SGI", "XBM", "XPM", "TGA"),  # TGA last: it has no signature
)
# Name in Pillow -> suffixes, the usual one first. Left out are formats that
# Pillow renders with another program (EPS: Ghostscript; WMF: Windows) or only
# identifies (BUFR, GRIB, HDF5, MPEG), that hold measurements instead of colours
# (FITS, SPIDER, McIdas), and textures and formats of single programs.
FORMATS = {
  "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
  "PNG": (".png", ".apng"),
  "TIFF": (".tif", ".tiff"),
  "HEIF": (".heic", ".heif", ".hif"),
  "JPEG2000": (".jp2", ".j2k", ".jpx"),
  "PPM": (".ppm", ".pgm", ".pbm", ".pnm", ".pfm"),
  "SUN": (".ras",),
  **{name: (f".{name.lower()}",) for name in _NAMED_LIKE_SUFFIX},
}
SUFFIXES = tuple(suffix for group in FORMATS.values() for suffix in group)

MAX_BYTES = 2**30  # more than MAX_PIXELS take in any format

_PILLOW = tuple(name for name in FORMATS if name != "HEIF")
_HEIC = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx")
# EXIF orientation -> what makes the stored picture upright; other values do not
# change it.
_TURNS = {
  2: Image.Transpose.FLIP_LEFT_RIGHT,
  3: Image.Transpose.ROTATE_180,
  4: Image.Transpose.FLIP_TOP_BOTTOM,
  5: Image.Transpose.TRANSPOSE,
  6: Image.Transpose.ROTATE_270,
  7: Image.Transpose.TRANSVERSE,
  8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = (5, 6, 7, 8)
_PNG_TEXTS = (b"eXIf", b"iTXt", b"tEXt", b"zTXt")
_PNG_HEADER = 33  # bytes of its signature and first chunk, which it needs

_log = logging.getLogger(__name__)
said = set()  # notes that this process has logged


def size(file: File, *, where: str | None = None) -> image_lib.Size:
  """Returns (height, width) of an upright image, from the header of its file.

  Arguments and errors as of `decode`. Pixels are not decoded; truncated PNG and
  JPEG files raise nevertheless.
  """
  with _opened(file, where) as (picture, orientation):
    return _upright_size(picture, orientation)


def suffix(file: File, *, where: str | None = None) -> str:
  """Returns the usual suffix of the format, ".png"; otherwise as `size`."""
  with _opened(file, where) as (picture, _):
    return FORMATS["JPEG" if picture.format == "MPO" else picture.format][0]


def decode(file: File, *, where: str | None = None) -> image_lib.Pixels:
  """Decodes an image to upright RGB pixels.

  `to_rgb` converts the colours; the EXIF orientation is applied, values other
  than 1 to 8 count as 1; of several frames the first is read, which is logged
  once.

  Args:
    file: In one of FORMATS. HEIC needs pillow-heif, the extra "heic".
    where: Prefix of errors, "train.jsonl:12". Default: the path, or "image".

  Raises:
    ValueError: Not readable, not an image, truncated or damaged, empty, larger
      than image.MAX_PIXELS, or of values without a known range.

  JPEG files are decoded by simplejpeg, 1.7 times as fast as Pillow, and by
  Pillow where it cannot; their pixels are equal.

  Differs from tf.io.decode_image (big_vision), which reads fewer formats, drops
  the alpha channel, so that black text on transparency becomes black on black,
  and ignores EXIF. Its default transform of JPEG is up to 17 levels of 255 away
  from that of Pillow, which is TensorFlow's "INTEGER_ACCURATE".
  """
  with _opened(file, where) as (picture, orientation):
    several = getattr(picture, "is_animated", False)
    # Other frames are previews in a JPEG and layers in a PSD.
    if several and picture.format not in ("MPO", "PSD", "HEIF"):
      _log_once(
        _shown(file, where), "has several frames, of which the first is read"
      )
    expected = _upright_size(picture, orientation)
    pixels = _jpeg(picture, orientation)
    if pixels is None:
      pixels = _rgb(picture, orientation, _shown(file, where))
    if pixels.shape[:2] != expected:
      raise _Unusable(
        "truncated or damaged image: its head says "
        f"{expected[0]}x{expected[1]} pixels (height x width), it has "
        f"{pixels.shape[0]}x{pixels.shape[1]}"
      )
    return pixels


def stored(file: File, *, where: str | None = None) -> Image.Image:
  """Returns an upright image with the values of its file, for masks.

  Gray values, palette indices and transparency are kept. Arguments and errors
  as of `decode`; any range of values is allowed.
  """
  with _opened(file, where) as (picture, orientation):
    return _upright(picture, orientation)


def to_rgb(picture: Image.Image, *, where: str = "image") -> image_lib.Pixels:
  """Returns the upright RGB pixels of a picture of Pillow.

  Grayscale, palette, CMYK, YCbCr and Lab become RGB; transparency is blended
  with white. Of 16 bits the high byte is kept, as by TensorFlow and libpng's
  strip_16. If no value of a grayscale picture exceeds 4095 or 255, that would
  be black: it is read as one of 12 or 8 bits, which is logged once. Integers of
  32 bits are read likewise and must not exceed 65535. Floating-point values
  must lie in [0, 1].

  The EXIF orientation is applied. Errors as of `decode`.
  """
  with _one_line(where, "image"):
    return _rgb(picture, _orientation(picture), where)


def from_unit(values: Float[np.ndarray, "..."]) -> UInt8[np.ndarray, "..."]:
  """Maps [0, 1] to [0, 255], rounding to nearest; refuses other values."""
  low, high = values.min(), values.max()
  if not (low >= 0 and high <= 1):  # nor NaN
    raise _Unusable(
      f"floating-point values from {low:.6g} to {high:.6g}, expected them in "
      "[0, 1]"
    )
  return np.rint(values * np.float32(255)).astype(np.uint8)


class _Unusable(ValueError):
  """A problem whose message is shown as it is, unlike those of Pillow."""


@contextlib.contextmanager
def _opened(file, where) -> Iterator[tuple[Image.Image, int]]:
  """Yields the picture of a file, not decoded, and its EXIF orientation."""
  if isinstance(file, bytes):
    stream = io.BytesIO(file)
  else:
    stream = files.open_binary(file, what="image", where=where)
  count = stream.seek(0, os.SEEK_END)
  stream.seek(0)
  with stream, _one_line(_shown(file, where), f"image of {count} bytes"):
    head = stream.read(32)
    stream.seek(0)
    try:
      picture = _open(stream, head)
    except UnidentifiedImageError:
      raise _Unusable(
        f"not a readable image: {count} bytes that begin with {head[:16]!r}; "
        "read is what Pillow knows of JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF, "
        "HEIC, JPEG 2000 and some more formats"
      ) from None
    with picture:
      if picture.width * picture.height > image_lib.MAX_PIXELS:
        raise _Unusable(
          f"image is too large: {picture.width}x{picture.height} pixels, at "
          f"most {image_lib.MAX_PIXELS} in all"
        )
      if picture.format in ("JPEG", "MPO"):
        _check_jpeg(stream)
      yield picture, _orientation(picture)


@contextlib.contextmanager
def _one_line(where, what):
  """Turns any error of Pillow, which has a dozen kinds, into one line."""
  try:
    yield
    return
  except _Unusable as error:
    problem = str(error)
  except (Image.DecompressionBombError, Image.DecompressionBombWarning) as e:
    problem = f"image is too large: {e}"
  except Exception as error:
    problem = f"truncated or damaged {what}: {str(error)[:200]}"
  raise ValueError(" ".join(f"{where}: {problem}".split()))


def _shown(file, where):
  if isinstance(file, bytes):
    return where or "image"
  return f"{where}: {file}" if where else str(file)


def _open(stream, head):
  length = struct.unpack(">I", head[:4])[0] if len(head) >= 16 else 0
  brands = head[8 : min(length, len(head))] if head[4:8] == b"ftyp" else b""
  if brands[:4] in _HEIC or (
    brands[:4] in (b"mif1", b"msf1") and any(b in brands for b in _HEIC)
  ):
    try:
      from pillow_heif import HeifImageFile
    except ImportError:
      raise _Unusable(
        "HEIC images are decoded by pillow-heif, which is missing: pip install "
        '"paligemma[heic]"'
      ) from None
    return HeifImageFile(stream)
  return Image.open(stream, formats=_PILLOW)


def _upright_size(picture, orientation):
  sideways = orientation in _SIDEWAYS
  if picture.format == "TIFF":  # Pillow states its upright size
    tag = picture.tag_v2.get(ExifTags.Base.Orientation)
    sideways = sideways != (tag in _SIDEWAYS)
  return picture.size if sideways else picture.size[::-1]


def _orientation(picture):
  """Returns the EXIF orientation; in a PNG it may come after the pixels."""
  if picture.format == "PNG" and picture.tile:  # before it is decoded
    position = picture.fp.tell()
    late = _late_chunks(picture.fp)
    picture.fp.seek(position)
    with contextlib.suppress(Exception):  # damaged
      head = Image.open(io.BytesIO(late), formats=("PNG",))
      if (orientation := _exif(head)) != 1:
        return orientation
  return _exif(picture)


def _exif(picture):
  try:
    # Not that of PngImageFile, which decodes the pixels first.
    exif = Image.Image.getexif(picture)
    return exif.get(ExifTags.Base.Orientation, 1)
  except Exception:  # damaged EXIF: Pillow raises as many kinds
    return 1


def _late_chunks(stream):
  """Returns a PNG with the text and EXIF chunks after the pixels, not these.

  Pillow would decode the pixels to reach them; the headers of chunks say where
  the next one is.
  """
  end = stream.seek(0, os.SEEK_END)
  stream.seek(0)
  chunks, seen = [stream.read(_PNG_HEADER)], False
  start = _PNG_HEADER
  while start + 8 <= end:
    stream.seek(start)
    length, kind = struct.unpack(">I4s", stream.read(8))
    after = start + length + 12
    if kind == b"IEND":
      break
    if kind == b"IDAT":
      seen = True
      if after > end:
        raise _ends_early(end)
    elif seen and after <= end and kind in _PNG_TEXTS:
      stream.seek(start)
      chunks.append(stream.read(length + 12))
    start = after
  return b"".join([*chunks, bytes(4), b"IDAT"])


def _check_jpeg(stream):
  position = stream.tell()
  end = stream.seek(0, os.SEEK_END)
  for start in (max(end - 65536, position), position):
    stream.seek(start)
    if b"\xff\xd9" in stream.read():
      stream.seek(position)
      return
  raise _ends_early(end)


def _ends_early(count):
  return _Unusable(
    f"truncated or damaged image of {count} bytes: the file ends within its "
    "pixels"
  )


def _jpeg(picture, orientation):
  """Returns upright pixels of a sound JPEG, equal to those of Pillow.

  None for another format, CMYK, and whatever libjpeg warns of.
  """
  if picture.format not in ("JPEG", "MPO") or picture.mode not in ("L", "RGB"):
    return None
  picture.fp.seek(0)
  try:
    pixels = simplejpeg.decode_jpeg(
      picture.fp.read(), "RGB", fastdct=False, fastupsample=False
    )
  except ValueError:
    return None
  if orientation in _TURNS:
    picture = Image.fromarray(pixels).transpose(_TURNS[orientation])
    return np.asarray(picture)
  return pixels


def _rgb(picture, orientation, where):
  raw = str(picture.tile[0].args) if getattr(picture, "tile", None) else ""
  key = _transparent_key(picture, raw)
  bits = _stated_bits(picture)
  inverted = picture.format == "TIFF" and picture.tag_v2.get(262) == 0
  picture = _upright(picture, orientation)
  if picture.mode == "F" or picture.mode.startswith("I"):
    values = np.asarray(picture)
    if picture.mode == "F":
      gray = from_unit(values)
    else:
      gray, bits = _integers(values, bits, where)
    if inverted:
      gray = 255 - gray
    if key is not None:
      gray[values == key] = 255
    _note_black(gray, bits, where)
    return np.repeat(gray[:, :, None], 3, axis=2)
  if picture.has_transparency_data:
    if key is not None:
      picture = picture.copy()
      picture.info["transparency"] = key
    white = Image.new("RGBA", picture.size, "white")
    picture = Image.alpha_composite(white, picture.convert("RGBA"))
  if picture.mode != "RGB":
    picture = picture.convert("RGB")
  pixels = np.asarray(picture)
  if ";16" in raw:
    _note_black(pixels, 16, where)
  return pixels


def _upright(picture, orientation):
  picture.load()
  if orientation in _TURNS and picture.format != "TIFF":  # turned by Pillow
    return picture.transpose(_TURNS[orientation])
  return picture


def _transparent_key(picture, raw):
  """Returns the transparent value of a PNG, scaled like the pixels."""
  key = picture.info.get("transparency")
  if picture.format != "PNG" or isinstance(key, bytes) or key is None:
    return None
  if isinstance(key, tuple):  # Pillow would compare the low byte
    return tuple(value >> 8 for value in key) if raw == "RGB;16B" else key
  return key * {"L;2": 85, "L;4": 17}.get(raw, 1)


def _stated_bits(picture):
  """Returns the bits of an integer, None if the file does not say."""
  if picture.format in ("PPM", "JPEG2000"):  # scaled by Pillow
    return 16
  if picture.format == "TIFF" and picture.tag_v2.get(258, (1,))[0] == 12:
    return 12
  return None


def _integers(values, bits, where):
  """Returns the high byte of integers of so many bits, and the bits."""
  low, high = int(values.min()), int(values.max())
  if low < 0 or high > 0xFFFF:
    raise _Unusable(
      f"integers from {low} to {high}, whose white is not known; expected 8 or "
      "16 bits a channel"
    )
  if bits is None:
    bits = next(bits for bits in (8, 12, 16) if high < 1 << bits)
    if bits < 16:
      _log_once(
        where,
        f"16 bits a channel, but no value above {(1 << bits) - 1}: is read as "
        f"{bits} bits; scale the values to 16 bits if that is wrong",
      )
  return (values >> (bits - 8)).astype(np.uint8), bits


def _note_black(pixels, bits, where):
  if bits == 16 and 0 < pixels.max() < 16:
    _log_once(
      where,
      "is almost black, with no value above 4095 of 65535; scale the values to "
      "16 bits if they have fewer",
    )


def _log_once(where, note):
  if note not in said:
    said.add(note)
    _log.warning("%s: %s (said once)", where, note)
