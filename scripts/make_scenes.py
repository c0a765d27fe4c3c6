"""Places scans of handwritten digits in pictures, to be found and cut out.

    python -m scripts.make_scenes OUT \
      --codec paligemma/assets/tiny_mask_codec.npz

Writes OUT/train.jsonl and OUT/test_{detect,answer,segment}.jsonl, and
the pictures that they name. Scans of test pictures are in no train picture.
"""

import dataclasses
import json
import os
from collections.abc import Sequence

import numpy as np
from PIL import Image

from paligemma import disk
from paligemma.data import location, mask_codes
from paligemma.data import masks as masks_lib
from scripts import make_digits
from scripts.assets import draw_pictures
from trainers import command_line

SIDE = 112  # of a picture, in pixels
# Boxes begin and end on a grid of so many pixels: a coarse ruler is learned
# faster.
STEP = 7
# Of digits, in steps, the last excluded, for 1, 2 and 3 of them in a picture.
HEIGHTS = ((8, 17), (6, 12), (6, 9))
GAP = 7  # pixels at least between the boxes of two digits
# Places that are tried for a digit, before other digits are.
TRIES = 20
# Gray values, drawn for each picture; the last is excluded.
PAPER, INK = (0, 60), (180, 256)
NOISE = 4  # standard deviation, in gray values
ABSENT = 0.3  # of the questions by name ask for a digit that is not there, too
PRINTED = 20_000  # digits of each split
SPLITS = ("train", "test")
ENCODED = 256  # masks at a time

SMOOTH = Image.Resampling.BICUBIC
# The edge of a digit is found in its scan with PAD pixels of paper at each
# side, enlarged FINE times.
PAD, FINE = 2, 16


@dataclasses.dataclass(frozen=True)
class Object:
  """A digit in a picture."""

  label: str  # "0" to "9"
  # (y0, x0, y1, x1) in pixels, multiples of STEP; the smallest around what is
  # inside, within a pixel
  box: tuple[int, int, int, int]
  ink: np.ndarray  # uint8[SIDE, SIDE] from 0 (paper) to 255 (ink)

  @property
  def mask(self) -> np.ndarray:
    """bool[SIDE, SIDE], what is inside."""
    return is_inside(self.ink)


def is_inside(ink: np.ndarray) -> np.ndarray:
  """Whether each pixel has more ink than paper."""
  return ink >= 128


# --- Digits -----------------------------------------------------------------


def print_scans(
  number: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
  """Prints so many digits and bends them: as make_digits.load_scans."""
  labels = rng.integers(10, size=number)
  scans = np.stack([_print_scan(str(label), rng) for label in labels])
  return scans, labels


def _print_scan(digit, rng):
  """uint8[8, 8], drawn again if its strokes would fade."""
  while True:
    glyph = draw_pictures.print_glyph(digit, rng)
    width = round(32 * glyph.width / glyph.height * rng.uniform(0.6, 1.1))
    width = min(max(width, 6), 30)
    ink = glyph.resize((width, 32), Image.Resampling.BILINEAR)
    page = Image.new("L", (32, 32))
    page.paste(ink, ((32 - width) // 2, 0))
    blocks = is_inside(np.asarray(page)).reshape(8, 4, 8, 4)
    scan = blocks.sum((1, 3)).astype(np.uint8)
    if np.all((scan >= 9).any(axis=1)):
      return scan


def load_scans(
  digits: str, seed: int
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
  """{split: (scans, labels)} of digits that are "scanned" or "printed"."""
  if digits == "printed":
    rng = np.random.default_rng(seed)
    return {split: print_scans(PRINTED, rng) for split in SPLITS}
  scans, labels = make_digits.load_scans()
  end = len(scans) - make_digits.NUM_TEST
  return {
    "train": (scans[:end], labels[:end]),
    "test": (scans[end:], labels[end:]),
  }


# --- Pictures ---------------------------------------------------------------


def enlarge(
  scan: np.ndarray, height: int
) -> tuple[Image.Image, tuple[int, int]]:
  """Makes a digit `height` steps high, and a whole number of steps wide.

  Returns a gray picture, with STEP pixels of paper at each side, and the height
  and width of what is inside, in pixels.
  """
  padded = np.pad(make_digits.to_gray(scan), PAD)
  picture = Image.fromarray(padded)
  fine = picture.resize([edge * FINE for edge in picture.size], SMOOTH)
  y0, x0, y1, x1 = (
    edge / FINE for edge in masks_lib.bounding_box(is_inside(np.asarray(fine)))
  )
  width = round(height * (x1 - x0) / (y1 - y0))
  width = min(max(width, 1), SIDE // STEP)
  # Pixels of the scan per step.
  dy, dx = (y1 - y0) / height, (x1 - x0) / width
  size = ((width + 2) * STEP, (height + 2) * STEP)
  around = (x0 - dx, y0 - dy, x1 + dx, y1 + dy)
  large = picture.resize(size, SMOOTH, around)
  return large, (height * STEP, width * STEP)


def place(
  scan: np.ndarray,
  label: str,
  height: int,
  others: Sequence[Object],
  rng: np.random.Generator,
) -> Object | None:
  """Puts a digit somewhere apart from the others; None after TRIES tries."""
  picture, (height, width) = enlarge(scan, height)
  room = (SIDE - height) // STEP + 1, (SIDE - width) // STEP + 1
  for top, left in (STEP * rng.integers(room, size=(TRIES, 2))).tolist():
    box = (top, left, top + height, left + width)
    if not any(_touch(box, other.box) for other in others):
      canvas = Image.new("L", (SIDE, SIDE))
      canvas.paste(picture, (left - STEP, top - STEP))
      return Object(label, box, np.asarray(canvas))
  return None


def draw_objects(
  scans: np.ndarray, labels: np.ndarray, rng: np.random.Generator
) -> list[Object]:
  """Draws 1 to 3 digits, sorted from top to bottom, one label at least single.

  Args:
    scans: uint8[N, 8, 8] to choose from.
    labels: of the scans.
    rng: draws all that varies.
  """
  number = int(rng.integers(1, len(HEIGHTS) + 1))
  while True:
    objects = []
    chosen = rng.integers(len(scans), size=number).tolist()
    heights = rng.integers(*HEIGHTS[number - 1], size=number).tolist()
    for i, height in zip(chosen, heights, strict=True):
      obj = place(scans[i], str(labels[i]), height, objects, rng)
      if obj is None:
        break
      objects.append(obj)
    if len(objects) == number and _single(objects):
      return sorted(objects, key=lambda obj: obj.box)


def _paint(objects, rng):
  """A gray picture of bright ink on dark paper, with some noise."""
  paper, bright = rng.integers(*PAPER), rng.integers(*INK)
  ink = np.maximum.reduce([obj.ink for obj in objects])
  pixels = paper + ink * ((bright - paper) / 255)
  pixels += NOISE * rng.standard_normal(pixels.shape, np.float32)
  return Image.fromarray(np.clip(np.round(pixels), 0, 255).astype(np.uint8))


def _touch(box, other):
  """Whether there are fewer than GAP pixels between two boxes."""
  y0, x0, y1, x1 = box
  v0, u0, v1, u1 = other
  rows = y0 < v1 + GAP and v0 < y1 + GAP
  return rows and x0 < u1 + GAP and u0 < x1 + GAP


def _single(objects):
  """The objects whose label no other object has."""
  labels = [obj.label for obj in objects]
  return [obj for obj in objects if labels.count(obj.label) == 1]


# --- Questions --------------------------------------------------------------


def ask_some(objects: Sequence[Object], rng: np.random.Generator) -> dict:
  """Asks "detect 3 ; 7": the boxes of one or two labels, in this order.

  At times one of those asked for is not in the picture.
  """
  present = sorted({obj.label for obj in objects})
  names = rng.permutation(present)[: rng.integers(1, 3)].tolist()
  if rng.random() < ABSENT:
    absent = [str(i) for i in range(10) if str(i) not in present]
    names = rng.permutation([*names[:1], rng.choice(absent)]).tolist()
  found = [obj for name in names for obj in objects if obj.label == name]
  return _detect(names, found)


def plainly(
  objects: Sequence[Object], rng: np.random.Generator
) -> tuple[list[dict], list[tuple[str, Object]]]:
  """Asks for all digits; if there is only one, also for its mask.

  Returns:
    Questions, and what to ask for the masks of: name and digit.
  """
  del rng  # nothing is drawn
  alone = [("digit", objects[0])] if len(objects) == 1 else []
  return [_detect(["digits"], objects)], alone


def _by_name(objects, rng):
  """Asks for all digits, for some by their label, and for one mask.

  To find what has a given label takes a model of this size far longer than to
  read what it has found.
  """
  single = _single(objects)
  obj = single[rng.integers(len(single))]
  read = {
    "prefix": "answer en read the digits",
    "suffix": " ".join(obj.label for obj in objects),
  }
  plain = [_detect(["digits"], objects), ask_some(objects, rng), read]
  return plain, [(obj.label, obj)]


ASK = {"plainly": plainly, "by_name": _by_name}


def _detect(names, objects):
  located = [location.Object(obj.box, obj.label) for obj in objects]
  return {
    "prefix": f"detect {location.SEPARATOR.join(names)}",
    "suffix": location.encode(located, (SIDE, SIDE)),
    "objects": [{"box": obj.box, "label": obj.label} for obj in objects],
  }


def _segment(name, obj, codes):
  located = location.Object(obj.box, obj.label, codes)
  return {
    "prefix": f"segment {name}",
    "suffix": location.encode([located], (SIDE, SIDE)),
    "box": obj.box,
    "mask": masks_lib.to_rle(obj.mask),
  }


# --- Files ------------------------------------------------------------------


def _write_split(folder, split, number, scans, labels, encoder, ask, seed):
  """Writes folder/split/*.png and yields the examples about each."""
  (folder / split).mkdir()
  for start in range(0, number, ENCODED):
    scenes, cut = [], []
    for index in range(start, min(start + ENCODED, number)):
      rng = np.random.default_rng((seed, SPLITS.index(split), index))
      objects = draw_objects(scans, labels, rng)
      name = f"{split}/{index:05d}.png"
      _paint(objects, rng).save(folder / name)
      plain, masked = ASK[ask](objects, rng)
      scenes.append((name, plain, masked))
      cut += [masks_lib.crop(obj.mask, obj.box) for _, obj in masked]
    codes = iter(encoder.codes(np.stack(cut)) if cut else ())
    for name, plain, masked in scenes:
      picture = {"image": name, "height": SIDE, "width": SIDE}
      plain += [_segment(what, obj, next(codes)) for what, obj in masked]
      for question in plain:
        yield picture | question


def make_scenes(
  out: str | os.PathLike,
  *,
  codec: str | os.PathLike,
  digits: str,
  ask: str,
  num_train: int,
  num_test: int,
  seed: int,
) -> None:
  """Writes train.jsonl, test_{detect,answer,segment}.jsonl and pictures.

  Every line has image, height, width, prefix and suffix; those of "detect" have
  "objects" (a list of box and label), those of "segment" have "box" and "mask"
  (run lengths of COCO), all in pixels, as the metrics read them.

  The folder appears as a whole or not at all. Digits are "scanned", those of
  make_digits.py, whose test scans are in test pictures only; or "printed",
  PRINTED others for each split. `ask` is a key of ASK.

  Raises:
    ValueError: the codec cannot be read.
    OSError: `out` exists already and is not empty.
  """
  with disk.folder(out) as partial:
    encoder = mask_codes.Encoder(codec)
    scans = load_scans(digits, seed)
    for split, number in zip(SPLITS, (num_train, num_test), strict=True):
      lines = {}
      for example in _write_split(
        partial, split, number, *scans[split], encoder, ask, seed
      ):
        kind, *_ = example["prefix"].split()
        name = "train" if split == "train" else f"test_{kind}"
        lines.setdefault(name, []).append(json.dumps(example) + "\n")
      for name, examples in lines.items():
        (partial / f"{name}.jsonl").write_text("".join(examples))


def main() -> None:
  parser = command_line.parser(__doc__)
  parser.add_argument("out", help="the folder to make")
  parser.add_argument("--codec", required=True, help="npz of the mask codec")
  parser.add_argument(
    "--digits", choices=("scanned", "printed"), default="scanned"
  )
  parser.add_argument("--ask", choices=list(ASK), default="plainly")
  parser.add_argument("--num_train", type=int, default=12000)
  parser.add_argument("--num_test", type=int, default=600)
  parser.add_argument("--seed", type=int, default=0)
  options = parser.parse_args()
  make_scenes(**vars(options))
  print(
    f"scenes: {options.out} written, {options.num_train} train and"
    f" {options.num_test} test pictures of {SIDE}x{SIDE}"
  )


if __name__ == "__main__":
  command_line.run(main)
