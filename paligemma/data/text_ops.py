"""Ops on the texts of a raw example: they write its prefix and suffix."""

import dataclasses

import numpy as np

from paligemma.data import fields
from paligemma.data.fields import Example


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
    return {**example, self.key: fields.text(example, self.key).lower()}


@dataclasses.dataclass(frozen=True)
class Choice:
  """Replaces a list field, such as five captions, by a random element."""

  key: str

  def __call__(self, example: Example, rng: np.random.Generator) -> Example:
    options = fields.read(example, self.key)
    if not isinstance(options, list) or not options:
      raise fields.wrong(example, self.key, "a list to choose from")
    return {**example, self.key: options[rng.integers(len(options))]}


def _fill(template, example):
  try:
    return template.format_map(example)
  except KeyError as error:
    fields.read(example, error.args[0])  # raises: it is missing
    raise
  except ValueError as error:
    raise ValueError(
      f'{fields.where(example)}: malformed template "{template}": {error}'
    ) from None
