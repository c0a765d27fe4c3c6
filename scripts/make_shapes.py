"""Draws pictures of one shape each, with captions, to train a SigLIP on.

    python -m scripts.make_shapes OUT --num 6000 --seed 0

A line of train.jsonl and val.jsonl: {"image": "train/000000.png", "captions":
["a red star", "a star in red on blue"], "label": "red star", "objects":
[{"box": [y0, x0, y1, x1] in pixels, "label": "a red star"}]}.
"""

import json
import os

import numpy as np

from paligemma import disk
from scripts.assets import draw_pictures
from trainers import command_line

RES = 28
NUM_VAL = 500
SHAPES = ("circle", "ring", "square", "triangle")
_RADIUS = (0.36, 0.44)  # of the circle around a shape, in shares of the picture


def make_example(
  split: int, index: int, seed: int
) -> tuple[draw_pictures.Image.Image, dict]:
  """Draws one shape: the picture, and captions and label of its line."""
  rng = np.random.default_rng([seed, split, index])
  ground = str(rng.choice(list(draw_pictures.GROUNDS)))
  colour = str(rng.choice(draw_pictures.contrasting(ground)))
  name = str(rng.choice(SHAPES))
  radius = rng.uniform(*_RADIUS)
  centre = rng.uniform(radius, 1 - radius, size=2)
  size = draw_pictures.OVERSAMPLING * RES
  turn = rng.uniform(-12, 12)
  mask = draw_pictures.shape_mask(name, size, centre, radius, turn)
  shape = draw_pictures.Object(name, colour, "", mask)
  picture = draw_pictures.compose(ground, [shape], RES, rng.uniform(0, 8), rng)
  described = draw_pictures.describe(shape)
  captions = [
    described,
    f"{described} on {ground}",
    f"a {name} in {colour}",
    f"a picture of {described}",
  ]
  box = [round(RES * side, 1) for side in shape.box]
  return picture, {
    "captions": captions,
    "label": f"{colour} {name}",
    "objects": [{"box": box, "label": described}],
  }


def make_shapes(
  out: str | os.PathLike, *, num: int, seed: int = 0, num_val: int = NUM_VAL
) -> None:
  """Writes train.jsonl, val.jsonl and their pictures.

  The folder appears at once or not at all.

  Raises:
    OSError: `out` exists already and is not empty.
  """
  with disk.folder(out) as partial:
    for number, (split, count) in enumerate((("train", num), ("val", num_val))):
      (partial / split).mkdir()
      lines = []
      for index in range(count):
        picture, fields = make_example(number, index, seed)
        name = f"{split}/{index:06d}.png"
        picture.save(partial / name, compress_level=1)
        lines.append(json.dumps({"image": name, **fields}) + "\n")
      (partial / f"{split}.jsonl").write_text("".join(lines))


def main() -> None:
  parser = command_line.parser(__doc__)
  parser.add_argument("out", help="the folder to make")
  parser.add_argument("--num", type=int, default=6000, help="pictures to learn")
  parser.add_argument("--seed", type=int, default=0)
  options = parser.parse_args()
  make_shapes(**vars(options))
  print(f"shapes: {options.out} written, {options.num} train, {NUM_VAL} val")


if __name__ == "__main__":
  command_line.run(main)
