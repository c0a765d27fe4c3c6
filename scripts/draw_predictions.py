"""Draws one sheet of predictions, errors first: picture, question, answers.

    python -m scripts.draw_predictions PREDICTIONS.jsonl OUT.png \
      --image_root DIR

Boxes, and with --codec masks, are drawn twice, side by side: on the left those
predicted, green if they are right and red if not, on the right the true ones,
white if they are found and red if not.
"""

import json
import os
import pathlib

from PIL import Image, ImageDraw, ImageFont

from paligemma.data import drawing, image_files, objects
from paligemma.evals import predictions as predictions_lib
from paligemma.evals.judged import colours, is_right, read_objects, shorten
from trainers import command_line, inputs

KEYS = ("image", "prefix", "suffix", "prediction", "correct")
COLUMNS = 8
# A multiple of 8 and of 56, so that their pixels stay square.
PICTURE = 168
MARGIN = 8
FONT_SIZE = 12
LINE_HEIGHT = 15
MAX_LINES = 6
GREEN, RED = (0, 120, 40), (190, 20, 20)


def read_predictions(path: str | os.PathLike) -> dict[str, dict]:
  """Reads the predictions of a JSONL file, which have KEYS, by path:line.

  Raises:
    ValueError: a line is malformed or lacks a key, or there is none.
  """
  predictions = {}
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
      predictions[f"{path}:{number}"] = prediction
  if not predictions:
    raise ValueError(f"{path}: holds no prediction, expected at least one.")
  return predictions


def draw_cell(
  picture: Image.Image,
  prediction: dict,
  *,
  beside: bool = False,
  decode: objects.DecodeMasks | None = None,
  min_score: float = 0.0,
) -> Image.Image:
  """A picture above question, prediction (green or red) and right answer.

  Args:
    beside: whether to draw predicted objects, and the true ones beside them.
    decode, min_score: as of `read_objects`.
  """
  font = ImageFont.load_default(FONT_SIZE)
  colour = GREEN if is_right(prediction, min_score) else RED
  picture = drawing.enlarge(picture, PICTURE)
  width = 2 * PICTURE + MARGIN // 2 if beside else PICTURE
  cell = Image.new(
    "RGB", (width, PICTURE + MAX_LINES * LINE_HEIGHT), drawing.PAPER
  )
  if beside:
    size = picture.height, picture.width
    found, truths = read_objects(
      prediction, size, decode=decode, min_score=min_score
    )
    of_found, of_truths = colours(found, truths)
    true_picture = picture.copy()
    drawing.draw_objects(true_picture, truths, of_truths)
    cell.paste(true_picture, (PICTURE + MARGIN // 2, 0))
    drawing.draw_objects(picture, found, of_found)
  cell.paste(picture, (0, 0))
  draw = ImageDraw.Draw(cell)
  y = PICTURE + 2
  texts = (
    (prediction["prefix"], drawing.INK),
    (shorten(prediction["prediction"]), colour),
    (f"truth: {shorten(prediction['suffix'])}", drawing.INK),
  )
  for text, colour in texts:
    for line in drawing.wrap(text, font, width, MAX_LINES // len(texts)):
      draw.text((0, y), line, colour, font)
      y += LINE_HEIGHT
  return cell


def _sheet(cells):
  """Arranges cells of one size in rows."""
  width, height = (edge + MARGIN for edge in cells[0].size)
  columns = min(COLUMNS * PICTURE // cells[0].width, len(cells))
  rows = -(-len(cells) // columns)
  size = (columns * width + MARGIN, rows * height + MARGIN)
  sheet = Image.new("RGB", size, drawing.PAPER)
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
  min_score: float = 0.0,
) -> tuple[int, int, int]:
  """Draws predictions of a file on one PNG sheet, errors first.

  Arguments are the options of the command line; `--help` explains them.

  Returns:
    how many are drawn, how many there are, and how many of these are right.

  Raises:
    ValueError: a bad line, or a picture that is not there or is damaged.
  """
  predictions = read_predictions(path)
  decode = inputs.mask_decoder(codec)
  right, beside = {}, False
  for where, prediction in predictions.items():
    try:
      right[where] = is_right(prediction, min_score)
    except ValueError as error:
      raise ValueError(f"{where}: {error}") from None
    beside = beside or any(
      objects.parse(prediction[key], (1, 1)) for key in ("suffix", "prediction")
    )
  cells = []
  for where in sorted(right, key=right.get)[:num]:
    names = predictions[where]["image"]  # boxes are in the first of several
    name = names[0] if isinstance(names, list) else names
    image = pathlib.Path(image_root, name)
    if not image.is_file():
      raise ValueError(
        f"{where}: image {image} is missing: pass the folder that holds it as"
        " --image_root."
      )
    picture = Image.fromarray(image_files.decode(image, where=where))
    cells.append(
      draw_cell(
        picture,
        predictions[where],
        beside=beside,
        decode=decode,
        min_score=min_score,
      )
    )
  _sheet(cells).save(out, format="PNG")
  return len(cells), len(right), sum(right.values())


def main() -> None:
  parser = command_line.parser(__doc__)
  parser.add_argument("path", metavar="predictions", help="a JSONL file")
  parser.add_argument("out", help="the PNG file to write")
  parser.add_argument("--image_root", required=True, help="of image paths")
  parser.add_argument("--num", type=int, default=40, help="how many at most")
  parser.add_argument("--codec", help="npz of the mask codec, to draw masks")
  parser.add_argument(
    "--min_score",
    type=float,
    default=0.0,
    help="boxes below it, in [0, 1], are left out; default 0",
  )
  options = parser.parse_args()
  drawn, count, right = draw_predictions(**vars(options))
  print(
    f"sheet: {options.out} written, {right} of {count} correct, {drawn} drawn,"
    " errors first"
  )


if __name__ == "__main__":
  command_line.run(main)
