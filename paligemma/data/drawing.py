"""Draws objects into pictures: boxes, half-transparent masks, labels, scores.

Lines and letters grow with the picture, so that they can be read when it is
shown at the size of a screen.
"""

import zlib
from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont

from paligemma.data import location
from paligemma.data.objects import Object
from paligemma.data.objects import resize as resize_objects

Colour = tuple[int, int, int]

# Easy to tell apart, also on photographs; a label always has the same one,
# unless another label of the picture has it.
_HEX = "e63c3c 3cb44b 466eff ffa500 c846e6 00c8d7 ffe119 f564b4 aadc3c"
_HEX += " 965a28 008278 afafff"
COLOURS = tuple(ImageColor.getrgb(f"#{code}") for code in _HEX.split())
PAPER, INK = (255, 255, 255), (30, 30, 30)
SMALLEST = 480  # pixels of the longer side that letters need
OPACITY = 0.5  # of a mask
MAX_LINES = 4  # of a text below a picture


def draw(
  picture: Image.Image, objects: Sequence[Object], text: str = ""
) -> Image.Image:
  """Returns an RGB copy of a picture with its objects.

  A picture whose longer side has less than SMALLEST pixels is enlarged by a
  whole number, which keeps its pixels visible.

  Args:
    objects: In pixels of the picture.
    text: Is written below the picture.
  """
  factor = max(1, -(-SMALLEST // max(picture.size)))
  old = picture.height, picture.width
  picture = enlarge(picture, factor * max(picture.size))
  draw_objects(
    picture, resize_objects(objects, old, (picture.height, picture.width))
  )
  return _with_text(picture, text) if text else picture


def draw_objects(
  picture: Image.Image,
  objects: Sequence[Object],
  colours: Sequence[Colour | str] | None = None,
) -> None:
  """Draws objects into an RGB picture of any size.

  Args:
    objects: In pixels of the picture; those with a "score" show it.
    colours: One per object. Default: of each label another one.
  """
  if colours is None:
    by_label = _colours(objects)
    colours = [by_label[item["label"]] for item in objects]
  size = picture.height, picture.width
  for item, shade in zip(objects, colours, strict=True):
    if "mask" in item:
      alpha = np.round(255 * OPACITY * item["mask"]).astype(np.uint8)
      picture.paste(shade, mask=Image.fromarray(alpha))
  width = max(1, round(max(size) / 320))
  canvas = ImageDraw.Draw(picture)
  edges = []
  for item, shade in zip(objects, colours, strict=True):
    y0, x0, y1, x1 = location.to_pixels(item["box"], size)
    box = (x0, y0, max(x1 - 1, x0), max(y1 - 1, y0))
    canvas.rectangle(box, outline=shade, width=width)
    edges.append(box)
  _draw_labels(canvas, picture.size, objects, edges, colours)


def enlarge(picture: Image.Image, size: int) -> Image.Image:
  """Returns an RGB copy whose longer side has `size` pixels.

  Pixels stay visible when they become larger, and are averaged when they become
  smaller.
  """
  scale = size / max(picture.size)
  shape = [max(1, round(edge * scale)) for edge in picture.size]
  smooth, sharp = Image.Resampling.BOX, Image.Resampling.NEAREST
  return picture.convert("RGB").resize(shape, smooth if scale < 1 else sharp)


def wrap(
  text: str, font: ImageFont.FreeTypeFont, width: int, max_lines: int
) -> Iterator[str]:
  """Yields lines no wider than `width` pixels, broken between characters
  where a word is too long; the last one ends in "…" where text is left."""
  for i in range(max_lines):
    end = len(text)
    while end > 1 and font.getlength(text[:end]) > width:
      end -= 1
    if end < len(text):
      if i == max_lines - 1:
        yield text[: end - 1] + "…"
        return
      end = text.rfind(" ", 0, end + 1) + 1 or end
    yield text[:end].rstrip()
    text = text[end:]
    if not text:
      return


def caption(item: Object) -> str:
  """Returns what is written at a box: "cat 0.93"."""
  score = f"{item['score']:.2f}" if "score" in item else ""
  return " ".join(filter(None, (" ".join(item["label"].split()), score)))


def _colours(objects) -> dict[str, Colour]:
  """Returns a colour for each label; no two have the same while there are."""
  chosen = {}
  for label in sorted({item["label"] for item in objects}):
    first = zlib.crc32(label.encode(errors="replace"))
    order = [COLOURS[(first + i) % len(COLOURS)] for i in range(len(COLOURS))]
    free = [colour for colour in order if colour not in chosen.values()]
    chosen[label] = (free or order)[0]
  return chosen


def _font(size):
  return ImageFont.load_default(max(12, round(max(size) / 40)))


def _draw_labels(canvas, size, objects, boxes, colours):
  """Writes each label at its box, in the picture, and on no other label."""
  width, height = size
  font = _font(size)
  pad = max(1, round(font.size / 6))
  taken = []
  # The largest box first: the label of a small one in it finds room outside.
  for i in sorted(range(len(boxes)), key=lambda i: -_area(boxes[i])):
    text = caption(objects[i])
    if not text:
      continue
    (text,) = wrap(text, font, max(width - 2 * pad, 1), 1)
    wide = min(round(font.getlength(text)) + 2 * pad, width)
    high = min(sum(font.getmetrics()) + pad, height)
    x0, y0, x1, y1 = boxes[i]
    spots = [
      (min(max(x, 0), width - wide), y)
      for y in (y0 - high, y1 + 1, y0, y1 + 1 - high)
      for x in (x0, x1 + 1 - wide)
      if 0 <= y <= height - high
    ] or [(min(max(x0, 0), width - wide), min(max(y0, 0), height - high))]
    frames = [(x, y, x + wide, y + high) for x, y in spots]
    free = [f for f in frames if not any(_overlap(f, t) for t in taken)]
    frame = (free or frames)[0]
    taken.append(frame)
    x, y, right, below = frame
    canvas.rectangle((x, y, right - 1, below - 1), fill=colours[i])
    ink = _ink(colours[i])
    canvas.text((x + pad, y + pad // 2), text, ink, font)


def _ink(colour):
  """Black on light grounds, white on dark ones."""
  if isinstance(colour, str):
    colour = ImageColor.getrgb(colour)
  red, green, blue = colour
  light = 0.299 * red + 0.587 * green + 0.114 * blue > 140
  return INK if light else PAPER


def _area(box):
  return (box[2] - box[0]) * (box[3] - box[1])


def _overlap(a, b):
  return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _with_text(picture, text):
  """Returns a picture with a text on paper below it."""
  font = _font(picture.size)
  pad, step = round(font.size / 2), sum(font.getmetrics())
  lines = list(wrap(text, font, picture.width - 2 * pad, MAX_LINES))
  height = picture.height + len(lines) * step + 2 * pad
  page = Image.new("RGB", (picture.width, height), PAPER)
  page.paste(picture)
  canvas = ImageDraw.Draw(page)
  for i, line in enumerate(lines):
    canvas.text((pad, picture.height + pad + i * step), line, INK, font)
  return page
