"""All texts of a source before the first step: their lengths and spelling.

No image is opened. Of a source that cannot give its texts alone (TFDS), and of
texts that ops write with the help of the image, a sample is read
(checks.look).
"""

import itertools
from collections.abc import Iterator

import numpy as np

from paligemma.data import (
  example_fields,
  image_ops,
  location,
  sources,
  spelling,
)
from paligemma.data.tokenizer import Tokenizer
from trainers.datasets import Dataset, Findings, TokenCounts

# Examples whose texts are tokenized together. So few die before the garbage
# collector has gone through them twice: of 8192 it takes a third of the time.
_CHUNK = 256
_LOCATED = 4
_EMPTY = "empty answers"


def read(dataset: Dataset, tok: Tokenizer) -> Findings:
  """Reads all examples of a dataset, without their images.

  They are complete unless the source cannot give its texts alone (then empty),
  or ops need the image (then only the lines that cannot be read).

  Raises:
    ValueError: all answers of the training data are empty, or the metric of an
      evaluator does not find what it reads.
  """
  found, remarks, scored = Findings(is_complete=True), {}, []
  examples = enumerate(_examples(dataset))
  while chunk := list(itertools.islice(examples, _CHUNK)):
    prepared = {}
    for index, example in chunk:
      try:
        if isinstance(example, ValueError):
          raise example
        prepared[index] = _prepare(dataset, example, index, remarks)
      except Exception as error:
        if _ops_need_images(dataset, index):
          return _unreadable(dataset)
        if not isinstance(error, ValueError):
          raise
        found.errors[index] = str(error)
    _count(dataset, tok, prepared, found, remarks)
    if dataset.metric:
      scored += [e for i, (e, _) in prepared.items() if i in found.counts]
  if not found.counts and not found.errors:
    return Findings()
  empty, first = remarks.get(_EMPTY, (0, ""))
  if dataset.preprocess.train and 0 < len(found.counts) <= empty:
    raise ValueError(
      f"{dataset.name}: the answers of all {empty} examples are empty, the "
      f"first: {first}; were their labels found?"
    )
  if scored:
    check_metric(dataset, scored)
  found.notes += [
    f"{what}: {count}, the first at {first}"
    for what, (count, first) in remarks.items()
  ]
  return found


def _unreadable(dataset):
  """What is wrong with single lines of a source whose ops need images."""
  errors = {
    index: str(example)
    for index, example in enumerate(_examples(dataset))
    if isinstance(example, ValueError)
  }
  return Findings(errors=errors)


def located(dataset: Dataset) -> list[int]:
  """Indices of a few examples whose locations an op would leave behind."""
  ops = dataset.preprocess.ops
  if not any(getattr(op, "moves_pixels", False) for op in ops):
    return []
  indices = (
    index
    for index, example in enumerate(_examples(dataset))
    if isinstance(example, dict) and location.runs(list(example.values()))
  )
  return list(itertools.islice(indices, _LOCATED))


def _examples(dataset) -> Iterator[dict | ValueError]:
  """All that count, or none if they cannot be read without images."""
  examples = sources.without_images(dataset.source) or ()
  return itertools.islice(examples, dataset.limit)


def _prepare(dataset, example, index, remarks):
  """The example after the ops, with its texts as they are used; its answers."""
  through = dataset.preprocess
  rng = np.random.default_rng(index) if through.ops else None
  example = through.apply_ops(dataset.indexed(example, index), rng)
  example, removed = through.read_texts(example, dataset.answer_key)
  where = example_fields.where(example)
  example_fields.text(example, "prefix")
  if through.train:
    example_fields.text(example, "suffix")
  for what in removed:
    _remark(remarks, f"{what} taken off", where)
  answers = dataset.answers(example)
  if through.texts != "plain":
    for text in (example["prefix"], *answers):
      found = spelling.find_foreign(text)
      if found and len(through.tokenizer.encode(found)) > 1:
        what = f'"{found}", no control token here but text'
        _remark(remarks, what, where)
  for answer in answers:
    if answer.startswith(("\n", "\r")):
      _remark(remarks, "answers that begin with a line break", where)
    if "<" in answer and location.has_flat_box(answer):
      what = "answers with a box upside down or without area"
      _remark(remarks, what, where)
    if not answer or answer.isspace():
      _remark(remarks, _EMPTY, where)
  return example, answers


def _remark(remarks, what, where):
  """Counts what is odd, and keeps where it was first."""
  count, first = remarks.get(what, (0, where))
  remarks[what] = count + 1, first


def _ops_need_images(dataset, index):
  """Whether the ops succeed on the example once they have its image."""
  if not dataset.preprocess.ops:
    return False
  rng = np.random.default_rng(index)
  try:
    dataset.preprocess.apply_ops(dataset.example(index), rng)
  except Exception:
    return False
  return True


def _count(dataset, tok, prepared, found, remarks):
  """Adds the counts of the examples, and errors of those that do not fit."""
  distinct = {
    text
    for example, answers in prepared.values()
    for text in (example["prefix"], *answers)
  }
  lengths = {text: len(tok.encode(text)) for text in distinct}
  through = dataset.preprocess
  for index, (example, answers) in prepared.items():
    # bos and newline; plain text has none
    prompt = lengths[example["prefix"]] + (1 if through.res is None else 2)
    answer = min([lengths[text] + 1 for text in answers], default=None)  # eos
    fits = answer is not None and prompt + answer <= through.text_len + 1
    try:
      if not through.train and prompt <= through.text_len:
        counts = dataset.count_decoded(prompt, answer)
      elif through.train and fits and not example.get("unsupervised"):
        counts = TokenCounts(prompt, answer, answer, False)
      else:  # cut or refused as in training
        counts = dataset.count(tok, example, dataset.tokenize(example))
    except ValueError as error:
      found.errors[index] = str(error)
      continue
    found.counts[index] = counts
    if prompt > through.text_len:
      where = example_fields.where(example)
      _remark(remarks, "prompts cut to text_len", where)


def check_metric(
  dataset: Dataset, examples: list[example_fields.Example]
) -> None:
  """Raises if the metric of an evaluator does not find what it reads."""
  try:
    if dataset.metric.reads_size:
      examples = [_sized(example) for example in examples]
    dataset.metric.rows(
      [""] * len(examples), examples, answer_key=dataset.answer_key
    )
  except ValueError as error:
    raise ValueError(f"{dataset.name}: {error}") from None


def _sized(example):
  """An example with the size that an evaluator takes from its image.

  If the image was not read, it is any size.
  """
  if None not in (example.get("height"), example.get("width")):
    return example
  height, width = 1, 1
  if example.get("image") is not None:
    try:
      height, width = image_ops.image_size(example)
    except ValueError as error:
      raise ValueError(
        f'{error}; or write "height" and "width" in pixels into the line'
      ) from None
  return {**example, "height": height, "width": width}
