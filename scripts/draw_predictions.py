"""Draws one sheet of pictures with question, prediction and right answer.

python -m scripts.draw_predictions PREDICTIONS.jsonl OUT.png --image_root DIR
"""

import argparse
import json
import os
import pathlib
from collections.abc import Iterator, Sequence

from PIL import Image, ImageDraw, ImageFont

from scripts import command_line

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


def read_predictions(path: str | os.PathLike, num: int) -> list[dict]:
  """Reads the first `num` predictions.

  Args:
    path: a JSONL file whose lines have "image" (a path), "prefix", "suffix"
      (the right answer), "prediction" and "correct" (true or false).
    num: how many at most.

  Returns:
    the predictions.

  Raises:
    ValueError: a line is malformed or lacks a key, or there is none.
  """
  predictions = []
  with pathlib.Path(path).open() as lines:
    for number, line in enumerate(lines, start=1):
      if len(predictions) == num:
        break
      try:
        prediction = json.loads(line)
      except json.JSONDecodeError as error:
        raise ValueError(f"{path}:{number}: not JSON: {error}") from None
      missing = [key for key in KEYS if key not in prediction]
      if missing:
        raise ValueError(
          f"{path}:{number}: has no {', '.join(missing)}, expected a line of"
          " a predictions file."
        )
      predictions.append(prediction)
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


def draw_cell(picture: Image.Image, prediction: dict) -> Image.Image:
  """Draws one picture with its text.

  Args:
    picture: any size and mode.
    prediction: with the KEYS of a predictions file.

  Returns:
    the picture above the question, the prediction (green when correct, red
    when not) and the right answer.
  """
  font = ImageFont.load_default(FONT_SIZE)
  height = PICTURE + MAX_LINES * LINE_HEIGHT
  cell = Image.new("RGB", (PICTURE, height), PAPER)
  cell.paste(enlarge(picture, PICTURE), (0, 0))
  draw = ImageDraw.Draw(cell)
  y = PICTURE + 2
  texts = (
    (prediction["prefix"], INK),
    (prediction["prediction"], GREEN if prediction["correct"] else RED),
    (f"truth: {prediction['suffix']}", INK),
  )
  for text, colour in texts:
    for line in wrap(text, font, PICTURE, MAX_LINES // len(texts)):
      draw.text((0, y), line, colour, font)
      y += LINE_HEIGHT
  return cell


def draw_sheet(cells: Sequence[Image.Image]) -> Image.Image:
  """Arranges cells of one size in rows of COLUMNS."""
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
) -> tuple[int, int]:
  """Draws the first predictions of a file on one PNG sheet.

  Args:
    path: the predictions, JSONL.
    out: the PNG file to write.
    image_root: the folder that the image paths are relative to.
    num: how many at most.

  Returns:
    how many were drawn, and how many of these are correct.

  Raises:
    ValueError: a bad line, or a picture that is not there.
  """
  predictions = read_predictions(path, num)
  cells = []
  for number, prediction in enumerate(predictions, start=1):
    image = pathlib.Path(image_root, prediction["image"])
    if not image.is_file():
      raise ValueError(
        f"{path}:{number}: image {image} is missing: pass the folder that"
        " holds it as --image_root."
      )
    with Image.open(image) as picture:
      cells.append(draw_cell(picture, prediction))
  draw_sheet(cells).save(out, format="PNG")
  return len(cells), sum(bool(p["correct"]) for p in predictions)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("predictions", help="a JSONL file")
  parser.add_argument("out", help="the PNG file to write")
  parser.add_argument("--image_root", required=True)
  parser.add_argument("--num", type=int, default=40)
  options = parser.parse_args()
  drawn, correct = draw_predictions(
    options.predictions,
    options.out,
    image_root=options.image_root,
    num=options.num,
  )
  print(f"sheet: {options.out} written, {correct} of {drawn} correct")


if __name__ == "__main__":
  command_line.run(main)
