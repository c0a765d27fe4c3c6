"""Photographs of digits in chalk on a slate, as a COCO export of Roboflow.

A person has drawn a box around each digit.
"""

import hashlib
import json
import pathlib

import numpy as np
from PIL import Image, ImageFilter

from scripts import make_digits

PAGE = 480  # pixels of the shorter side; the other is a third longer
HEIGHTS = (150, 290)  # of a digit, in pixels
GAP = 20  # pixels at least between two digits
EDGE = 30  # pixels of slate around the digits
BEND = 0.05  # of a side, by which a corner of the slate is off
NOISE = 5.0  # standard deviation, in gray values
# EXIF orientation: how the upright picture is turned to be stored.
TURNS = {
  1: None,
  3: Image.Transpose.ROTATE_180,
  6: Image.Transpose.ROTATE_90,
  8: Image.Transpose.ROTATE_270,
}
_ORIENTATION = 0x0112  # the tag


def photograph(
  scans: np.ndarray, rng: np.random.Generator
) -> tuple[Image.Image, list[list[int]]]:
  """Draws 1 to 3 digits on a slate, and photographs it.

  Args:
    scans: uint8[N, 8, 8] to choose from.
    rng: draws all that varies.

  Returns:
    The upright picture, and the [x, y, width, height] of each digit in pixels.
  """
  size = np.array([PAGE, PAGE * 4 // 3])[rng.permutation(2)]  # width, height
  bend = _bend(size, rng)
  inks, boxes = [], []
  for _ in range(rng.integers(1, 4)):
    scan = scans[rng.integers(len(scans))]
    digit = _enlarge(scan, int(rng.integers(*HEIGHTS)))
    for _ in range(50):
      corner = rng.integers(EDGE, size - digit.size - EDGE)
      page = Image.new("L", tuple(size))
      page.paste(digit, tuple(corner))
      seen = page.transform(page.size, *bend, Image.Resampling.BICUBIC)
      box = _box(seen)
      if not any(_touch(box, other) for other in boxes):
        inks.append(np.asarray(seen, np.float32) / 255)
        boxes.append(box)
        break
  return _light(np.maximum.reduce(inks), size, rng), [
    [x0, y0, x1 - x0, y1 - y0] for x0, y0, x1, y1 in boxes
  ]


def export(folder: pathlib.Path, count: int, seed: int = 0) -> None:
  """Writes `count` photographs and their annotations as Roboflow does.

  It names files x_jpg.rf.<hash>.jpg, states the size of the upright picture,
  and has a category for the project beside "digits". Every third file is stored
  turned, with an EXIF orientation, as a phone does.
  """
  scans, _ = make_digits.load_scans()
  (folder / "train").mkdir(parents=True)
  images, annotations = [], []
  for i in range(count):
    rng = np.random.default_rng((seed, i))
    picture, boxes = photograph(scans, rng)
    code = hashlib.md5(picture.tobytes()).hexdigest()
    name = f"IMG_{i:04}_jpg.rf.{code}.jpg"
    turn = int(rng.choice([3, 6, 8])) if i % 3 == 0 else 1
    save(picture, folder / "train" / name, turn)
    width, height = picture.size
    images.append(dict(id=i, file_name=name, width=width, height=height))
    for box in boxes:
      annotations.append(
        dict(
          id=len(annotations),
          image_id=i,
          category_id=1,
          bbox=box,
          area=box[2] * box[3],
          segmentation=[],
          iscrowd=0,
        )
      )
  categories = [
    dict(id=0, name="slate", supercategory="none"),
    dict(id=1, name="digits", supercategory="slate"),
  ]
  text = json.dumps(
    dict(images=images, annotations=annotations, categories=categories)
  )
  (folder / "train/_annotations.coco.json").write_text(text)


def save(picture: Image.Image, path: pathlib.Path, orientation: int) -> None:
  """Writes a JPEG whose pixels are turned, and whose EXIF says how."""
  exif = Image.Exif()
  exif[_ORIENTATION] = orientation
  turn = TURNS[orientation]
  picture = picture if turn is None else picture.transpose(turn)
  picture.save(path, quality=88, exif=exif)


def _enlarge(scan, height):
  """A digit so many pixels high, without anything around it."""
  gray = Image.fromarray(make_digits.to_gray(np.pad(scan, 1)))
  large = gray.resize((320, 320), Image.Resampling.BICUBIC)
  large = large.point(lambda ink: min(max(2 * ink - 128, 0), 255))
  large = large.crop(_box(large))
  width = max(round(large.width * height / large.height), 1)
  return large.resize((width, height), Image.Resampling.BICUBIC)


def _bend(size, rng):
  """Arguments of Image.transform: the slate, seen from a little aside."""
  corners = np.array([[0, 0], [1, 0], [1, 1], [0, 1]]) * size
  seen = corners + rng.uniform(-BEND, BEND, (4, 2)) * size
  rows, values = [], []
  for (x, y), (u, v) in zip(seen, corners, strict=True):
    rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y]]
    rows += [[0, 0, 0, x, y, 1, -v * x, -v * y]]
    values += [u, v]
  return Image.Transform.PERSPECTIVE, np.linalg.solve(rows, values).tolist()


def _light(ink, size, rng):
  """A colour picture of chalk on slate, darker at one side, with noise."""
  width, height = size
  chalk = rng.uniform(190, 245) * np.array([1, 0.98, rng.uniform(0.8, 1)])
  slate = rng.uniform(20, 55) * np.array([0.8, 1, 0.9])
  y, x = np.mgrid[-0.5 : 0.5 : height * 1j, -0.5 : 0.5 : width * 1j]
  angle = rng.uniform(0, 2 * np.pi)
  shade = 1 - 0.3 * (0.5 + np.cos(angle) * x + np.sin(angle) * y)[..., None]
  pixels = (slate + ink[..., None] * (chalk - slate)) * shade
  pixels += NOISE * rng.standard_normal(pixels.shape)
  picture = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
  return picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.2)))


def _box(ink):
  """(x0, y0, x1, y1) of the pixels that are more chalk than slate."""
  return ink.point(lambda value: 255 * (value >= 128)).getbbox()


def _touch(box, other):
  x0, y0, x1, y1 = box
  u0, v0, u1, v1 = other
  columns = x0 < u1 + GAP and u0 < x1 + GAP
  return columns and y0 < v1 + GAP and v0 < y1 + GAP
