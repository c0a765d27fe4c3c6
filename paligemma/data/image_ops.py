"""Ops on the image of a raw example; its objects move with the pixels.

The image is encoded (bytes), pixels (uint8[H, W, 3]) or another type that
`pixels` takes; ops decode it if they need pixels. Ops that move pixels also
move the example's "objects" (data/objects.py), and update its "height" and
"width" if it has them. They take one image; `Stack`, as the last op, collects
several frames.

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


@dataclasses.dataclass(frozen=True)
class Decode:
  """Decodes an image to pixels; other ops do it by themselves.

  Attributes:
    key: Field of the image. Default "image".
  """

  key: str = "image"

  def __call__(self, example: Example, rng: np.random.Generator) -> Example:
    return {**example, self.key: _read(example, self.key)}


@dataclasses.dataclass(frozen=True)
class Resize:
  """Resizes to uint8, where an op such as DrawBox needs the final size.

  `Preprocess` resizes by itself, without truncation to uint8.

  Attributes:
    size: (height, width) in pixels.
    method: Key of image.KERNELS. Default "bilinear".
    antialias: Widen the kernel when the image shrinks. Default True.
    key: Field of the image. Default "image"; objects belong to that one.

  Source: `resize` of big_vision, which truncates to uint8 as well; its default
  is without antialias.
  """

  size: tuple[int, int]
  method: str = "bilinear"
  antialias: bool = True
  key: str = "image"

  def __post_init__(self):
    registry.lookup(image_lib.KERNELS, self.method, "resize method")
    _check_size("Resize", self.size)

  def __call__(self, example: Example, rng: np.random.Generator) -> Example:
    image = _read(example, self.key)
    new = image_lib.truncated(image, self.size, self.method, self.antialias)
    if self.key != "image":
      return {**example, self.key: new}
    return _replace(
      example, new, lambda old: objects.resize(old, image.shape[:2], self.size)
    )


@dataclasses.dataclass(frozen=True)
class ResizeSmall:
  """Resizes so that the smaller side has a given length; keeps the aspect.

  Attributes:
    side: In pixels.
    method: Key of image.KERNELS. Default "area".
    antialias: As of Resize; without effect on "area". Default True.

  Source: `resize_small` of big_vision, likewise to uint8; its default is
  without antialias.
  """

  side: int
  method: str = "area"
  antialias: bool = True

  def __post_init__(self):
    registry.lookup(image_lib.KERNELS, self.method, "resize method")
    _check_size("ResizeSmall", (self.side, self.side))

  def __call__(self, example: Example, rng: np.random.Generator) -> Example:
    sides = np.array(_size(example), np.float32)
    rounded = np.rint(sides * np.float32(self.side / sides.min()))
    size = tuple(int(side) for side in rounded)
    return Resize(size, self.method, self.antialias)(example, rng)


@dataclasses.dataclass(frozen=True)
class CentralCrop:
  """Crops the centre of an image.

  Attributes:
    size: (height, width) in pixels; a smaller image is an error, so use
      ResizeSmall before. Default None: the largest square.
    min_visible: As of RandomCrop. Default 0.25.

  Source: `central_crop` of big_vision.
  """

  moves_pixels: ClassVar[bool] = True
  size: tuple[int, int] | None = None
  min_visible: float = 0.25

  def __post_init__(self):
    if self.size is not None:
      _check_size("CentralCrop", self.size)
    _check_shares("CentralCrop", min_visible=self.min_visible)

  def __call__(self, example: Example, rng: np.random.Generator) -> Example:
    height, width = _size(example)
    size = self.size or 2 * (min(height, width),)
    _check_fits(example, (height, width), size)
    y, x = (height - size[0]) // 2, (width - size[1]) // 2
    window = (y, x, y + size[0], x + size[1])
    return _crop(example, window, self.min_visible)


@dataclasses.dataclass(frozen=True)
class DrawBox:
  """Draws the outline of a box, red and one pixel wide.

  In the published recipe of widgetcap it comes after Resize, so that the line
  has the same width in every image. Rows are int(ymin * (height - 1)) and
  int(ymax * (height - 1)), columns likewise; sides outside are not drawn.

  Attributes:
    key: Field of the box, (ymin, xmin, ymax, xmax) relative to the image, as in
      TFDS. Other ops do not move it: draw before any crop. Default "bbox".

  Source: `draw_bbox` of big_vision, which is tf.image.draw_bounding_boxes.
  """

  key: str = "bbox"

  def __call__(self, example: Example, rng: np.random.Generator) -> Example:
    box = location.corners(example_fields.read(example, self.key))
    if box is None or (box[2:] < box[:2]).any():
      raise example_fields.wrong(
        example, self.key, "a relative box (ymin, xmin, ymax, xmax)"
      )
    image = _read(example, "image").copy()
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
  """Collects images of several fields in a list, for Preprocess(frames=...).

      Stack(("image_left", "image_right"))

  Attributes:
    keys: The fields, in the order of the frames. They are removed; the list is
      "image".

  Source: `stack_images` of big_vision, used in nlvr2.
  """

  keys: tuple[str, ...]

  def __call__(self, example: Example, rng: np.random.Generator) -> Example:
    frames = [example_fields.read(example, key) for key in self.keys]
    rest = {k: v for k, v in example.items() if k not in self.keys}
    return {**rest, "image": frames}


@dataclasses.dataclass(frozen=True)
class RandomCrop:
  """Crops a window of given size at a uniformly random position.

  Attributes:
    size: (height, width) in pixels; a smaller image is an error, so use Resize
      before.
    min_visible: Objects of which less than this share is left are dropped; see
      objects.crop. Default 0.25.
  """

  moves_pixels: ClassVar[bool] = True
  augments: ClassVar[bool] = True
  size: tuple[int, int]
  min_visible: float = 0.25

  def __post_init__(self):
    _check_size("RandomCrop", self.size)
    _check_shares("RandomCrop", min_visible=self.min_visible)

  def __call__(self, example: Example, rng: np.random.Generator) -> Example:
    height, width = _size(example)
    _check_fits(example, (height, width), self.size)
    y = int(rng.integers(height - self.size[0] + 1))
    x = int(rng.integers(width - self.size[1] + 1))
    window = (y, x, y + self.size[0], x + self.size[1])
    return _crop(example, window, self.min_visible)


@dataclasses.dataclass(frozen=True)
class InceptionCrop:
  """Crops a window of random area, aspect and position.

  Aspect, height and position are uniform within their bounds; after 100 draws
  that do not fit, the image stays whole.

  Attributes:
    area: Bounds of the share of the image's area. Default (0.05, 1).
    aspect: Bounds of width / height. Default (0.75, 1.33).
    min_covered: The crop holds at least this share of at least one object, if
      the image has objects. Default 0; 1 to keep the object of a question.
    min_visible: As of RandomCrop. Default 0.25.

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

  def __post_init__(self):
    _check_shares(
      "InceptionCrop",
      area=self.area,
      min_covered=self.min_covered,
      min_visible=self.min_visible,
    )
    low, high = self.aspect
    if not 0 < low <= high:
      raise ValueError(
        f"aspect of InceptionCrop is {self.aspect}, expected 0 < low <= high"
      )

  def __call__(self, example: Example, rng: np.random.Generator) -> Example:
    height, width = _size(example)
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
    y = int(rng.integers(height - new_height + 1))
    x = int(rng.integers(width - new_width + 1))
    return y, x, y + new_height, x + new_width


@dataclasses.dataclass(frozen=True)
class Flip:
  """Mirrors the image left to right, at random.

  Texts do not change, so a caption with "left" would become wrong, and letters
  in the image are mirrored. Name such texts, or do not use Flip.

  Attributes:
    probability: Of mirroring. Default 0.5.
    texts: Fields with a text; if one of them has a word that begins with "left"
      or "right", the image is not mirrored. English only. Default: none.
  """

  moves_pixels: ClassVar[bool] = True
  augments: ClassVar[bool] = True
  probability: float = 0.5
  texts: tuple[str, ...] = ()

  def __post_init__(self):
    _check_shares("Flip", probability=self.probability)

  def __call__(self, example: Example, rng: np.random.Generator) -> Example:
    stays = rng.random() >= self.probability
    if stays or any(
      _SIDED.search(example_fields.text(example, k)) for k in self.texts
    ):
      return example
    image = _read(example, "image")
    return _replace(
      example, image[:, ::-1], lambda old: objects.flip(old, image.shape[1])
    )


@dataclasses.dataclass(frozen=True)
class ZoomOut:
  """Puts the image at a random position on a larger canvas: smaller objects.

  Both sides grow by one factor, uniform in [1, largest], such that the canvas
  has at most image.MAX_PIXELS. Use Resize before if images are large.

  Attributes:
    largest: Largest factor. Default 4.
    probability: Of zooming out. Default 0.5.
    fill: Red, green and blue of the canvas. Default gray, 0 for the model.

  Source: SSD (arXiv:1512.02325), section 3.6, "zoom out", which fills with the
  mean of ImageNet.
  """

  moves_pixels: ClassVar[bool] = True
  augments: ClassVar[bool] = True
  largest: float = 4.0
  probability: float = 0.5
  fill: tuple[int, int, int] = (128, 128, 128)

  def __post_init__(self):
    _check_shares("ZoomOut", probability=self.probability)
    if not self.largest >= 1:
      raise ValueError(
        f"largest of ZoomOut is {self.largest}, expected a factor of at least 1"
      )

  def __call__(self, example: Example, rng: np.random.Generator) -> Example:
    if rng.random() >= self.probability:
      return example
    image = _read(example, "image")
    height, width, _ = image.shape
    most = max(math.sqrt(image_lib.MAX_PIXELS / (height * width)), 1)
    factor = rng.uniform(1, min(self.largest, most))
    new = int(height * factor), int(width * factor)
    y = int(rng.integers(new[0] - height + 1))
    x = int(rng.integers(new[1] - width + 1))
    canvas = np.empty((*new, 3), np.uint8)
    canvas[:] = self.fill
    canvas[y : y + height, x : x + width] = image
    return _replace(example, canvas, lambda old: objects.pad(old, (y, x), new))


@dataclasses.dataclass(frozen=True)
class JpegNoise:
  """Encodes the image as a JPEG of random quality.

  Attributes:
    quality: Lowest and highest quality of libjpeg, in [1, 100]. Default
      (30, 100).
    probability: Of encoding. Default 1.
  """

  augments: ClassVar[bool] = True
  quality: tuple[int, int] = (30, 100)
  probability: float = 1.0

  def __post_init__(self):
    _check_shares("JpegNoise", probability=self.probability)
    low, high = self.quality
    if not 1 <= low <= high <= 100:
      raise ValueError(
        f"quality of JpegNoise is {self.quality}, expected lowest and highest "
        "in [1, 100]"
      )

  def __call__(self, example: Example, rng: np.random.Generator) -> Example:
    if rng.random() >= self.probability:
      return example
    quality = int(rng.integers(self.quality[0], self.quality[1] + 1))
    data = io.BytesIO()
    Image.fromarray(_read(example, "image")).save(data, "JPEG", quality=quality)
    return {**example, "image": data.getvalue()}


def _read(example, key):
  """Returns the pixels of the single image under a key."""
  return pixels(
    example_fields.read(example, key), where=example_fields.where(example)
  )


def _size(example):
  return size(
    example_fields.read(example, "image"), where=example_fields.where(example)
  )


def _crop(example, window, min_visible):
  y0, x0, y1, x1 = window
  pixels = _read(example, "image")[y0:y1, x0:x1]
  return _replace(
    example, pixels, lambda old: objects.crop(old, window, min_visible)
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


def _check_fits(example, of_image, of_crop):
  (height, width), (rows, columns) = of_image, of_crop
  if height < rows or width < columns:
    raise example_fields.error(
      example,
      f"image of {height}x{width} pixels is smaller than a crop of "
      f"{rows}x{columns}; put Resize before it",
    )


def _check_size(op, size):
  if len(size) != 2 or min(size) < 1:
    raise ValueError(f"size of {op} is {size}, expected (height, width)")


def _check_shares(op, **shares):
  """Raises if a share, or a bound of one, is outside of [0, 1]."""
  for name, value in shares.items():
    bounds = np.atleast_1d(value).tolist()
    if not 0 <= bounds[0] <= bounds[-1] <= 1:
      raise ValueError(f"{name} of {op} is {value}, expected it in [0, 1]")
