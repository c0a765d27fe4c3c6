"""A raw example -> the arrays of one row of a batch."""

import dataclasses
from collections.abc import Callable

import numpy as np

from paligemma import tree
from paligemma.data import fields, sequence
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
  """

  tokenizer: tokenizer_lib.Tokenizer
  res: int
  text_len: int
  train: bool
  ops: tuple[Op, ...] = ()
  resize: str = "reference"
  too_long: str = "error"

  def __post_init__(self):
    tree.lookup(image_lib.PREPROCESSING, self.resize, "resize method")
    tree.lookup(sequence.TOO_LONG, self.too_long, "choice of too_long")

  def __call__(
    self, example: Example, rng: np.random.Generator
  ) -> dict[str, np.ndarray]:
    """Returns the arrays of the example.

    Args:
      example: Fields as from a source: "image" (bytes), "_where", and after the
        ops "prefix" and, when training, "suffix".
      rng: The only randomness the ops may use.

    Returns:
      dict of image float32[res, res, 3] in [-1, 1] (bicubic may overshoot), and
      the arrays of `sequence.training` or `sequence.prompt`.

    Raises:
      ValueError: A missing field, a bad image, or a sequence that is too long;
        the message begins with "_where".
    """
    example = self.prepare(example, rng)
    prefix = fields.text(example, "prefix")
    suffix = fields.text(example, "suffix") if self.train else None
    try:
      arrays = self._tokenize(prefix, suffix)
    except ValueError as error:
      raise ValueError(f"{fields.where(example)}: {error}") from None
    data = fields.read(example, "image")
    pixels = image_lib.decode(data, where=fields.where(example))
    to_input = image_lib.PREPROCESSING[self.resize]
    return {"image": to_input(pixels, (self.res, self.res)), **arrays}

  def prepare(self, example: Example, rng: np.random.Generator) -> Example:
    """Returns the example after the ops, where evaluators find the answer."""
    for op in self.ops:
      example = op(example, rng)
    return example

  def padding(self) -> dict[str, np.ndarray]:
    """Returns a row of zeros, with the keys and shapes of every other row."""
    arrays = self._tokenize("", "" if self.train else None)
    arrays["image"] = np.empty((self.res, self.res, 3), np.float32)
    return {key: np.zeros_like(value) for key, value in arrays.items()}

  def _tokenize(self, prefix, suffix):
    if not self.train:
      return sequence.prompt(self.tokenizer, prefix, self.text_len)
    return sequence.training(
      self.tokenizer, prefix, suffix, self.text_len, too_long=self.too_long
    )
