"""Ops on the fields of a raw example: they write its prefix and suffix.

They do not read the image. `key` names the field that an op reads, `to` the
field that it writes; to=None is the same field.
"""

import dataclasses
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

  The fields hold texts or numbers. By default the answer is kept.
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
  """Copies a field; "a/b" is the field "b" of a field "a"."""

  key: str
  to: str

  def __call__(self, example: Example, rng: np.random.Generator) -> Example:
    value, parent = example, ""
    for name in [self.key] if self.key in example else self.key.split("/"):
      if not isinstance(value, dict):
        raise example_fields.wrong(
          example, parent, f'fields, "{name}" among them'
        )
      where = example_fields.where(example)
      value = example_fields.read({**value, "_where": where}, name)
      parent = name
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
    found = texts(example, self.key, "a text or a list of texts", least=0)
    return {**example, self.key: [text.lower() for text in found]}


@dataclasses.dataclass(frozen=True)
class Choice:
  """Takes a random element of a list field, such as one of five captions.

  Without replacement, n epochs use each of the n elements of an example once,
  in a random order; the next n epochs use a new order. The order depends only
  on the index of the example and the name of the field, not on the seed of the
  run. It needs "_index" and "_epoch", which batches add; without them, elements
  are drawn with replacement.

  Source: choice and choice_no_replacement of big_vision, pp/ops_general.py,
  which loses count when the run is interrupted.
  """

  key: str
  to: str | None = None
  replace: bool = True

  def __call__(self, example: Example, rng: np.random.Generator) -> Example:
    options = _options(example, self.key, "a list to choose from")
    if self.replace or "_epoch" not in example:
      i = rng.integers(len(options))
    else:
      turn, i = divmod(int(example["_epoch"]), len(options))
      seed = zlib.crc32(self.key.encode()), int(example["_index"]), turn
      i = np.random.default_rng(seed).permutation(len(options))[i]
    return {**example, self.to or self.key: options[i]}


@dataclasses.dataclass(frozen=True)
class Pick:
  """Takes the element of a list field whose index is in another field."""

  key: str
  index: str
  to: str

  def __call__(self, example: Example, rng: np.random.Generator) -> Example:
    options = _options(example, self.key, "a list, one element at least")
    i = _index(example, self.index, len(options))
    return {**example, self.to: options[i]}


@dataclasses.dataclass(frozen=True)
class FillMasks:
  """Turns run-length masks of objects, as JSONL holds them, into bool[H, W].

  The "mask" of an object is {"size": [H, W], "counts": ...} of COCO, or an
  array, which is kept.
  """

  key: str = "objects"

  def __call__(self, example: Example, rng: np.random.Generator) -> Example:
    found = _options(example, self.key, "a list of objects", least=0)
    try:
      found = [
        {**item, "mask": masks.from_rle(item["mask"], *item["mask"]["size"])}
        if isinstance(item.get("mask"), dict)
        else item
        for item in found
      ]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
      raise example_fields.error(
        example, f'a mask of "{self.key}" cannot be read: {error}'
      ) from None
    return {**example, self.key: found}


@dataclasses.dataclass(frozen=True)
class MultipleChoice:
  r"""Writes a prompt with the answers of the field `choices` to choose from.

      "answer en  {question} choose from: {a} \t {b} \t {c}"

  As in the published transfers to AI2D and A-OKVQA, there are two spaces after
  "en", and answers are separated by a tab between spaces.
  """

  choices: str
  question: str = "question"

  def __call__(self, example: Example, rng: np.random.Generator) -> Example:
    question = example_fields.text(example, self.question)
    options = " \t ".join(texts(example, self.choices))
    prefix = f"answer en  {question} choose from: {options}"
    return {**example, "prefix": prefix}


# Named as in ScienceQA: the order of question, context and multiple choices in
# the prompt; answer, lecture and explanation in the answer.
SCIENCE_QA_PROMPTS = {
  "simple": "{question}\nOptions: {options}",
  "QM": "Question: {question}\nOptions: {options}\nAnswer:",
  "CQM": "Context: {hint}\nQuestion: {question}\nOptions: {options}\nAnswer:",
  "QCM": "Question: {question}\nContext: {hint}\nOptions: {options}\nAnswer:",
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

  Fields: question, choices (a list), answer (the index of the right one, from
  0), hint ("" or missing becomes "N/A"); lecture and solution if the answer
  format has them. Shuffle the choices for training only.

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
    choices = texts(example, "choices")
    right = _index(example, "answer", len(choices))
    letters = string.ascii_uppercase[: len(choices)]
    if len(choices) > len(letters):
      raise example_fields.wrong(
        example, "choices", "no more choices than letters"
      )
    order = np.arange(len(choices))
    order = (rng.permutation(order) if self.shuffle else order).tolist()
    shown = zip(letters, order, strict=True)
    written = {
      **example,
      "hint": example.get("hint") or "N/A",
      "options": ", ".join(f"({letter}) {choices[i]}" for letter, i in shown),
      "letter": letters[order.index(right)],
    }
    return {
      **example,
      "prefix": _fill(SCIENCE_QA_PROMPTS[self.prompt], written),
      "suffix": _fill(SCIENCE_QA_ANSWERS[self.answer], written),
    }


def _fill(template, example):
  formatter = string.Formatter()
  try:
    text = template.format_map(example)
    names = [name for _, name, _, _ in formatter.parse(template) if name]
    # The name of "{answers[0]}" is "answers[0]".
    values = [formatter.get_field(name, (), example)[0] for name in names]
  except KeyError as error:
    example_fields.read(example, error.args[0])  # raises: it is missing
    raise
  except (AttributeError, IndexError, TypeError, ValueError) as error:
    raise example_fields.error(
      example, f'cannot fill the template "{template:.80}": {error}'
    ) from None
  for name, value in zip(names, values, strict=True):
    if not isinstance(value, str) and not _is_number(value):
      raise example_fields.error(
        example,
        f"{{{name}}} of the template is {value!r:.60}, expected a text or a "
        "number",
      )
  return text


def _is_number(value):
  is_real = isinstance(value, numbers.Real) and not isinstance(value, bool)
  return is_real and math.isfinite(value)


def _options(example, key, expected, least=1) -> list[Any]:
  """Returns a field with a list or, as in TFDS, an array."""
  options = example_fields.read(example, key)
  if isinstance(options, np.ndarray):
    options = list(options)
  if not isinstance(options, list) or len(options) < least:
    raise example_fields.wrong(example, key, expected)
  return options


def texts(
  example: Example,
  key: str,
  expected: str = "a list of texts, one at least",
  least: int = 1,
) -> list[str]:
  """Returns a field that must be a list of so many texts or more."""
  found = _options(example, key, expected, least)
  if not all(isinstance(text, str) for text in found):
    raise example_fields.wrong(example, key, expected)
  return found


def _index(example, key, length) -> int:
  i = example_fields.read(example, key)
  is_integer = isinstance(i, int | np.integer) and not isinstance(i, bool)
  if not is_integer or not 0 <= i < length:
    raise example_fields.wrong(example, key, f"an index from 0 to {length - 1}")
  return int(i)
