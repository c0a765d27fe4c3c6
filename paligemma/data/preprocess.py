"""A raw example -> the arrays of one row of a batch."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from paligemma import tree
from paligemma.data import image as image_lib
from paligemma.data import sequence
from paligemma.data import tokenizer as tokenizer_lib

Example = dict[str, Any]
Op = Callable[[Example, np.random.Generator], Example]


@dataclasses.dataclass(frozen=True)
class Format:
  """Writes prefix, and suffix if given, from templates of other fields.

      Format("answer en {question}", "{answer}")

  Attributes:
    prefix: Template of the prompt, as of str.format.
    suffix: Template of the answer. Default None leaves the answer as it is.
  """

  prefix: str
  suffix: str | None = None

  def __call__(self, example: Example, rng: np.random.Generator) -> Example:
    written = {"prefix": _fill(self.prefix, example)}
    if self.suffix is not None:
      written["suffix"] = _fill(self.suffix, example)
    return {**example, **written}


@dataclasses.dataclass(frozen=True)
class Lower:
  """Turns a text field to lower case."""

  key: str

  def __call__(self, example: Example, rng: np.random.Generator) -> Example:
    return {**example, self.key: _text(example, self.key).lower()}


@dataclasses.dataclass(frozen=True)
class Choice:
  """Replaces a list field, such as five captions, by a random element."""

  key: str

  def __call__(self, example: Example, rng: np.random.Generator) -> Example:
    options = _field(example, self.key)
    if not isinstance(options, list) or not options:
      raise ValueError(
        f'{_where(example)}: expected a list under "{self.key}" to choose '
        f"from, found {options!r}"
      )
    return {**example, self.key: options[rng.integers(len(options))]}


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
    prefix = _text(example, "prefix")
    suffix = _text(example, "suffix") if self.train else None
    try:
      arrays = self._tokenize(prefix, suffix)
    except ValueError as error:
      raise ValueError(f"{_where(example)}: {error}") from None
    data = _field(example, "image")
    pixels = image_lib.decode(data, where=_where(example))
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


def _where(example):
  return example.get("_where", "example")


def _field(example, key):
  if key in example:
    return example[key]
  raise _missing(example, key)


def _missing(example, key):
  present = [name for name in example if not name.startswith("_")]
  return ValueError(
    f'{_where(example)}: missing key "{key}", found {", ".join(present)}.'
    + tree.did_you_mean(key, present)
  )


def _text(example, key):
  text = _field(example, key)
  if not isinstance(text, str):
    raise ValueError(
      f'{_where(example)}: expected text under "{key}", found {text!r}'
    )
  return text


def _fill(template, example):
  try:
    return template.format_map(example)
  except KeyError as error:
    raise _missing(example, error.args[0]) from None
  except ValueError as error:
    raise ValueError(
      f'{_where(example)}: malformed template "{template}": {error}'
    ) from None
