"""Draws one sheet of pictures with question, prediction and right answer.

    python -m scripts.draw_predictions PREDICTIONS.jsonl OUT.png \
      --image_root DIR

Boxes are drawn into the pictures, and with --codec the masks: those predicted
in green or red, the right boxes in white.
"""

import functools
import json
import os
import pathlib
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image, ImageDraw, ImageFont

import paligemma
from paligemma.data import image_files, location
from paligemma.data import masks as masks_lib
from paligemma.evals import predictions as predictions_lib
from paligemma.metrics import boxes as boxes_lib
from paligemma.models import mask_codec
from trainers import command_line

Decode = Callable[[np.ndarray], np.ndarray]  # [B, 16] codes -> [B, 64, 64]

KEYS = ("image", "prefix", "suffix", "prediction", "correct")
COLUMNS = 8
# A multiple of 8 and of 56, so that their pixels stay square.
PICTURE = 168
MARGIN = 8
FONT_SIZE = 12
LINE_HEIGHT = 15
MAX_LINES = 6
PAPER, INK = (255, 255, 255), (30, 30, 30)
GREEN, RED = (0, 120, 40), (190, 20, 20)
# The same on pictures, which may be dark.
BRIGHT = {GREEN: (60, 230, 90), RED: (255, 80, 70)}
TRUTH = (255, 255, 255)
TINT = 0.5  # of the colour of a mask over the picture
# IoU from which on a box counts as right.
OVERLAP = 0.5


def codec_decoder(path: str | os.PathLike | None) -> Decode | None:
  """The decoder of the mask codec in a file; None without a file."""
  if path is None:
    return None
  return functools.partial(mask_codec.decode, paligemma.load_mask_codec(path))


def read_predictions(path: str | os.PathLike, num: int) -> list[dict]:
  """Reads the first `num` predictions of a JSONL file, which have KEYS.

  Raises:
    ValueError: a line is malformed or lacks a key, or there is none.
  """
  predictions = []
  with pathlib.Path(path).open() as lines:
    for number, line in enumerate(lines, start=1):
      try:
        prediction = json.loads(line)
      except json.JSONDecodeError as error:
        raise ValueError(f"{path}:{number}: not JSON: {error}") from None
      if predictions_lib.is_bad(prediction):
        continue
      if missing := [key for key in KEYS if key not in prediction]:
        raise ValueError(
          f"{path}:{number}: has no {', '.join(missing)}, expected a line of"
          " a predictions file."
        )
      predictions.append(prediction)
      if len(predictions) == num:
        break
  if not predictions:
    raise ValueError(f"{path}: holds no prediction, expected at least one.")
  return predictions


def wrap(
  text: str, font: ImageFont.FreeTypeFont, width: int, max_lines: int
) -> Iterator[str]:
  """Yields lines no wider than `width` pixels, broken between characters
  where a word is too long; the last one ends in "…" where text is left."""
  for i in range(max_lines):
    end = len(text)
    while font.getlength(text[:end]) > width:
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


def enlarge(picture: Image.Image, size: int) -> Image.Image:
  """Fits a picture into a square; small ones keep their pixels visible."""
  scale = size / max(picture.size)
  shape = [max(1, round(edge * scale)) for edge in picture.size]
  smooth, sharp = Image.Resampling.BOX, Image.Resampling.NEAREST
  return picture.convert("RGB").resize(shape, smooth if scale < 1 else sharp)


def is_right(prediction: dict) -> bool:
  """Whether all true boxes are found and no other; without boxes, "correct".

  A box is found if one with the same label overlaps with it by OVERLAP.
  """
  truths, found = (
    location.parse(prediction[key], (1, 1)) for key in ("suffix", "prediction")
  )
  if not any(obj.box for obj in truths):
    return bool(prediction["correct"])
  for truth in truths:
    hit = next((obj for obj in found if _overlap(obj, truth) >= OVERLAP), None)
    if hit is None:
      return False
    found.remove(hit)
  return not found


def shorten(text: str) -> str:
  """The labels alone of an answer of boxes; any other text as it is."""
  objects = location.parse(text, (1, 1))
  if any(o.problem for o in objects) or not any(o.box for o in objects):
    return text
  return location.SEPARATOR.join(obj.label for obj in objects)


def draw_objects(
  picture: Image.Image,
  text: str,
  colour: tuple[int, int, int],
  decode: Decode | None = None,
) -> None:
  """Draws the boxes of a text into an RGB picture, and masks with `decode`."""
  size = picture.height, picture.width
  for obj in location.parse(text, size):
    if obj.box is None or obj.problem:
      continue
    if obj.codes is not None and decode is not None:
      (decoded,) = np.asarray(decode(np.array([obj.codes], np.int32)))
      alpha = TINT * masks_lib.paste(decoded, obj.box, size)
      mask = Image.fromarray(np.round(255 * alpha).astype(np.uint8))
      picture.paste(colour, mask=mask)
    y0, x0, y1, x1 = location.to_pixels(obj.box, size)
    edges = (x0, y0, max(x1 - 1, x0), max(y1 - 1, y0))
    ImageDraw.Draw(picture).rectangle(edges, outline=colour)


def draw_cell(
  picture: Image.Image, prediction: dict, decode: Decode | None = None
) -> Image.Image:
  """A picture, with boxes and masks, above its texts.

  These are the question, the prediction (green when right, red when not) and
  the right answer.
  """
  font = ImageFont.load_default(FONT_SIZE)
  height = PICTURE + MAX_LINES * LINE_HEIGHT
  colour = GREEN if is_right(prediction) else RED
  picture = enlarge(picture, PICTURE)
  draw_objects(picture, prediction["suffix"], TRUTH)
  draw_objects(picture, prediction["prediction"], BRIGHT[colour], decode)
  cell = Image.new("RGB", (PICTURE, height), PAPER)
  cell.paste(picture, (0, 0))
  draw = ImageDraw.Draw(cell)
  y = PICTURE + 2
  texts = (
    (prediction["prefix"], INK),
    (shorten(prediction["prediction"]), colour),
    (f"truth: {shorten(prediction['suffix'])}", INK),
  )
  for text, colour in texts:
    for line in wrap(text, font, PICTURE, MAX_LINES // len(texts)):
      draw.text((0, y), line, colour, font)
      y += LINE_HEIGHT
  return cell


def _overlap(obj, other):
  """IoU of the boxes of two objects with the same label, else 0."""
  usable = all(x.box and not x.problem for x in (obj, other))
  if not usable or obj.label != other.label:
    return 0.0
  return float(boxes_lib.iou(np.array(obj.box), np.array([other.box]))[0])


def _sheet(cells):
  width, height = (edge + MARGIN for edge in cells[0].size)
  columns = min(COLUMNS, len(cells))
  rows = -(-len(cells) // columns)
  size = (columns * width + MARGIN, rows * height + MARGIN)
  sheet = Image.new("RGB", size, PAPER)
  for i, cell in enumerate(cells):
    row, column = divmod(i, columns)
    sheet.paste(cell, (MARGIN + column * width, MARGIN + row * height))
  return sheet


def draw_predictions(
  path: str | os.PathLike,
  out: str | os.PathLike,
  *,
  image_root: str | os.PathLike,
  num: int,
  codec: str | os.PathLike | None = None,
) -> tuple[int, int]:
  """Draws the first predictions of a file on one PNG sheet.

  Arguments are the options of the command line; `--help` explains them.

  Returns how many were drawn, and how many of these are right.
  """
  predictions = read_predictions(path, num)
  decode = codec_decoder(codec)
  cells = []
  for number, prediction in enumerate(predictions, start=1):
    name = prediction["image"]
    if isinstance(name, list):  # boxes belong to the first
      name = name[0]
    image = pathlib.Path(image_root, name)
    if not image.is_file():
      raise ValueError(
        f"{path}:{number}: image {image} is missing: pass the folder that"
        " holds it as --image_root."
      )
    pixels = image_files.decode(image, where=f"{path}:{number}")
    cells.append(draw_cell(Image.fromarray(pixels), prediction, decode))
  _sheet(cells).save(out, format="PNG")
  return len(cells), sum(map(is_right, predictions))


def main() -> None:
  parser = command_line.parser(__doc__)
  parser.add_argument("path", metavar="predictions", help="a JSONL file")
  parser.add_argument("out", help="the PNG file to write")
  parser.add_argument("--image_root", required=True, help="of image paths")
  parser.add_argument("--num", type=int, default=40, help="how many at most")
  parser.add_argument("--codec", help="npz of the mask codec, to draw masks")
  options = parser.parse_args()
  drawn, correct = draw_predictions(**vars(options))
  print(f"sheet: {options.out} written, {correct} of {drawn} correct")


if __name__ == "__main__":
  command_line.run(main)
