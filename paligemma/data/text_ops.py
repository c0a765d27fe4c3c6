"""Ops on the fields of a raw example: they write its prefix and suffix.

None looks at the image. `key` names the field that an op reads, `to` the one
that it writes; None is the same.
"""

import dataclasses
import functools
import math
import numbers
import string
import zlib
from typing import Any

import numpy as np

from paligemma import registry
from paligemma.data import example_fields, masks
from paligemma.data.example_fields import Example


@dataclasses.dataclass(frozen=True)
class Format:
  """Writes prefix, and suffix if given, from templates of other fields.

      Format("answer en {question}", "{answer}")

  Attributes:
    prefix: Template of the prompt, as of str.format.
    suffix: Template of the answer. Default None leaves the answer as it is.

  Raises:
    ValueError: On an example that lacks a field, or where one is neither a text
      nor a number, such as null.
  """

  prefix: str
  suffix: str | None = None

  def __call__(self, example: Example, rng: np.random.Generator) -> Example:
    written = {"prefix": _fill(self.prefix, example)}
    if self.suffix is not None:
      written["suffix"] = _fill(self.suffix, example)
    return {**example, **written}


@dataclasses.dataclass(frozen=True)
class Copy:
  """Copies a field; "captions/text" is the field "text" of a field "captions".

  Copy("texts", "captions")
  """

  key: str
  to: str

  def __call__(self, example: Example, rng: np.random.Generator) -> Example:
    value, place = example, ""
    for name in [self.key] if self.key in example else self.key.split("/"):
      if not isinstance(value, dict):
        raise example_fields.wrong(
          example, place, f'fields, "{name}" among them'
        )
      value = example_fields.read(
        {**value, "_where": example_fields.where(example)}, name
      )
      place = name
    return {**example, self.to: value}


@dataclasses.dataclass(frozen=True)
class Text:
  """Writes a number, such as a count, as a text: 3 as "3"."""

  key: str
  to: str | None = None

  def __call__(self, example: Example, rng: np.random.Generator) -> Example:
    value = example_fields.read(example, self.key)
    if not isinstance(value, str | int | np.integer) or value is True:
      raise example_fields.wrong(example, self.key, "a whole number or a text")
    return {**example, self.to or self.key: str(value)}


@dataclasses.dataclass(frozen=True)
class Lower:
  """Turns a text, or every text of a list, to lower case."""

  key: str

  def __call__(self, example: Example, rng: np.random.Generator) -> Example:
    value = example_fields.read(example, self.key)
    if isinstance(value, str):
      return {**example, self.key: value.lower()}
    texts = _options(example, self.key, "a text or a list of texts", least=0)
    if not all(isinstance(text, str) for text in texts):
      raise example_fields.wrong(example, self.key, "a text or a list of texts")
    return {**example, self.key: [text.lower() for text in texts]}


@dataclasses.dataclass(frozen=True)
class Choice:
  """Takes a random element of a list field, such as one of five captions.

  Without replacement, an example that comes round n times has had each of its n
  elements once, in a random order that is another one in the next n epochs. The
  order depends on the place of the example and on the name of the field alone,
  not on the seed of the run; it needs "_index" and "_epoch", which batches
  give. Where they are missing, the choice is one with replacement.

  Attributes:
    key: A list of one element at least.
    to: Where the element goes. Default: it replaces the list.
    replace: Whether the draws of two epochs are independent. Default True.

  Source: choice and choice_no_replacement of big_vision, pp/ops_general.py,
  which counts in host memory how often it has seen an example, and forgets the
  count when the run is interrupted.
  """

  key: str
  to: str | None = None
  replace: bool = True

  def __call__(self, example: Example, rng: np.random.Generator) -> Example:
    options = _options(example, self.key, "a list to choose from")
    if self.replace or "_epoch" not in example:
      place = rng.integers(len(options))
    else:
      turn, place = divmod(int(example["_epoch"]), len(options))
      seed = zlib.crc32(self.key.encode()), int(example["_index"]), turn
      place = np.random.default_rng(seed).permutation(len(options))[place]
    return {**example, self.to or self.key: options[place]}


@dataclasses.dataclass(frozen=True)
class Pick:
  """Takes the element of a list field whose place another field tells.

      Pick("choices", "correct", "answer")

  Attributes:
    key: The list.
    index: Field with the place, from 0.
    to: Where the element goes.
  """

  key: str
  index: str
  to: str

  def __call__(self, example: Example, rng: np.random.Generator) -> Example:
    options = _options(example, self.key, "a list, one element at least")
    place = _place(example, self.index, len(options))
    return {**example, self.to: options[place]}


@dataclasses.dataclass(frozen=True)
class FillMasks:
  """Turns run-length masks of objects, as JSONL holds them, into bool[H, W].

  Masks that are arrays already stay as they are.

  Attributes:
    key: Field with the objects, whose "mask" is {"size": [H, W], "counts": ...}
      of COCO. Default "objects".
  """

  key: str = "objects"

  def __call__(self, example: Example, rng: np.random.Generator) -> Example:
    things = _options(example, self.key, "a list of objects", least=0)
    try:
      things = [
        {**thing, "mask": masks.from_rle(thing["mask"], *thing["mask"]["size"])}
        if isinstance(thing.get("mask"), dict)
        else thing
        for thing in things
      ]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
      raise ValueError(
        f'{example_fields.where(example)}: a mask of "{self.key}" cannot be '
        "read: "
        f"{error}"
      ) from None
    return {**example, self.key: things}


@dataclasses.dataclass(frozen=True)
class MultipleChoice:
  r"""Writes a prompt with the answers to choose from.

      "answer en  {question} choose from: {a} \t {b} \t {c}"

  Two spaces stand behind "en", and a tab between spaces between the answers, as
  in the published transfers to AI2D and A-OKVQA.

  Attributes:
    choices: Field with the list of answers.
    question: Field with the question.
  """

  choices: str
  question: str = "question"

  def __call__(self, example: Example, rng: np.random.Generator) -> Example:
    question = example_fields.text(example, self.question)
    choices = _texts(example, self.choices)
    options = " \t ".join(choices)
    prefix = f"answer en  {question} choose from: {options}"
    return {**example, "prefix": prefix}


# What ScienceQA calls its formats: the parts of the prompt in their order,
# question, context and multiple choices; of the answer, the letter with lecture
# and explanation.
SCIENCE_QA_PROMPTS = {
  "simple": "{question}\nOptions: {options}",
  "QM": "Question: {question}\nOptions: {options}\nAnswer:",
  "CQM": ("Context: {hint}\nQuestion: {question}\nOptions: {options}\nAnswer:"),
  "QCM": ("Question: {question}\nContext: {hint}\nOptions: {options}\nAnswer:"),
}
SCIENCE_QA_ANSWERS = {
  "simple": "{letter}",
  "A": "The answer is {letter}.",
  "AL": "The answer is {letter}. BECAUSE: {lecture}",
  "AE": "The answer is {letter}. BECAUSE: {solution}",
  "ALE": "The answer is {letter}. BECAUSE: {lecture} {solution}",
}


@dataclasses.dataclass(frozen=True)
class ScienceQA:
  """Writes prefix and suffix of a question with lettered choices.

      Question: Which is soft?
      Context: N/A
      Options: (A) stone, (B) wool
      Answer:                                       The answer is B.

  Fields: question, choices (a list), answer (the place of the right one, from
  0), hint ("" or missing becomes "N/A"); lecture and solution where the answer
  format has them.

  Attributes:
    prompt: Key of SCIENCE_QA_PROMPTS. Default "QCM".
    answer: Key of SCIENCE_QA_ANSWERS. Default "A".
    shuffle: Put the choices in a random order, for training. Default False.

  Raises:
    ValueError: An unknown format.

  Source: big_vision, configs/proj/paligemma/transfers/science_qa.py, and
  lupantech/ScienceQA, models/base_prompt.py. In big_vision "AL" gives the
  solution and "AE" the lecture; here they are as in ScienceQA.
  """

  prompt: str = "QCM"
  answer: str = "A"
  shuffle: bool = False

  def __post_init__(self):
    registry.lookup(
      SCIENCE_QA_PROMPTS, self.prompt, "prompt format of ScienceQA"
    )
    registry.lookup(
      SCIENCE_QA_ANSWERS, self.answer, "answer format of ScienceQA"
    )

  def __call__(self, example: Example, rng: np.random.Generator) -> Example:
    choices = _texts(example, "choices")
    right = _place(example, "answer", len(choices))
    order = np.arange(len(choices))
    if self.shuffle:
      order = rng.permutation(order)
    letters = string.ascii_uppercase
    if len(choices) > len(letters):
      raise example_fields.wrong(
        example, "choices", "no more choices than letters"
      )
    options = ", ".join(
      f"({letter}) {choices[i]}"
      for letter, i in zip(letters, order, strict=False)
    )
    written = {
      **example,
      "hint": example.get("hint") or "N/A",
      "options": options,
      "letter": letters[int(np.flatnonzero(order == right)[0])],
    }
    return {
      **example,
      "prefix": _fill(SCIENCE_QA_PROMPTS[self.prompt], written),
      "suffix": _fill(SCIENCE_QA_ANSWERS[self.answer], written),
    }


def _fill(template, example):
  try:
    text = template.format_map(example)
    values = [_FORMATTER.get_field(x, (), example)[0] for x in _names(template)]
  except KeyError as error:
    example_fields.read(example, error.args[0])  # raises: it is missing
    raise
  except (AttributeError, IndexError, TypeError, ValueError) as error:
    raise ValueError(
      f"{example_fields.where(example)}: cannot fill the template "
      f'"{template:.80}": '
      f"{error}"
    ) from None
  for name, value in zip(_names(template), values, strict=True):
    if not isinstance(value, str) and not _is_number(value):
      raise ValueError(
        f"{example_fields.where(example)}: {{{name}}} of the template is "
        f"{value!r:.60}, expected a text or a number"
      )
  return text


_FORMATTER = string.Formatter()


@functools.cache
def _names(template):
  """The fields in a template, "answers[0]" of "{answers[0]}"."""
  return [name for _, name, _, _ in _FORMATTER.parse(template) if name]


def _is_number(value):
  number = isinstance(value, numbers.Real) and not isinstance(value, bool)
  return number and math.isfinite(value)


def _options(example, key, expected, least=1) -> list[Any]:
  """The field, a list; TFDS gives arrays."""
  options = example_fields.read(example, key)
  if isinstance(options, np.ndarray):
    options = list(options)
  if not isinstance(options, list) or len(options) < least:
    raise example_fields.wrong(example, key, expected)
  return options


def _texts(example, key) -> list[str]:
  choices = _options(example, key, "a list of texts, one at least")
  if not all(isinstance(choice, str) for choice in choices):
    raise example_fields.wrong(example, key, "a list of texts, one at least")
  return choices


def _place(example, key, length) -> int:
  place = example_fields.read(example, key)
  whole = isinstance(place, int | np.integer) and not isinstance(place, bool)
  if not whole or not 0 <= place < length:
    raise example_fields.wrong(example, key, f"a place among {length}, from 0")
  return int(place)
