"""Ops on the image of a raw example; its objects move with the pixels.

The image is of any type that `pixels` takes; ops decode it if they need pixels.
Ops that move pixels also move the example's "objects" (data/objects.py), and
update its "height" and "width" if it has them. They take one image; `Stack`, as
the last op, collects several frames.

An op with `augments` is for training only and belongs to `train.augment` of a
config, as evaluators share `train.ops`. An op with `moves_pixels` does not move
locations in texts: Preprocess refuses an example that has them.
"""

import dataclasses
import io
import math
import re
from typing import ClassVar

import numpy as np
from PIL import Image

from paligemma import registry
from paligemma.data import example_fields, location, objects
from paligemma.data import image as image_lib
from paligemma.data.example_fields import Example
from paligemma.data.pictures import pixels, size

_SIDED = re.compile(r"\b(left|right)", re.IGNORECASE)
_ATTEMPTS = 100  # as tf.image.sample_distorted_bounding_box

# Attribute of an op -> whether a value is valid, and what is expected.
_VALID = {
  "size": (lambda v: len(v) == 2 and min(v) >= 1, "(height, width)"),
  "side": (lambda v: v >= 1, "at least 1"),
  "area": (lambda v: 0 <= v[0] <= v[1] <= 1, "it in [0, 1]"),
  "min_covered": (lambda v: 0 <= v <= 1, "it in [0, 1]"),
  "min_visible": (lambda v: 0 <= v <= 1, "it in [0, 1]"),
  "probability": (lambda v: 0 <= v <= 1, "it in [0, 1]"),
  "aspect": (lambda v: 0 < v[0] <= v[1], "0 < low <= high"),
  "largest": (lambda v: v >= 1, "a factor of at least 1"),
  "quality": (lambda v: 1 <= v[0] <= v[1] <= 100, "bounds in [1, 100]"),
}


class _Checked:
  """An op whose attributes are checked when it is made."""

  def __post_init__(self):
    for name, (is_valid, expected) in _VALID.items():
      value = getattr(self, name, None)
      if value is not None and not is_valid(value):
        raise ValueError(
          f"{name} of {type(self).__name__} is {value}, expected {expected}"
        )
    if method := getattr(self, "method", None):
      registry.lookup(image_lib.KERNELS, method, "resize method")


@dataclasses.dataclass(frozen=True)
class Decode:
  """Decodes the image in a field to pixels; other ops do it by themselves."""

  key: str = "image"

  def __call__(self, example: Example, rng: np.random.Generator) -> Example:
    return {**example, self.key: _read(example, self.key)}


@dataclasses.dataclass(frozen=True)
class Resize(_Checked):
  """Resizes to uint8, where an op such as DrawBox needs the final size.

  `Preprocess` resizes by itself, without truncation to uint8.

  Attributes:
    method, antialias: As of image.resize.
    key: Field of the image; objects belong to "image".

  Source: `resize` of big_vision, which truncates to uint8 as well; its default
  is without antialias.
  """

  size: image_lib.Size
  method: str = "bilinear"
  antialias: bool = True
  key: str = "image"

  def __call__(self, example: Example, rng: np.random.Generator) -> Example:
    image = _read(example, self.key)
    new = image_lib.truncated(image, self.size, self.method, self.antialias)
    if self.key != "image":
      return {**example, self.key: new}
    return _replace(
      example, new, lambda old: objects.resize(old, image.shape[:2], self.size)
    )


@dataclasses.dataclass(frozen=True)
class ResizeSmall(_Checked):
  """Resizes the smaller side to a length in pixels; keeps the aspect.

  Source: `resize_small` of big_vision, likewise to uint8; its default is
  without antialias.
  """

  side: int
  method: str = "area"
  antialias: bool = True

  def __call__(self, example: Example, rng: np.random.Generator) -> Example:
    sides = np.array(image_size(example), np.float32)
    rounded = np.rint(sides * np.float32(self.side / sides.min()))
    size = tuple(int(side) for side in rounded)
    return Resize(size, self.method, self.antialias)(example, rng)


@dataclasses.dataclass(frozen=True)
class CentralCrop(_Checked):
  """Crops the centre of an image, by default the largest square.

  A smaller image than `size` is an error, so use ResizeSmall before.

  Source: `central_crop` of big_vision.
  """

  moves_pixels: ClassVar[bool] = True
  size: image_lib.Size | None = None
  min_visible: float = 0.25

  def __call__(self, example: Example, rng: np.random.Generator) -> Example:
    size = self.size or 2 * (min(image_size(example)),)
    y, x = (room // 2 for room in _room(example, size))
    window = (y, x, y + size[0], x + size[1])
    return _crop(example, window, self.min_visible)


@dataclasses.dataclass(frozen=True)
class RandomCrop(_Checked):
  """Crops a window of given size at a uniformly random position.

  A smaller image is an error, so use Resize before. Objects of which less than
  the share min_visible is left are dropped; see objects.crop.
  """

  moves_pixels: ClassVar[bool] = True
  augments: ClassVar[bool] = True
  size: image_lib.Size
  min_visible: float = 0.25

  def __call__(self, example: Example, rng: np.random.Generator) -> Example:
    room = _room(example, self.size)
    window = _random_window(self.size, room, rng)
    return _crop(example, window, self.min_visible)


@dataclasses.dataclass(frozen=True)
class DrawBox:
  """Draws the outline of a box, red and one pixel wide.

  In the published recipe of widgetcap it comes after Resize, so that the line
  has the same width in every image. The box, (ymin, xmin, ymax, xmax), is
  relative as in TFDS. Other ops do not move it: draw before any crop. Rows are
  int(ymin * (height - 1)) and int(ymax * (height - 1)), columns likewise; sides
  outside are not drawn.

  Source: `draw_bbox` of big_vision, which is tf.image.draw_bounding_boxes.
  """

  key: str = "bbox"

  def __call__(self, example: Example, rng: np.random.Generator) -> Example:
    box = location.corners(example_fields.read(example, self.key))
    if box is None:
      raise example_fields.wrong(
        example, self.key, "a relative box (ymin, xmin, ymax, xmax)"
      )
    image = _read(example).copy()
    last = np.array(image.shape[:2]) - 1
    box = box.astype(np.float32) * np.tile(last, 2).astype(np.float32)
    y0, x0, y1, x1 = box.astype(int)
    rows = slice(max(y0, 0), max(y1 + 1, 0))
    columns = slice(max(x0, 0), max(x1 + 1, 0))
    for y in {y0, y1} & set(range(last[0] + 1)):
      image[y, columns] = (255, 0, 0)
    for x in {x0, x1} & set(range(last[1] + 1)):
      image[rows, x] = (255, 0, 0)
    return {**example, "image": image}


@dataclasses.dataclass(frozen=True)
class Stack:
  """Collects the images of several fields in "image", and removes the fields.

      Stack(("image_left", "image_right"))    for Preprocess(frames=2)

  Source: `stack_images` of big_vision, used in nlvr2.
  """

  keys: tuple[str, ...]

  def __call__(self, example: Example, rng: np.random.Generator) -> Example:
    frames = [example_fields.read(example, key) for key in self.keys]
    rest = {k: v for k, v in example.items() if k not in self.keys}
    return {**rest, "image": frames}


@dataclasses.dataclass(frozen=True)
class InceptionCrop(_Checked):
  """Crops a window of random area, aspect and position.

  Aspect, height and position are uniform within their bounds; after 100 draws
  that do not fit, the image stays whole.

  Attributes:
    area: Bounds of the share of the image's area.
    aspect: Bounds of width / height.
    min_covered: Share of at least one object that the crop holds, if the image
      has objects; 1 to keep the object of a question.

  Source: `inception_crop` of big_vision, tf.image.sample_distorted_bounding_box
  after Szegedy et al. 2015, arXiv:1409.4842, section 6. If rounding moves an
  area out of the bounds, it corrects the crop by one pixel and we draw again;
  it never places a crop at the last row or column.
  """

  moves_pixels: ClassVar[bool] = True
  augments: ClassVar[bool] = True
  area: tuple[float, float] = (0.05, 1.0)
  aspect: tuple[float, float] = (0.75, 1.33)
  min_covered: float = 0.0
  min_visible: float = 0.25

  def __call__(self, example: Example, rng: np.random.Generator) -> Example:
    height, width = image_size(example)
    needed = self.min_covered > 0 and example.get("objects")
    found = objects.read(example) if needed else []
    for _ in range(_ATTEMPTS):
      window = self._draw(height, width, rng)
      if window and (
        not found or objects.crop(found, window, self.min_covered)
      ):
        return _crop(example, window, self.min_visible)
    return example

  def _draw(self, height, width, rng):
    aspect = rng.uniform(*self.aspect)
    areas = np.multiply(self.area, height * width)
    low, high = np.rint(np.sqrt(areas / aspect)).astype(int)
    high = min(high, height, int((width + 0.5) / aspect))
    new_height = int(rng.integers(min(low, high), high + 1))
    new_width = round(new_height * aspect)
    if not 0 < new_width <= width or not (
      areas[0] <= new_height * new_width <= areas[1]
    ):
      return None
    room = height - new_height, width - new_width
    return _random_window((new_height, new_width), room, rng)


@dataclasses.dataclass(frozen=True)
class Flip(_Checked):
  """Mirrors the image left to right, at random.

  Texts do not change, so a caption with "left" would become wrong, and letters
  in the image are mirrored. Name such texts, or do not use Flip.

  Attributes:
    texts: Fields with a text; if one of them has a word that begins with "left"
      or "right", the image is not mirrored. English only.
  """

  moves_pixels: ClassVar[bool] = True
  augments: ClassVar[bool] = True
  probability: float = 0.5
  texts: tuple[str, ...] = ()

  def __call__(self, example: Example, rng: np.random.Generator) -> Example:
    stays = rng.random() >= self.probability
    if stays or any(
      _SIDED.search(example_fields.text(example, k)) for k in self.texts
    ):
      return example
    image = _read(example)
    return _replace(
      example, image[:, ::-1], lambda old: objects.flip(old, image.shape[1])
    )


@dataclasses.dataclass(frozen=True)
class ZoomOut(_Checked):
  """Puts the image at a random position on a larger canvas: smaller objects.

  Both sides grow by one factor, uniform in [1, largest], such that the canvas
  has at most image.MAX_PIXELS. Use Resize before if images are large. The
  default RGB of the canvas is 0 for the model.

  Source: SSD (arXiv:1512.02325), section 3.6, "zoom out", which fills with the
  mean of ImageNet.
  """

  moves_pixels: ClassVar[bool] = True
  augments: ClassVar[bool] = True
  largest: float = 4.0
  probability: float = 0.5
  fill: tuple[int, int, int] = (128, 128, 128)

  def __call__(self, example: Example, rng: np.random.Generator) -> Example:
    if rng.random() >= self.probability:
      return example
    image = _read(example)
    height, width, _ = image.shape
    most = max(math.sqrt(image_lib.MAX_PIXELS / (height * width)), 1)
    factor = rng.uniform(1, min(self.largest, most))
    new = int(height * factor), int(width * factor)
    room = new[0] - height, new[1] - width
    y0, x0, y1, x1 = _random_window((height, width), room, rng)
    canvas = np.full((*new, 3), self.fill, np.uint8)
    canvas[y0:y1, x0:x1] = image
    return _replace(
      example, canvas, lambda old: objects.pad(old, (y0, x0), new)
    )


@dataclasses.dataclass(frozen=True)
class JpegNoise(_Checked):
  """Encodes the image as a JPEG of random quality, within bounds of libjpeg."""

  augments: ClassVar[bool] = True
  quality: tuple[int, int] = (30, 100)
  probability: float = 1.0

  def __call__(self, example: Example, rng: np.random.Generator) -> Example:
    if rng.random() >= self.probability:
      return example
    quality = int(rng.integers(self.quality[0], self.quality[1] + 1))
    data = io.BytesIO()
    Image.fromarray(_read(example)).save(data, "JPEG", quality=quality)
    return {**example, "image": data.getvalue()}


def image_size(example: Example) -> image_lib.Size:
  """Returns (height, width) of the image of an example."""
  image = example_fields.read(example, "image")
  return size(image, where=example_fields.where(example))


def _read(example, key="image"):
  image = example_fields.read(example, key)
  return pixels(image, where=example_fields.where(example))


def _room(example, size):
  """Returns by how many pixels a crop can move down and to the right."""
  height, width = image_size(example)
  if height < size[0] or width < size[1]:
    raise example_fields.error(
      example,
      f"image of {height}x{width} pixels is smaller than a crop of "
      f"{size[0]}x{size[1]}; put Resize before it",
    )
  return height - size[0], width - size[1]


def _random_window(size, room, rng):
  y, x = (int(rng.integers(side + 1)) for side in room)
  return y, x, y + size[0], x + size[1]


def _crop(example, window, min_visible):
  y0, x0, y1, x1 = window
  image = _read(example)[y0:y1, x0:x1]
  return _replace(
    example, image, lambda old: objects.crop(old, window, min_visible)
  )


def _replace(example, image, move):
  """Returns the example with another image; `move` maps its objects."""
  result = {**example, "image": image}
  if "objects" in example:
    result["objects"] = move(objects.read(example))
  for key, side in zip(("height", "width"), image.shape[:2], strict=True):
    if key in example:
      result[key] = side
  return result
