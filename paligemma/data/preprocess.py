"""A raw example -> its arrays in a batch."""

import dataclasses
import traceback
from collections.abc import Callable

import numpy as np

from paligemma import messages, registry
from paligemma.data import (
  example_fields,
  location,
  plain_text,
  sequence,
  spelling,
)
from paligemma.data import image as image_lib
from paligemma.data.example_fields import Example
from paligemma.data.pictures import pixels
from paligemma.data.tokenizer import Tokenizer

Op = Callable[[Example, np.random.Generator], Example]


@dataclasses.dataclass(frozen=True)
class Preprocess:
  """Turns an example into arrays: picklable, random only through its rng.

  Attributes:
    res: Height and width of the image, in pixels; None for texts alone.
    text_len: Number of input positions.
    train: True for `sequence.training`, for the loss and perplexity; False for
      `sequence.prompt`, which does not read the answer.
    ops: Applied in turn to the raw example; they write "prefix" and "suffix"
      if the source does not have them.
    resize: Key of `image.PREPROCESSING`: "reference" (default), "hf" for
      weights that are tuned or served with transformers, or another one.
    too_long: Key of `sequence.TOO_LONG`.
    texts: Key of `spelling.TEXTS`.
    frames: 0 (default) for one image; F for a list, or an array, of exactly F
      images, which may differ in size.
  """

  tokenizer: Tokenizer
  res: int | None
  text_len: int
  train: bool
  ops: tuple[Op, ...] = ()
  resize: str = "reference"
  too_long: str = "error"
  texts: str = "checked"
  frames: int = 0

  def __post_init__(self):
    registry.lookup(image_lib.PREPROCESSING, self.resize, "resize method")
    registry.lookup(sequence.TOO_LONG, self.too_long, "choice of too_long")
    registry.lookup(spelling.TEXTS, self.texts, "choice of texts")
    for op in self.ops:
      if not callable(op):
        raise ValueError(
          f"ops holds {op!r:.60}, expected functions of an example and an rng, "
          'such as text_ops.Format("caption en")'
        )
    if self.frames < 0:
      raise ValueError(
        f"frames is {self.frames}, expected the number of frames, or 0 for one "
        "image"
      )

  def __call__(
    self, example: Example, rng: np.random.Generator
  ) -> sequence.Arrays:
    """Returns the arrays of an example.

    After the ops an example has "image", as of `pictures.pixels`, or `frames`
    of those; "prefix"; and for training "suffix", with "unsupervised" spans if
    some of it is not supervised. A text alone is read by plain_text.read.

    Returns:
      dict of image float32[res, res, 3], or [frames, res, res, 3], in [-1, 1]
      (bicubic may overshoot), unless res is None, and the arrays of
      `sequence.training` or `sequence.prompt`, then causal.

    Raises:
      ValueError: A field is missing, the image is bad, the number of frames is
        wrong, or the sequence is too long; begins with "_where".
    """
    example = self.prepare(example, rng)
    prefix = example_fields.text(example, "prefix")
    suffix = example_fields.text(example, "suffix") if self.train else None
    try:
      arrays = self._tokenize(prefix, suffix, example.get("unsupervised") or ())
    except ValueError as error:
      raise example_fields.error(example, error) from None
    if self.res is None:
      return arrays
    images = example_fields.read(example, "image")
    where = example_fields.where(example)
    return {"image": self._images(images, where), **arrays}

  def prepare(
    self, example: Example, rng: np.random.Generator, answer_key: str = "suffix"
  ) -> Example:
    """Returns the example after `apply_ops` and `read_texts`."""
    return self.read_texts(self.apply_ops(example, rng), answer_key)[0]

  def apply_ops(self, example: Example, rng: np.random.Generator) -> Example:
    """Returns the example after the ops.

    Raises:
      ValueError: An op raises, whatever it is, or returns no example; or an op
        moved pixels and the prefix or suffix still has locations from before,
        its own or those of another field that a later op copied.
    """
    written, copied = {}, {}
    for op in self.ops:
      if getattr(op, "moves_pixels", False):
        for key in ("prefix", "suffix"):
          if location.runs(example.get(key)):
            written[key] = example[key], type(op).__name__
        if "objects" not in example:
          found = location.runs(list(example.values()))
          copied.update(dict.fromkeys(found, type(op).__name__))
      example = _apply(op, example, rng)
    for key in ("prefix", "suffix"):
      text, op = written.get(key, (None, ""))
      runs = location.runs(example.get(key))
      if not op and (stale := [run for run in runs if run in copied]):
        text, op = example[key], copied[stale[0]]
      if op and example.get(key) is text:
        raise example_fields.error(
          example,
          f'{op} moves the pixels, but not the locations in "{key}", which was '
          f'written before; leave {op} out, or give the example "objects" and '
          "write the text behind it, with DetectPrompt and WriteObjects",
        )
    return example

  def read_texts(
    self, example: Example, answer_key: str = "suffix"
  ) -> tuple[Example, tuple[str, ...]]:
    """Returns an example, after the ops, and which control tokens it removed.

    `spelling` reads and checks the prompt, "suffix", and the answer or list of
    answers under answer_key.
    """
    if self.res is None:
      example = plain_text.read(example, self.tokenizer, train=self.train)
    if self.texts == "plain":
      return example, ()
    read, removed = {}, ()
    try:
      if isinstance(text := example.get("prefix"), str):
        read["prefix"], removed = spelling.read_prompt(text, self._num_images)
      for key in {"suffix", answer_key}:
        value = example.get(key)
        texts = value if isinstance(value, list) else [value]
        if all(isinstance(text, str) for text in texts):
          answers = []
          for text in texts:
            answer, found = spelling.read_answer(text, learned=self.train)
            answers.append(answer)
            removed += found
          read[key] = answers if isinstance(value, list) else answers[0]
    except ValueError as error:
      raise example_fields.error(example, error) from None
    return {**example, **read}, removed

  def padding(self) -> sequence.Arrays:
    """Returns zeros with the keys and shapes of every example's arrays."""
    arrays = self._tokenize("", "" if self.train else None)
    if self.res is not None:
      frames = (self.frames,) if self.frames else ()
      arrays["image"] = np.empty((*frames, self.res, self.res, 3), np.float32)
    return {key: np.zeros_like(value) for key, value in arrays.items()}

  @property
  def _num_images(self):
    return 0 if self.res is None else self.frames or 1

  def _image(self, image, where):
    preprocess = image_lib.PREPROCESSING[self.resize]
    return preprocess(pixels(image, where=where), (self.res, self.res))

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
    frames = enumerate(images)
    return np.stack([self._image(x, f"{where}, frame {i}") for i, x in frames])

  def _tokenize(self, prefix, suffix, unsupervised=()):
    settings = {"too_long": self.too_long, "causal": self.res is None}
    tokenizer, length = self.tokenizer, self.text_len
    if not self.train:
      return sequence.prompt(tokenizer, prefix, length, **settings)
    return sequence.training(
      tokenizer, prefix, suffix, length, unsupervised=unsupervised, **settings
    )


def _apply(op, example, rng):
  """op(example, rng); an error of whatever kind is one line."""
  where = example_fields.where(example)
  name = getattr(op, "__qualname__", type(op).__name__)
  try:
    made = op(example, rng)
  except Exception as error:
    if isinstance(error, ValueError) and str(error).startswith(where):
      raise
    _, *frames = traceback.extract_tb(error.__traceback__)
    line = f" ({frames[0].filename}:{frames[0].lineno})" if frames else ""
    raise ValueError(
      f"{where}: op {name}{line}: {type(error).__name__}: "
      f"{messages.shown(str(error))}"
    ) from error
  if not isinstance(made, dict):
    raise ValueError(
      f"{where}: op {name} returned {messages.shown(repr(made))}, "
      "expected the example, a dict"
    )
  return made
