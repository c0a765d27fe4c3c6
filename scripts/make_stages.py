"""Draws the pictures, and writes the texts, that the demo of the stages learns.

    python -m scripts.make_stages OUT --num 16000 --seed 0

Every picture holds one digit, or two side by side, printed in some font and
colour. Of each there is a line in caption.jsonl; of one digit one in
answer.jsonl, of two one in ocr.jsonl. text.jsonl has texts without pictures.
"""

import collections
import json
import os
import pathlib

import numpy as np
from PIL import Image

from paligemma import disk
from scripts.assets import draw_pictures
from trainers import command_line

NUM_VAL = 500
MASK = 112  # side of the masks that a picture is averaged from, in pixels
GRID = (8, 11)  # side of a picture of one digit, which training enlarges
TWO_DIGITS = 0.25
READ = "answer en what digit is this?"
WORDS = draw_pictures.WORDS


def draw(number: int, rng: np.random.Generator) -> tuple[Image.Image, str, str]:
  """Draws one digit or two: the picture, its caption, and the digits.

  They fill it, as in a small scan; half of them are white on black.
  """
  ground, colour = "black", "white"
  if rng.random() < 0.5:
    ground = str(rng.choice(list(draw_pictures.GROUNDS)))
    colour = str(rng.choice(draw_pictures.contrasting(ground)))
  rooms = [((i + 0.1) / number, (i + 0.9) / number) for i in range(number)]
  objects = [
    draw_pictures.draw_digit(MASK, (0.9, 1.0), room, colour, rng)
    for room in rooms
  ]
  grid = int(rng.integers(*GRID)) * number
  picture = draw_pictures.compose(ground, objects, grid, 0.0, rng)
  digits = " ".join(obj.name for obj in objects)
  return picture, caption(digits, colour, ground), digits


def caption(digits: str, colour: str, ground: str) -> str:
  """Such as "the digit 3 in red on blue"."""
  what = "digits" if " " in digits else "digit"
  return f"the {what} {digits} in {colour} on {ground}"


def write_text(rng: np.random.Generator) -> str:
  """A caption, or what a text alone can tell about digits."""
  first = int(rng.integers(9))
  digit, ground = str(first), rng.choice(list(draw_pictures.GROUNDS))
  colour = rng.choice(draw_pictures.contrasting(ground))
  return str(
    rng.choice(
      [
        caption(digit, colour, ground),
        caption(f"{digit} {rng.integers(10)}", colour, ground),
        f"{WORDS[first]} is written {digit}",
        f"after {digit} comes {first + 1}",
      ]
    )
  )


def make_stages(out: str | os.PathLike, *, num: int, seed: int = 0) -> None:
  """Writes TASK.jsonl and val_TASK.jsonl, and val.jsonl with all questions.

  The folder appears at once or not at all.

  Args:
    out: the folder.
    num: pictures to train on, and as many texts.
    seed: of all that is drawn.
  """
  with disk.folder(pathlib.Path(out)) as partial:
    (partial / "pictures").mkdir()
    lines = collections.defaultdict(list)
    for i in range(num + NUM_VAL):
      rng = np.random.default_rng([seed, i])
      number = 2 if rng.random() < TWO_DIGITS else 1
      picture, text, digits = draw(number, rng)
      name = f"pictures/{i:06d}.png"
      picture.save(partial / name, compress_level=1)
      read, prompt = ("answer", READ) if number == 1 else ("ocr", "ocr")
      split = "" if i < num else "val_"
      lines[f"{split}text"].append({"text": write_text(rng)})
      for task, prefix, suffix in (
        ("caption", "caption en", text),
        (read, prompt, digits),
      ):
        line = {"image": name, "prefix": prefix, "suffix": suffix}
        lines[f"{split}{task}"].append(line)
    lines["val"] = lines["val_answer"] + lines["val_ocr"]
    for name, rows in lines.items():
      text = "".join(f"{json.dumps(row)}\n" for row in rows)
      (partial / f"{name}.jsonl").write_text(text)


def main() -> None:
  parser = command_line.parser(__doc__)
  parser.add_argument("out", help="the folder to make")
  parser.add_argument("--num", type=int, default=16_000, help="pictures")
  parser.add_argument("--seed", type=int, default=0)
  args = parser.parse_args()
  make_stages(args.out, num=args.num, seed=args.seed)


if __name__ == "__main__":
  command_line.run(main)
