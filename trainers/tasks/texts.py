"""All texts of a source before the first step: their lengths and spelling.

No image is opened. Of a source that cannot give its texts alone (TFDS), and of
texts that ops write with the help of the image, a sample is read
(Dataset.sample).
"""

import dataclasses
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
from paligemma.data.example_fields import Example
from paligemma.data.sequence import Arrays
from paligemma.data.tokenizer import Tokenizer
from trainers.tasks.datasets import (
  Dataset,
  Findings,
  Texts,
  Token,
  TokenCounts,
)

# Examples whose texts are tokenized together. So few die before the garbage
# collector has gone through them twice: of 8192 it takes a third of the time.
_CHUNK = 256
_LOCATED = 4
_EMPTY = "empty answers"
_MARKER = "qzxjv"  # no word of any data


class TextDataset(Dataset):
  """Prompts and answers, for pictures or alone."""

  def read(self, tok: Tokenizer) -> Findings:
    """As Dataset; with ops that need the image, only what cannot be read.

    Raises:
      ValueError: all answers of the training data are empty, or the metric of
        an evaluator does not find what it reads.
    """
    found, remarks, scored = Findings(is_complete=True), {}, []
    examples = enumerate(_examples(self))
    while chunk := list(itertools.islice(examples, _CHUNK)):
      prepared = {}
      for index, example in chunk:
        try:
          if isinstance(example, ValueError):
            raise example
          prepared[index] = _prepare(self, example, index, remarks)
        except Exception as error:
          if _ops_need_images(self, index):
            return _unreadable(self)
          if not isinstance(error, ValueError):
            raise
          found.errors[index] = str(error)
      _count(self, tok, prepared, found, remarks)
      if self.metric:
        scored += [e for i, (e, _) in prepared.items() if i in found.counts]
    if not found.counts and not found.errors:
      return Findings()
    empty, first = remarks.get(_EMPTY, (0, ""))
    if self.preprocess.train and 0 < len(found.counts) <= empty:
      raise ValueError(
        f"{self.name}: the answers of all {empty} examples are empty, the "
        f"first: {first}; were their labels found?"
      )
    if scored:
      check_metric(self, scored)
    found.notes += [
      f"{what}: {count}, the first at {first}"
      for what, (count, first) in remarks.items()
    ]
    return found

  def located(self) -> list[int]:
    """Indices of a few examples whose locations an op would leave behind."""
    ops = self.preprocess.ops
    if not any(getattr(op, "moves_pixels", False) for op in ops):
      return []
    indices = (
      index
      for index, example in enumerate(_examples(self))
      if isinstance(example, dict) and location.runs(list(example.values()))
    )
    return list(itertools.islice(indices, _LOCATED))

  def tokenize(self, prepared: Example) -> dict[str, np.ndarray]:
    """Tokens and masks of an example after the ops; images are one pixel."""
    if "image" in prepared:
      image = prepared["image"]
      if image is None:  # not read
        image = [None] * self.preprocess.frames or np.empty(0)
      frames = isinstance(image, list | tuple) or np.ndim(image) == 4
      pixel = np.zeros((1, 1, 3), np.uint8)
      pixels = [pixel] * len(image) if frames else pixel
      prepared = {**prepared, "image": pixels}
    res = self.preprocess.res and 1
    bare = dataclasses.replace(self.preprocess, ops=(), res=res)
    row = bare(prepared, np.random.default_rng(0))
    return {key: value for key, value in row.items() if key != "image"}

  def answers(self, prepared: Example) -> list[str]:
    """The texts of the answer or answers."""
    value = prepared.get(self.answer_key)
    texts = value if type(value) is list else [value]
    return [x for x in texts if isinstance(x, str)]

  def count(self, tok: Tokenizer, prepared: Example) -> TokenCounts:
    """As Dataset; of several answers the shortest counts."""
    row = self.tokenize(prepared)
    if "mask_loss" in row:
      answer = supervised = int(row["mask_loss"].sum())
      prompt = int(row["mask_input"].sum()) - supervised
      cut = bool(row.get("truncated", False))
      return TokenCounts(prompt, answer, supervised, cut)
    lengths = [len(tok.encode(a, eos=True)) for a in self.answers(prepared)]
    prompt = int(row["mask_input"].sum())
    return self.count_decoded(prompt, min(lengths, default=None))

  def count_decoded(self, prompt: int, answer: int | None) -> TokenCounts:
    """The counts of a prompt that is to be answered."""
    # An answer of just so many tokens is complete, though without its eos.
    cut = bool(answer and self.max_answer and answer - 1 > self.max_answer)
    return TokenCounts(prompt, answer, None, cut)

  def check(
    self, tok: Tokenizer, index: int, example: Example, prepared: Example
  ) -> None:
    """As Dataset: a position sees what it predicts, or the metric misses it."""
    where = f"{self.name}: {example_fields.where(example)}"
    self._check_answer_is_unseen(where, prepared, tok.pad_id)
    if self.metric and self.metric.group_key is None:
      check_metric(self, [prepared])

  def _check_answer_is_unseen(self, where, prepared, pad_id):
    """Raises if a position can attend to the token that it must predict."""
    row = self.tokenize(prepared)
    supervised = row.get("mask_loss", np.zeros_like(row["text"])).astype(bool)
    padding = ~row["mask_input"].astype(bool) | (row["text"] == pad_id)
    if (at := np.flatnonzero(supervised & padding)).size:
      raise ValueError(
        f"{where}: mask_loss supervises padding, at position {at[0]}; it must "
        "end with the answer"
      )
    # What predicts a token is the position before it. It sees the token, unless
    # that begins a block; if so, it sees none of those that follow either.
    if (at := np.flatnonzero(supervised & (row["mask_ar"] == 0))).size:
      raise ValueError(
        f"{where}: position {at[0] - 1} is to predict the token at {at[0]} and "
        "sees it; mask_ar must be 1 wherever mask_loss is"
      )
    if prepared.get("unsupervised"):  # the answer may begin with such a part
      prepared = {**prepared, "unsupervised": ()}
      row = self.tokenize(prepared)
      supervised = row.get("mask_loss", supervised).astype(bool)
    answer_keys = {"suffix", self.answer_key} & prepared.keys()
    no_answer = dict.fromkeys(answer_keys, "")
    other = self.tokenize({**prepared, **no_answer})
    trains = "mask_loss" in row and not self.decodes
    prompt = int(supervised.argmax()) if trains else len(supervised)
    for key in ("text", "mask_ar", "mask_input"):
      if not np.array_equal(row[key][:prompt], other[key][:prompt]):
        hint = "; make it with the evaluation layout (train=False)"
        raise ValueError(
          f"{where}: the answer leaks into the prompt: without it, {key} of "
          "the prompt is another"
          + (hint if self.decodes and "mask_loss" in row else "")
        )

  def odd(self, example: Example, index: int) -> list[str]:
    """Notes on a field that becomes the answer and is in the prompt too.

    A marker stands for its text: is it the whole answer, and in the prompt too?
    Where other texts of the field are in the prompt, they are choices.
    """
    for key, value in example.items():
      texts = [value] if isinstance(value, str) else value
      if key.startswith("_") or not isinstance(texts, list):
        continue
      markers = [f"{_MARKER}{i}x" for i in range(len(texts))]
      marked = markers[0] if isinstance(value, str) else markers
      try:
        prepared = self.prepare({**example, key: marked}, index)
      except Exception:  # an op that looks for something in the field
        continue
      prompt = str(prepared.get("prefix")).lower()
      in_prompt = [marker for marker in markers if marker in prompt]
      answer = prepared.get(self.answer_key)
      answers = answer if isinstance(answer, list) else [answer]
      answers = [str(answer).lower() for answer in answers]
      if len(in_prompt) == 1 and in_prompt[0] in answers:
        return [
          f'an op writes "{key}", which is the answer, into the prompt, as of '
          f"{example_fields.where(example)}; right only if it stands there "
          "among others to choose from"
        ]
    return []

  def show(self, tok: Tokenizer, prepared: Example, row: Arrays) -> Texts:
    """As Dataset: prompt and answers; the start of each text of a row."""
    if not prepared:  # a row of several texts
      return Texts([], *tokens(tok, row))
    labelled = [("prompt", prepared["prefix"])] if prepared["prefix"] else []
    cut = " (cut to fit)" if row.get("truncated", False) else ""
    for number, text in enumerate(self.answers(prepared) or ["none"]):
      labelled.append(("or" if number else f"answer{cut}", text))
    return Texts(labelled, *tokens(tok, row))

  @property
  def rooms(self) -> tuple[tuple[str, int | None], ...]:
    """As Dataset; eos must not fit where answers are decoded."""
    room = self.preprocess.text_len
    second = ("prompt and answer", room + 1)
    if self.decodes:
      second = ("the answer", self.max_answer and self.max_answer + 1)
    return ("the prompt", room), second

  def measure(self, tok: Tokenizer, prepared: Example) -> tuple[int, ...]:
    """As Dataset; of several answers the shortest."""
    text = example_fields.text(prepared, "prefix")
    prompt = len(tok.encode(text)) + _num_extra(self)
    lengths = (len(tok.encode(x, eos=True)) for x in self.answers(prepared))
    answer = min(lengths, default=0)
    return prompt, answer if self.decodes else prompt + answer


def tokens(tok: Tokenizer, row: Arrays) -> tuple[list[Token], int]:
  """Returns the tokens of a row, and the number of further positions."""
  special = {tok.pad_id: "<pad>", tok.bos_id: "<bos>", tok.eos_id: "<eos>"}
  zeros = np.zeros_like(row["text"])
  found, segment = [], 0
  for i, ar, loss, seen, of_row in zip(
    row["text"].tolist(),
    row["mask_ar"],
    row.get("mask_loss", zeros),
    row["mask_input"],
    row.get("segment_ids", zeros),
    strict=True,
  ):
    if not seen:
      continue
    if of_row != segment:
      segment = of_row
      found.append(Token(f"text {segment}", "start"))
    kind = "supervised" if loss else "unsupervised" if ar else "prompt"
    found.append(Token(special.get(i) or tok.decode([i]), kind))
  return found, int((~row["mask_input"].astype(bool)).sum())


def _num_extra(dataset):
  """Tokens of a prompt besides its text: bos, and newline below a picture."""
  return 1 if dataset.preprocess.res is None else 2


def _unreadable(dataset):
  """What is wrong with single lines of a source whose ops need images."""
  errors = {
    index: str(example)
    for index, example in enumerate(_examples(dataset))
    if isinstance(example, ValueError)
  }
  return Findings(errors=errors)


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
    prompt = lengths[example["prefix"]] + _num_extra(dataset)
    answer = min([lengths[text] + 1 for text in answers], default=None)  # eos
    fits = answer is not None and prompt + answer <= through.text_len + 1
    try:
      if not through.train and prompt <= through.text_len:
        counts = dataset.count_decoded(prompt, answer)
      elif through.train and fits and not example.get("unsupervised"):
        counts = TokenCounts(prompt, answer, answer, False)
      else:  # cut or refused as in training
        counts = dataset.count(tok, example)
    except ValueError as error:
      found.errors[index] = str(error)
      continue
    found.counts[index] = counts
    if prompt > through.text_len:
      where = example_fields.where(example)
      _remark(remarks, "prompts cut to text_len", where)


def check_metric(dataset: Dataset, examples: list[Example]) -> None:
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
