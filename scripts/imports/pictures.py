"""The sizes of image files that are annotated, as training sees them."""

import pathlib

from paligemma.data import image_files

SUFFIXES = image_files.SUFFIXES


def size(
  file: pathlib.Path, where: str, stated: tuple[int, int] | None = None
) -> tuple[int, int]:
  """(height, width) of an image that stands upright, see image_files.size.

  Args:
    file: of any format in image_files.FORMATS.
    where: what the message of an error begins with.
    stated: (height, width) that the annotations are for, if they say it.

  Raises:
    ValueError: no such file, or no image, or of another size.
  """
  found = image_files.size(file, where=where)
  if stated is None or found == stated:
    return found
  reason = ""
  if found[::-1] == stated:
    reason = "; sides are swapped, as they are before its EXIF orientation"
  raise ValueError(
    f"{where}: annotated as {stated[0]}x{stated[1]} pixels (height x width), "
    f"but {file} has {found[0]}x{found[1]}{reason}"
  )


def suffix(data: bytes, where: str) -> str:
  """The suffix of a file with this contents, ".png"."""
  return image_files.suffix(data, where=where)
