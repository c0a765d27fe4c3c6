"""All texts of a source before the first step: their lengths and spelling.

No picture is opened. A source that cannot give its texts alone (TFDS), and
texts that ops write with the help of the picture, are looked at in a sample
(checks.look).
"""

import itertools
from collections.abc import Iterator

import numpy as np

from paligemma.data import example_fields, location, sources, spelling
from paligemma.data.tokenizer import Tokenizer
from trainers import places
from trainers.places import Found, Place, Row

# Examples whose texts are tokenized together. So few die before the garbage
# collector has gone through them twice: of 8192 it takes a third of the time.
_CHUNK = 256
_LOCATED = 4
_EMPTY = "empty answers"


def read(place: Place, tok: Tokenizer) -> Found:
  """Reads all examples of a place, without their pictures.

  Args:
    place: where they are made.
    tok: the tokenizer.

  Returns:
    Found. It is complete unless the source cannot give its texts alone, which
    leaves nothing, or ops need the picture, which leaves the lines that cannot
    be read.

  Raises:
    ValueError: all answers of the training data are empty, or the metric of an
      evaluator does not find what it reads.
  """
  found, remarks, scored = Found(is_complete=True), _Remarks(), []
  examples = enumerate(_examples(place))
  while part := list(itertools.islice(examples, _CHUNK)):
    prepared = {}
    for index, example in part:
      try:
        if isinstance(example, ValueError):
          raise example
        prepared[index] = _prepare(place, example, index, remarks)
      except Exception as error:
        if _ops_need_images(place, index):
          return _unreadable(place)
        if not isinstance(error, ValueError):
          raise
        found.bad[index] = str(error)
    _count(place, tok, prepared, found, remarks)
    if place.metric:
      scored += [e for i, (e, _) in prepared.items() if i in found.rows]
  if not found.rows and not found.bad:
    return Found()
  _check_answers(place, found, remarks)
  if scored:
    check_metric(place, scored)
  found.notes += remarks.lines()
  return found


def _unreadable(place):
  """What is wrong with single lines of a source whose ops need pictures."""
  errors = (
    (index, str(example))
    for index, example in enumerate(_examples(place))
    if isinstance(example, ValueError)
  )
  return Found(bad=dict(errors))


def located(place: Place) -> list[int]:
  """Indices of a few examples whose locations an op would leave behind."""
  if not any(getattr(op, "moves_pixels", False) for op in place.preprocess.ops):
    return []
  indices = (
    index
    for index, example in enumerate(_examples(place))
    if isinstance(example, dict) and location.runs(list(example.values()))
  )
  return list(itertools.islice(indices, _LOCATED))


def _examples(place) -> Iterator[dict | ValueError]:
  """All that count, or none if they cannot be read without pictures."""
  examples = sources.without_images(place.source) or ()
  return itertools.islice(examples, place.limit)


def _prepare(place, example, index, remarks):
  """The example after the ops, with its texts as they are used; its answers."""
  through = place.preprocess
  rng = np.random.default_rng(index) if through.ops else None
  example = through.apply_ops(place.positioned(example, index), rng)
  example, removed = through.read_texts(example, place.answer_key)
  where = example_fields.where(example)
  example_fields.text(example, "prefix")
  if through.train:
    example_fields.text(example, "suffix")
  for what in removed:
    remarks.add(f"{what} taken off", where)
  answers = places.answers(place, example)
  if through.texts != "plain":
    for text in (example["prefix"], *answers):
      if found := spelling.find_foreign(text):
        remarks.add(f'"{found}", no control token here but text', where)
  for answer in answers:
    if answer.startswith(("\n", "\r")):
      remarks.add("answers that begin with a line break", where)
    if "<" in answer and location.has_flat_box(answer):
      remarks.add("answers with a box upside down or without area", where)
    if not answer or answer.isspace():
      remarks.add(_EMPTY, where)
  return example, answers


def _ops_need_images(place, index):
  """Whether an example that failed is good if only its picture is there."""
  if not place.preprocess.ops:
    return False
  rng = np.random.default_rng(index)
  try:
    place.preprocess.apply_ops(place.example(index), rng)
  except Exception:
    return False
  return True


def _count(place, tok, prepared, found, remarks):
  """Adds the rows of all examples, and errors of those that do not fit."""
  distinct = {
    text
    for example, answers in prepared.values()
    for text in (example["prefix"], *answers)
  }
  lengths = {text: len(tok.encode(text)) for text in distinct}
  for index, (example, answers) in prepared.items():
    prompt = lengths[example["prefix"]] + 2  # bos and newline
    answer = min([lengths[text] + 1 for text in answers], default=None)  # eos
    try:
      found.rows[index] = _row(place, tok, example, prompt, answer)
    except ValueError as error:
      found.bad[index] = str(error)
      continue
    if prompt > place.preprocess.text_len:
      remarks.add("prompts cut to text_len", example_fields.where(example))


def _row(place, tok, example, prompt, answer):
  through = place.preprocess
  if not through.train and prompt <= through.text_len:
    return places.prompt_row(place, prompt, answer)
  fits = answer is not None and prompt + answer <= through.text_len + 1
  if through.train and fits and not example.get("unsupervised"):
    return Row(prompt, answer, answer, False)
  # Whatever does not fit is cut or refused as in training.
  return places.count(place, tok, example, places.tokens(place, example))


def _check_answers(place, found, remarks):
  """Some answer has a text, where answers are to be learned."""
  empty, first = remarks.seen.get(_EMPTY, (0, ""))
  if place.preprocess.train and 0 < len(found.rows) <= empty:
    raise ValueError(
      f"{place.name}: the answers of all {empty} examples are empty, the "
      f"first: {first}; were their labels found?"
    )


def check_metric(place: Place, examples: list[example_fields.Example]) -> None:
  """Raises if the metric of an evaluator does not find what it reads."""
  if place.metric.reads_size:  # which the evaluator takes from the picture
    size = {"height": 1, "width": 1}
    examples = [
      {**example, **{k: v for k, v in size.items() if example.get(k) is None}}
      for example in examples
    ]
  try:
    place.metric.rows(
      [""] * len(examples), examples, answer_key=place.answer_key
    )
  except ValueError as error:
    raise ValueError(f"{place.name}: {error}") from None


class _Remarks:
  """Counts what is odd, and remembers where it was first."""

  def __init__(self):
    self.seen = {}

  def add(self, what, where):
    count, first = self.seen.get(what, (0, where))
    self.seen[what] = count + 1, first

  def lines(self):
    return [
      f"{what}: {count}, the first at {first}"
      for what, (count, first) in self.seen.items()
    ]
