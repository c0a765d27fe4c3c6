"""Pictures of any type -> pixels: encoded, of Pillow, or an array."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from paligemma.data import files, image_files
from paligemma.data import image as image_lib

# What `pixels` takes; arrays of JAX and NumPy alike, known by their dtype.
Picture = bytes | bytearray | memoryview | Image.Image | np.ndarray | Any

EXPECTED = (
  "one picture: a file's contents, a picture of PIL, or an array, uint8 or "
  "floating point in [0, 1], of shape [height, width, 3]"
)


def pixels(image: Picture, *, where: str = "image") -> image_lib.Pixels:
  """Returns the RGB pixels of a picture of any type.

  Args:
    image: Contents of a file, or a picture of Pillow, see image_files.to_rgb.
      Or an array of NumPy, JAX or PyTorch: uint8[H, W, 3], which is returned
      unchanged; uint8[H, W] or [H, W, 1], which is gray; uint8[H, W, 4], whose
      last channel is opacity, over white. Floating-point arrays hold the same
      values over 255; those outside of [0, 1] are an error.
    where: Prefix of error messages.
  """
  if isinstance(image, bytes | bytearray | memoryview):
    return image_files.decode(bytes(image), where=where)
  if isinstance(image, Image.Image):
    return image_files.to_rgb(image, where=where)
  if is_array(image):
    try:
      return _array_pixels(np.asarray(image))
    except ValueError as error:
      raise ValueError(f"{where}: {error}") from None
  is_list = isinstance(image, Sequence) and not isinstance(image, str)
  found = f"a list of {len(image)}" if is_list else type(image).__name__
  raise ValueError(f"{where}: found {found}, expected {EXPECTED}")


def size(image: Picture, *, where: str = "image") -> image_lib.Size:
  """Returns (height, width) of `pixels`, without decoding encoded ones."""
  if isinstance(image, bytes):
    return image_files.size(image, where=where)
  height, width, _ = pixels(image, where=where).shape
  return height, width


def read(
  path: str | os.PathLike,
  *,
  root: str | os.PathLike = "",
  where: str | None = None,
) -> bytes:
  """Returns the contents of an image file, not decoded.

  Arguments and errors as of files.resolve and files.read.
  """
  return files.read(
    files.resolve(path, root),
    what="image",
    where=where,
    max_bytes=image_files.MAX_BYTES,
  )


def is_array(image: Any) -> bool:
  """Returns whether it is an array of NumPy, JAX or PyTorch."""
  return hasattr(image, "__array__") and hasattr(image, "dtype")


def _array_pixels(array):
  found = f"{array.dtype}{list(array.shape)}"
  channels = array.shape[2] if array.ndim == 3 else 1
  if array.ndim not in (2, 3) or channels not in (1, 3, 4):
    is_first = array.ndim == 3 and array.shape[0] in (1, 3, 4)
    hint = "; its channels come first, move them last" if is_first else ""
    raise ValueError(f"found {found}, expected {EXPECTED}{hint}")
  if not array.size:
    raise ValueError(f"found an empty image, {found}")
  if np.issubdtype(array.dtype, np.floating):
    array = image_files.from_unit(array)
  elif array.dtype != np.uint8:
    raise ValueError(f"found {found}, expected {EXPECTED}")
  if channels == 4:
    return image_files.to_rgb(Image.fromarray(array))
  if channels == 3:
    return array
  return np.repeat(array.reshape(*array.shape[:2], 1), 3, axis=2)
