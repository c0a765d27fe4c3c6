"""Pictures in requests: data URIs, base64, or addresses on allowed hosts."""

import base64
import binascii
from collections.abc import Sequence

import numpy as np

from paligemma import messages
from paligemma.data import pictures
from scripts.serving import fetching
from scripts.serving.errors import Refused
from scripts.serving.limits import Limits

# How files begin that browsers and cameras write. Pillow's readers of other
# formats see nothing of a request.
_BEGINNINGS = (
  *(b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"RIFF", b"BM"),
  *(b"II*\0", b"MM\0*"),
)


def read(
  text: str, where: str, limits: Limits, hosts: Sequence[str] = ()
) -> np.ndarray:
  """Decodes a picture.

  Args:
    text: "data:image/png;base64,...", base64 alone, or "https://...".
    where: the field that holds it, for errors.
    limits: its size in pixels is checked before it is decoded.
    hosts: from which pictures may be fetched.

  Returns:
    uint8[H, W, 3], upright.

  Raises:
    Refused: it is no such text, or no picture of that size.
  """
  try:
    if text.startswith(("http://", "https://")):
      data = fetching.fetch(text, hosts, limits.body_bytes)
    else:
      data = _decode(text)
    if not data.startswith(_BEGINNINGS) and data[4:8] != b"ftyp":
      raise ValueError(
        f"{len(data)} bytes that begin with {data[:8]!r} are no JPEG, PNG, "
        "WebP, GIF, BMP, TIFF, HEIC or AVIF"
      )
    height, width = pictures.size(data, where="picture")
    if height * width > limits.pixels:
      raise ValueError(
        f"{width}x{height} pixels, at most {limits.pixels:,} in all"
      )
    return pictures.pixels(data, where="picture")
  except ValueError as error:
    raise Refused(400, f"{where}: {error}", param=where) from None


def _decode(text):
  head, comma, _ = text[:100].partition(",")
  if text.startswith("data:"):
    if not comma or not head.startswith("data:image/"):
      raise ValueError('a data URI begins with "data:image/...;base64,"')
    if not head.endswith(";base64"):
      raise ValueError("a data URI of a picture must be in base64")
    text = text[len(head) + 1 :]
  try:
    return base64.b64decode(text, validate=True)
  except (ValueError, binascii.Error):
    raise ValueError(
      f'"{messages.shown(text[:40])}" is no base64; give a data URI or base64'
    ) from None
