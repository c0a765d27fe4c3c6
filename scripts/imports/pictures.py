"""The sizes of image files, as training sees them."""

import io
import pathlib

from PIL import Image, UnidentifiedImageError

from paligemma.data import image as image_lib

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")

_ORIENTATION = 0x0112  # of EXIF; from 5 on, rows are columns


def size(
  file: pathlib.Path, where: str, stated: tuple[int, int] | None = None
) -> tuple[int, int]:
  """(height, width) of an image that stands upright; no pixel is decoded.

  Args:
    file: a JPEG, PNG or WebP file.
    where: what the message of an error begins with.
    stated: (height, width) that the annotations are for, if they say it.

  Raises:
    ValueError: no such file, or no image, or of another size.
  """
  with _open(file, where) as picture:
    stored = picture.height, picture.width
    turned = picture.getexif().get(_ORIENTATION, 1) >= 5
  found = stored[::-1] if turned else stored
  if stated is None or found == stated:
    return found
  reason = ""
  if stored == stated:
    reason = "; it is annotated as it was before its EXIF orientation"
  raise ValueError(
    f"{where}: annotated as {stated[0]}x{stated[1]} pixels (height x width), "
    f"but {file} has {found[0]}x{found[1]}{reason}"
  )


def suffix(data: bytes, where: str) -> str:
  """The suffix of a file with this contents, ".png"."""
  with _open(data, where) as picture:
    return {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp"}[picture.format]


def _open(file, where):
  name = "the image" if isinstance(file, bytes) else file
  try:
    opened = io.BytesIO(file) if isinstance(file, bytes) else file
    return Image.open(opened, formats=image_lib.FORMATS)
  except UnidentifiedImageError:
    raise ValueError(f"{where}: {name} is no JPEG, PNG or WebP image") from None
  except OSError as error:
    reason = error.strerror or error
    raise ValueError(f"{where}: missing image {name}: {reason}") from None
