"""A raw example -> the arrays of one row of a batch."""

import dataclasses
from collections.abc import Callable

import numpy as np

from paligemma import tree
from paligemma.data import fields, image_ops, sequence
from paligemma.data import image as image_lib
from paligemma.data import tokenizer as tokenizer_lib
from paligemma.data.fields import Example

Op = Callable[[Example, np.random.Generator], Example]


@dataclasses.dataclass(frozen=True)
class Preprocess:
  """Makes a row from an example: picklable, and random only through its rng.

  Attributes:
    tokenizer: Gives the ids.
    res: Height and width of the image, in pixels.
    text_len: Number of input positions.
    train: True gives the supervised layout of `sequence.training`, for the loss
      and for perplexity. False gives `sequence.prompt`: the answer is not even
      looked at.
    ops: Applied in turn to the raw example; they write "prefix" and "suffix"
      where the source does not hold them.
    resize: Key of `image.PREPROCESSING`: "reference" (default; "bilinear" is
      the same), "hf" for weights that were tuned or are served with
      transformers, or "bicubic".
    too_long: Key of `sequence.TOO_LONG`, of use with train only.
    frames: 0 (default) for one image; F for a list, or an array, of exactly F
      images, which may differ in size.
  """

  tokenizer: tokenizer_lib.Tokenizer
  res: int
  text_len: int
  train: bool
  ops: tuple[Op, ...] = ()
  resize: str = "reference"
  too_long: str = "error"
  frames: int = 0

  def __post_init__(self):
    tree.lookup(image_lib.PREPROCESSING, self.resize, "resize method")
    tree.lookup(sequence.TOO_LONG, self.too_long, "choice of too_long")
    if self.frames < 0:
      raise ValueError(
        f"frames is {self.frames}, expected the number of frames, or 0 for one "
        "image"
      )

  def __call__(
    self, example: Example, rng: np.random.Generator
  ) -> dict[str, np.ndarray]:
    """Returns the arrays of the example.

    Args:
      example: Fields as from a source: "_where", and after the ops "image",
        as of `pictures.pixels`, or `frames` of those; "prefix" and, when
        training, "suffix", of which "unsupervised", if there, gives the parts
        that are no targets.
      rng: The only randomness the ops may use.

    Returns:
      dict of image float32[res, res, 3], or [frames, res, res, 3], in [-1, 1]
      (bicubic may overshoot), and the arrays of `sequence.training` or
      `sequence.prompt`.

    Raises:
      ValueError: A missing field, a bad image, another number of frames, or a
        sequence that is too long; the message begins with "_where".
    """
    example = self.prepare(example, rng)
    prefix = fields.text(example, "prefix")
    suffix = fields.text(example, "suffix") if self.train else None
    try:
      arrays = self._tokenize(prefix, suffix, example.get("unsupervised", ()))
    except ValueError as error:
      raise ValueError(f"{fields.where(example)}: {error}") from None
    image = fields.read(example, "image")
    return {"image": self._images(image, fields.where(example)), **arrays}

  def prepare(self, example: Example, rng: np.random.Generator) -> Example:
    """Returns the example after the ops, where evaluators find the answer."""
    for op in self.ops:
      example = op(example, rng)
    return example

  def padding(self) -> dict[str, np.ndarray]:
    """Returns a row of zeros, with the keys and shapes of every other row."""
    arrays = self._tokenize("", "" if self.train else None)
    frames = (self.frames,) if self.frames else ()
    arrays["image"] = np.empty((*frames, self.res, self.res, 3), np.float32)
    return {key: np.zeros_like(value) for key, value in arrays.items()}

  def _image(self, image, where):
    pixels = image_ops.pixels(image, where=where)
    return image_lib.PREPROCESSING[self.resize](pixels, (self.res, self.res))

  def _images(self, images, where):
    several = (
      isinstance(images, list | tuple) or getattr(images, "ndim", 0) == 4
    )
    found = f"{len(images)} frames" if several else "one image"
    expected = f"{self.frames} frames" if self.frames else "one image"
    if found != expected:
      raise ValueError(
        f'{where}: expected {expected} under "image", found {found}; what '
        f"`frames` of the config says ({self.frames}) holds for every example"
      )
    if not several:
      return self._image(images, where)
    rows = np.empty((self.frames, self.res, self.res, 3), np.float32)
    for i, image in enumerate(images):
      rows[i] = self._image(image, f"{where}, frame {i}")
    return rows

  def _tokenize(self, prefix, suffix, unsupervised=()):
    if not self.train:
      return sequence.prompt(self.tokenizer, prefix, self.text_len)
    return sequence.training(
      self.tokenizer,
      prefix,
      suffix,
      self.text_len,
      too_long=self.too_long,
      unsupervised=unsupervised,
    )
