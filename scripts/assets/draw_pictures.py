"""Draws pictures of shapes and printed digits, with questions and answers.

    python -m scripts.assets.draw_pictures OUT --num 60000 \
      --seed 0 --res 56 --workers 2

They pre-train the tiny model. Nothing here reads a scan of handwriting: digits
come from the fonts of matplotlib and Pillow, bent, blurred and coarsened.
"""

import concurrent.futures
import dataclasses
import functools
import itertools
import json
import multiprocessing
import os
import pathlib
from collections.abc import Sequence

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from paligemma import disk
from trainers import command_line

NUM_VAL = 1000
FOLDER_SIZE = 1000
SPLITS = {"train": 0, "val": 1}

# Those of matplotlib's fonts in which 0-9 look like digits. cmmi10 is left out
# for its old-style figures: its 0 is an "o", its 1 a dotless "i".
FONTS = (
  *(f"DejaVuSans{x}" for x in ("", "-Bold", "-Oblique", "-BoldOblique")),
  *(f"DejaVuSansMono{x}" for x in ("", "-Bold", "-Oblique", "-BoldOblique")),
  *(f"DejaVuSerif{x}" for x in ("", "-Bold", "-Italic", "-BoldItalic")),
  *(f"STIXGeneral{x}" for x in ("", "Bol", "Italic", "BolIta")),
  *("cmb10", "cmr10", "cmss10", "cmti10", "cmtt10"),
)
PILLOW_FONT = "Pillow's default"
FONT_SIZE = 72
GLYPH_SIZE = 104
# Masks are drawn this many times larger than the picture, then averaged.
OVERSAMPLING = 4
# A point table: what is covered by a quarter or more belongs to an object.
_COVERED = [255 * (value >= 64) for value in range(256)]

COLOURS = {
  "red": (215, 40, 40),
  "orange": (245, 140, 25),
  "yellow": (240, 220, 50),
  "green": (45, 160, 60),
  "blue": (45, 85, 220),
  "purple": (140, 60, 180),
  "white": (243, 243, 243),
  "black": (12, 12, 12),
}
GROUNDS = {**COLOURS, "gray": (128, 128, 128)}
# Euclidean, in RGB: keeps red from orange (105) and purple from gray (87).
MIN_CONTRAST = 120
COLOUR_JITTER = 12

SIZES = {"small": (0.09, 0.12), "": (0.14, 0.17), "large": (0.20, 0.23)}
WORDS = (
  *("zero", "one", "two", "three", "four"),
  *("five", "six", "seven", "eight", "nine"),
)
SMALL_DIGITS = 0.7  # of the pictures of digits
READ = ("what digit is this?", "which digit do you see?", "read the digit")


def _regular(corners: int) -> np.ndarray:
  """The corners (x, y) of a polygon in the unit circle, one on top."""
  turn = 2 * np.pi * np.arange(corners) / corners
  return np.stack([np.sin(turn), -np.cos(turn)], axis=-1)


_STAR = _regular(10) * np.where(np.arange(10) % 2, 0.42, 1.0)[:, None]
_CROSS = np.array(
  [
    *((-0.3, -0.95), (0.3, -0.95), (0.3, -0.3), (0.95, -0.3)),
    *((0.95, 0.3), (0.3, 0.3), (0.3, 0.95), (-0.3, 0.95)),
    *((-0.3, 0.3), (-0.95, 0.3), (-0.95, -0.3), (-0.3, -0.3)),
  ]
)
# Outlines in the unit circle. A diamond is narrow, so that it is no square.
OUTLINES = {
  "circle": _regular(48),
  "square": np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * np.sqrt(0.5),
  "triangle": _regular(3),
  "star": _STAR,
  "cross": _CROSS,
  "diamond": _regular(4) * (0.6, 1.0),
  "ring": _regular(48),
}
RING_HOLE = 0.55


@dataclasses.dataclass(frozen=True)
class Object:
  """One shape or digit in a picture."""

  name: str  # "circle", ..., or "0" to "9"
  colour: str  # a key of COLOURS
  size: str  # a key of SIZES ("" for digits)
  mask: Image.Image  # its coverage, OVERSAMPLING times as large as the picture

  @property
  def box(self) -> tuple[float, float, float, float]:
    """The extent of the mask (y0, x0, y1, x1), in fractions of the picture."""
    x0, y0, x1, y1 = self.mask.point(_COVERED).getbbox()
    width, height = self.mask.size
    return y0 / height, x0 / width, y1 / height, x1 / width


def reading_order(objects: Sequence[Object]) -> list[Object]:
  """Sorts from top to bottom, and from left to right at the same height."""
  return sorted(objects, key=lambda obj: obj.box[:2])


# --- Masks ------------------------------------------------------------------


def shape_mask(
  name: str, size: int, centre: np.ndarray, radius: float, degrees: float
) -> Image.Image:
  """Draws a shape of OUTLINES: a mask of size x size pixels, 255 inside.

  The centre (x, y), and the radius of the circle around the shape, are in
  fractions of the picture.
  """
  outline = OUTLINES[name] @ _rotation(np.radians(degrees)) * radius
  mask = Image.new("L", (size, size))
  draw = ImageDraw.Draw(mask)
  draw.polygon(((outline + centre) * size).ravel().tolist(), fill=255)
  if name == "ring":
    hole = (outline * RING_HOLE + centre) * size
    draw.polygon(hole.ravel().tolist(), fill=0)
  return mask


def _rotation(turn):
  return np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])


@functools.cache
def _font(name):
  if name == PILLOW_FONT:
    return ImageFont.load_default(FONT_SIZE)
  folder = pathlib.Path(matplotlib.get_data_path(), "fonts", "ttf")
  return ImageFont.truetype(folder / f"{name}.ttf", FONT_SIZE)


def print_digit(digit: str, font: str, stroke: int) -> Image.Image:
  """Prints a digit in the middle of a square, thickened by `stroke` pixels."""
  mask = Image.new("L", (GLYPH_SIZE, GLYPH_SIZE))
  draw, middle = ImageDraw.Draw(mask), (GLYPH_SIZE / 2, GLYPH_SIZE / 2)
  draw.text(middle, digit, 255, _font(font), anchor="mm", stroke_width=stroke)
  return mask


def _bend(mask, rng):
  """Rotates by up to 15 degrees, shears, and shakes the strokes.

  The corners of 4x4 cells move independently, which makes straight and even
  strokes a little like those of a hand.
  """
  cells, size = 4, mask.width
  turn, shear = np.radians(rng.uniform(-15, 15)), rng.uniform(-0.3, 0.3)
  matrix = _rotation(turn) @ np.array([[1, shear], [0, 1]])
  edges = np.linspace(0, size, cells + 1)
  corners = np.stack(np.meshgrid(edges, edges), axis=-1) - size / 2
  shake = rng.normal(0, rng.uniform(0, 0.035) * size, corners.shape)
  source = corners @ matrix.T + shake + size / 2
  mesh = []
  for row, column in itertools.product(range(cells), range(cells)):
    target = (edges[column], edges[row], edges[column + 1], edges[row + 1])
    quad = (
      *source[row, column],
      *source[row + 1, column],
      *source[row + 1, column + 1],
      *source[row, column + 1],
    )
    mesh.append((tuple(map(round, target)), quad))
  return mask.transform(
    mask.size, Image.Transform.MESH, mesh, Image.Resampling.BILINEAR
  )


def print_glyph(digit: str, rng: np.random.Generator) -> Image.Image:
  """Prints a digit in some font, bends it, and cuts it out."""
  fonts = (*FONTS, PILLOW_FONT)
  font = fonts[rng.integers(len(fonts))]
  glyph = _bend(print_digit(digit, font, int(rng.integers(0, 5))), rng)
  return glyph.crop(glyph.point(_COVERED).getbbox())


def _digit_mask(digit, size, height, left, right, rng):
  """Prints a digit between left and right; fractions of the picture."""
  glyph = print_glyph(digit, rng)
  tall = round(height * size)
  wide = round(tall * glyph.width / glyph.height * rng.uniform(0.7, 1.15))
  wide = min(wide, int((right - left) * size))
  x = rng.uniform(left * size, right * size - wide)
  y = rng.uniform(0, size - tall)
  mask = Image.new("L", (size, size))
  glyph = glyph.resize((wide, tall), Image.Resampling.BILINEAR)
  mask.paste(glyph, (int(x), int(y)))
  return mask


# --- Scenes -----------------------------------------------------------------


@functools.cache
def contrasting(ground: str) -> list[str]:
  """Returns the colours that can be told from the background."""
  rgb = np.array(list(COLOURS.values()))
  distances = np.linalg.norm(rgb - GROUNDS[ground], axis=1)
  return np.array(list(COLOURS))[distances >= MIN_CONTRAST].tolist()


def _sometimes(value, rng):
  return value if rng.random() < 0.5 else 0.0


def _choice(options, rng):
  return options[rng.integers(len(options))]


def draw_shapes(
  size: int, rng: np.random.Generator
) -> tuple[str, list[Object]]:
  """The colour of a background, and 1 to 4 shapes apart from each other."""
  ground = _choice(list(GROUNDS), rng)
  number = rng.integers(1, 5)
  circles = []
  while len(circles) < number:
    word = _choice(list(SIZES), rng)
    radius = rng.uniform(*SIZES[word])
    centre = rng.uniform(radius, 1 - radius, size=2)
    if all(
      np.linalg.norm(centre - other) > radius + other_radius + 0.02
      for _, other_radius, other in circles
    ):
      circles.append((word, radius, centre))
  objects = []
  for word, radius, centre in circles:
    name = _choice(list(OUTLINES), rng)
    colour = _choice(contrasting(ground), rng)
    mask = shape_mask(name, size, centre, radius, rng.uniform(-12, 12))
    objects.append(Object(name, colour, word, mask))
  return ground, reading_order(objects)


def draw_digit(
  size: int,
  heights: tuple[float, float],
  room: tuple[float, float],
  colour: str,
  rng: np.random.Generator,
) -> Object:
  """A digit with a mask of size x size pixels.

  Its smallest and largest height, and the room from left to right, are in
  fractions of the picture.
  """
  name, height = str(rng.integers(10)), rng.uniform(*heights)
  mask = _digit_mask(name, size, height, *room, rng)
  return Object(name, colour, "", mask)


def draw_digits(
  size: int, number: int, heights: tuple[float, float], rng: np.random.Generator
) -> tuple[str, list[Object]]:
  """The colour of a background, and one digit, or two alike side by side.

  Their smallest and largest height is in fractions of the picture.
  """
  # White on black and black on white, the commonest in print, half the time.
  ground = _choice(["black", "white", *GROUNDS], rng)
  if rng.random() < 0.5:
    ground = _choice(["black", "black", "white"], rng)
    colour = "white" if ground == "black" else "black"
  else:
    colour = _choice(contrasting(ground), rng)
  rooms = [(i / number, (i + 1) / number) for i in range(number)]
  return ground, [draw_digit(size, heights, x, colour, rng) for x in rooms]


def _rgb(name, rng):
  most = _sometimes(COLOUR_JITTER, rng)
  jitter = rng.uniform(-most, most, size=3)
  return np.clip(np.add(GROUNDS[name], jitter), 0, 255).astype(np.float32)


def compose(
  ground: str,
  objects: Sequence[Object],
  size: int,
  noise: float,
  rng: np.random.Generator,
) -> Image.Image:
  """Paints objects on a background: RGB, with noise of so many gray values.

  Masks are averaged over areas; tints and the background's shading vary.
  """
  slope = _sometimes(20, rng) * rng.uniform(-1, 1, size=(2, 1))
  ramp = np.linspace(-0.5, 0.5, size, dtype=np.float32)
  shade = slope[0] * ramp[None, :] + (slope[1] * ramp)[:, None]
  pixels = _rgb(ground, rng) + shade[..., None]
  for obj in objects:
    mask = obj.mask.resize((size, size), Image.Resampling.BOX)
    alpha = np.asarray(mask, np.float32)[..., None] / 255
    pixels = pixels + alpha * (_rgb(obj.colour, rng) - pixels)
  pixels = pixels + noise * rng.standard_normal((size, size, 1), np.float32)
  return Image.fromarray(np.clip(np.round(pixels), 0, 255).astype(np.uint8))


# --- Questions --------------------------------------------------------------


def listing(parts: Sequence[str]) -> str:
  """Joins as English does: "a", "a and b", "a, b and c"."""
  if len(parts) == 1:
    return parts[0]
  return f"{', '.join(parts[:-1])} and {parts[-1]}"


def describe(shape: Object) -> str:
  """Such as "an orange star" or "a small red circle"."""
  phrase = " ".join(filter(None, (shape.size, shape.colour, shape.name)))
  return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def locations(box: Sequence[float]) -> str:
  """Writes y0 x0 y1 x1, fractions of the picture, as four <locNNNN>."""
  return "".join(f"<loc{min(int(edge * 1024), 1023):04d}>" for edge in box)


def detect(name: str, objects: Sequence[Object]) -> tuple[str, str]:
  """Asks for the boxes of all objects of that name, in reading order."""
  found = [t for t in reading_order(objects) if t.name == name]
  boxes = " ; ".join(f"{locations(obj.box)} {name}" for obj in found)
  return f"detect {name}", boxes


def _kind(weights, rng):
  p = np.array(list(weights.values()))
  return list(weights)[rng.choice(len(p), p=p / p.sum())]


def ask_shapes(
  objects: Sequence[Object], rng: np.random.Generator
) -> tuple[str, str]:
  """A question about 1 to 4 shapes in reading order, and its answer."""
  names = [obj.name for obj in objects]
  single = [obj for obj in objects if names.count(obj.name) == 1]
  weights = dict(caption=2.0, count=2.0, exists=2.0, detect=2.5)
  weights |= dict(colour=2.0 if single else 0.0, count_one=1.0)
  kind = _kind(weights, rng)
  present = _choice(names, rng)
  absent = _choice([name for name in OUTLINES if name not in names], rng)
  if kind == "caption":
    return "caption en", listing([describe(obj) for obj in objects])
  if kind == "count":
    return "answer en how many shapes are there?", str(len(objects))
  if kind == "exists":
    name, answer = (present, "yes") if rng.random() < 0.5 else (absent, "no")
    return f"answer en is there a {name}?", answer
  if kind == "count_one":
    name = present if rng.random() < 0.8 else absent
    question = f"answer en how many {name} shapes are there?"
    return question, str(names.count(name))
  if kind == "colour":
    obj = single[rng.integers(len(single))]
    return f"answer en what colour is the {obj.name}?", obj.colour
  return detect(present, objects)


def ask_digit(
  ground: str, obj: Object, rng: np.random.Generator
) -> tuple[str, str]:
  """A question about a digit on a background, and its answer."""
  weights = dict(read=60, caption=10, spell=8, compare=6)
  weights |= dict(even=4, detect=5, colour=4, count=3)
  kind = _kind(weights, rng)
  value = int(obj.name)
  if kind == "read":
    return f"answer en {_choice(READ, rng)}", obj.name
  if kind == "compare":
    # Half the answers are "yes" for every digit that allows both.
    above = value < 9 and (value == 0 or rng.random() < 0.5)
    limit = rng.integers(value, 9) if above else rng.integers(0, value)
    question = f"answer en is the digit greater than {limit}?"
    return question, "no" if above else "yes"
  return {
    "caption": (
      "caption en",
      f"the digit {value} in {obj.colour} on {ground}",
    ),
    "spell": ("answer en spell the digit", WORDS[value]),
    "even": ("answer en is the digit even?", "no" if value % 2 else "yes"),
    "colour": ("answer en what colour is the digit?", obj.colour),
    "count": ("answer en how many digits are there?", "1"),
    "detect": detect(obj.name, [obj]),
  }[kind]


def ask_digits(
  ground: str, objects: Sequence[Object], rng: np.random.Generator
) -> tuple[str, str]:
  """A question about two digits from left to right, and its answer."""
  left, right = (obj.name for obj in objects)
  both = f"the digits {left} and {right} in {objects[0].colour} on {ground}"
  options = [
    ("answer en read the digits", f"{left} {right}"),
    ("answer en read the digits", f"{left} {right}"),
    ("answer en what is the left digit?", left),
    ("answer en what is the right digit?", right),
    ("answer en how many digits are there?", "2"),
    ("caption en", both),
    detect(left if rng.random() < 0.5 else right, objects),
  ]
  return options[rng.integers(len(options))]


# --- Pictures with questions ------------------------------------------------


def _make_shapes(res, rng):
  ground, objects = draw_shapes(OVERSAMPLING * res, rng)
  noise = _sometimes(rng.uniform(2, 14), rng)
  return compose(ground, objects, res, noise, rng), *ask_shapes(objects, rng)


def _make_digits(res, rng):
  """A picture of one or two digits with a question, as make_example.

  Most are one white digit that fills 8x8 to 10x10 pixels of black: a model of
  this size learns to read digits at all from these, and only then the others
  (with a tenth of them it read nothing after 60,000 examples). The rest varies
  in place, colour, contrast and noise. A good half of it is coarse too:
  averaged down to a grid of 6 to 16 pixels, then enlarged bilinearly. A digit
  needs about 7 rows of such a grid to be legible, so it fills the small ones.
  """
  if rng.random() < SMALL_DIGITS:
    # White on black, as in a small scan.
    size, room = OVERSAMPLING * res, (0.12, 0.88)
    obj = draw_digit(size, (0.9, 1.0), room, "white", rng)
    picture = compose("black", [obj], int(rng.integers(8, 11)), 0.0, rng)
    picture = picture.resize((res, res), Image.Resampling.BILINEAR)
    return picture, *ask_digit("black", obj, rng)
  number = 2 if rng.random() < 0.15 else 1
  grid, heights = res, (0.45, 0.95)
  if rng.random() < 0.6:
    grid = 8 if rng.random() < 0.3 else int(rng.integers(6, 17))
    grid = max(grid, 13 if number == 2 else 6)
    heights = (min(7 / grid, 0.98), 1.0)
  ground, objects = draw_digits(OVERSAMPLING * res, number, heights, rng)
  noise = _sometimes(rng.uniform(2, 14), rng)
  picture = compose(ground, objects, grid, noise, rng)
  if grid != res:
    picture = picture.resize((res, res), Image.Resampling.BILINEAR)
  elif rng.random() < 0.4:
    blur = ImageFilter.GaussianBlur(rng.uniform(0.005, 0.02) * res)
    picture = picture.filter(blur)
  if number == 1:
    return picture, *ask_digit(ground, objects[0], rng)
  return picture, *ask_digits(ground, objects, rng)


def make_example(
  seed: int, split: str, index: int, res: int
) -> tuple[Image.Image, str, str]:
  """One picture of res x res pixels with one question: picture, prefix, suffix.

  Each has a random stream of its own, so that the number of workers and of
  pictures does not matter.
  """
  rng = np.random.default_rng([seed, SPLITS[split], index])
  # 0.72 pictures of digits, 0.84 of whose questions are to be read from them.
  make = _make_digits if rng.random() < 0.72 else _make_shapes
  return make(res, rng)


def _write_chunk(folder, split, seed, res, indices):
  """Writes the pictures of these indices; returns their lines of JSONL."""
  lines = []
  for index in indices:
    picture, prefix, suffix = make_example(seed, split, index, res)
    name = f"{split}/{index // FOLDER_SIZE:03d}/{index:06d}.png"
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    # Level 1: a quarter of the time of the default for 10% larger files.
    picture.save(path, compress_level=1)
    example = {"image": name, "prefix": prefix, "suffix": suffix}
    lines.append(json.dumps(example) + "\n")
  return "".join(lines)


def _write_split(folder, split, number, *, seed, res, workers):
  """Writes folder/split.jsonl and `number` pictures under folder/split."""
  write = functools.partial(_write_chunk, folder, split, seed, res)
  indices = range(number)
  chunks = [indices[i : i + FOLDER_SIZE] for i in indices[::FOLDER_SIZE]]
  with (folder / f"{split}.jsonl").open("w") as lines:
    if workers == 1:
      lines.writelines(map(write, chunks))
      return
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(workers, context) as pool:
      lines.writelines(pool.map(write, chunks))


def draw_pictures(
  out: str | os.PathLike,
  *,
  num: int,
  seed: int,
  res: int = 56,
  num_val: int = NUM_VAL,
  workers: int = 1,
) -> None:
  """Writes train.jsonl, val.jsonl and their pictures.

  The folder appears at once or not at all. The same seed and resolution give
  the same pictures, with any number of workers.

  Raises:
    OSError: `out` exists already and is not empty.
  """
  with disk.folder(out) as partial:
    for split, number in {"train": num, "val": num_val}.items():
      _write_split(partial, split, number, seed=seed, res=res, workers=workers)


def main() -> None:
  parser = command_line.parser(__doc__)
  parser.add_argument("out", help="the folder to make")
  parser.add_argument("--num", type=int, default=60000)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--res", type=int, default=56)
  parser.add_argument("--workers", type=int, default=1)
  options = parser.parse_args()
  draw_pictures(**vars(options))
  print(
    f"pictures: {options.out} written, {options.num} train and {NUM_VAL} val"
    f" examples at {options.res}x{options.res}"
  )


if __name__ == "__main__":
  command_line.run(main)
