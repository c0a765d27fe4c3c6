"""What rows of the data tell before the first step: mistakes, notes, a table.

Rows drawn from every source go through the preprocess that training and
evaluation use, a few with their image, the others over a picture of one pixel.
Every process looks at the same rows in the same order, and so stops at the same
mistake.
"""

import dataclasses
import math
import time
from typing import NamedTuple

import numpy as np

from paligemma import evals, metrics, variants
from paligemma.checkpoints import formats
from paligemma.data import fields, preprocess, sources, tokenizer
from trainers import columns, inputs

ROWS = 256  # looked at, of all sources together
WHOLE = 2  # of each source, looked at with their image, however slow that is
SECONDS = 2.0  # for the others of all sources

_FIRST_LOC = 256_000  # <loc0000> in the vocabulary of published checkpoints
_LOW_SHARE = 0.01
_MARK = "qzxjv"  # no word of any data
_HEAD = (
  "data",
  "examples",
  "looked at",
  "prompt p50/p99/max",
  "answer",
  "text_len",
  "cut",
  "supervised",
)


@dataclasses.dataclass(frozen=True)
class Place:
  """Where rows are made: a source and what its examples go through.

  Attributes:
    name: "train.main" or "evals.val".
    source: the examples.
    preprocess: makes the rows.
    trains: whether ops see the position of an example, as in batches.train.
    skips: whether a bad example is skipped; else it would end the run.
    limit: only the first so many examples count; None for all.
    decodes: whether the model is to answer, and may not see the answer.
    answer_key: field with the answer or answers, after the ops.
    max_answer: most tokens that are decoded; None if none are.
    metric: reads the examples once all are decoded; None for none.
  """

  name: str
  source: sources.Source
  preprocess: preprocess.Preprocess
  trains: bool = False
  skips: bool = False
  limit: int | None = None
  decodes: bool = False
  answer_key: str = "suffix"
  max_answer: int | None = None
  metric: metrics.Metric | None = None

  def example(self, index):
    """The raw example of that index, as the ops see it."""
    position = {"_index": index, "_epoch": 0} if self.trains else {}
    return {**self.source[index], **position}

  def prepare(self, example, index):
    """The example after the ops, the random ones as in batches.evaluation."""
    return self.preprocess.prepare(example, np.random.default_rng(index))


class Row(NamedTuple):
  """Tokens of a row: prompt with bos and newline, answer with eos."""

  prompt: int
  answer: int | None  # None if the example has no text under answer_key
  supervised: int | None  # None without mask_loss
  cut: bool  # the answer has more tokens than fit or are decoded


@dataclasses.dataclass
class Found:
  """What a place has told: its good rows, bad examples by index, and notes."""

  rows: list[Row] = dataclasses.field(default_factory=list)
  bad: dict[int, str] = dataclasses.field(default_factory=dict)
  notes: list[str] = dataclasses.field(default_factory=list)


def check(plan, tok, evaluators):
  """Looks at rows of all sources, and at the shapes of the initial weights.

  Args:
    plan: trainers.plan.Plan, with its sources.
    tok: the tokenizer.
    evaluators: list of (evaluator, steps between two runs or None).

  Returns:
    str of several lines: a table with a line per source, then notes.

  Raises:
    ValueError: an example cannot be used, what is to predict an answer can see
      it, or nothing is supervised; names the place and the example.
  """
  places = train_places(plan, tok) + evaluation_places(evaluators)
  table, notes = [_HEAD], weight_notes(plan, tok)
  for place in places:
    share = 1 / len(places)
    found = look(place, tok, rows=int(ROWS * share), seconds=SECONDS * share)
    table.append(_line(place, found))
    notes += [f"{place.name}: {note}" for note in found.notes]
  lines = columns.align(table) + [f"note: {note}" for note in notes]
  return "\n".join(lines)


def train_places(plan, tok):
  """The sources of the training data."""
  data = plan.config.train
  through = inputs.make_preprocess(plan.config, data, tok, train=True)
  return [
    Place(
      f"train.{name}",
      source,
      through,
      trains=True,
      skips=data.on_bad == "skip",
    )
    for name, (source, _) in zip(data.sources, plan.sources, strict=True)
  ]


def evaluation_places(evaluators):
  """The sources of the evaluators.

  Raises:
    ValueError: a metric is unknown.
  """
  places = []
  for evaluator, _ in evaluators:
    place = Place(
      f"evals.{evaluator.name}",
      evaluator.source,
      evaluator.preprocess,
      skips=evaluator.on_bad == "skip",
      limit=getattr(evaluator, "limit", None),
    )
    if isinstance(evaluator, evals.Generate):
      metric = evaluator.metric and metrics.make(evaluator.metric)
      place = dataclasses.replace(
        place,
        decodes=True,
        answer_key=evaluator.answer_key,
        max_answer=evaluator.max_decode_len,
        metric=metric if isinstance(metric, metrics.Metric) else None,
      )
    places.append(place)
  return places


def look(place, tok, *, rows=ROWS, seconds=math.inf):
  """Looks at examples of one place, drawn at random, always the same ones.

  Args:
    place: a Place.
    tok: the tokenizer.
    rows: int, most examples to look at; at least WHOLE are.
    seconds: float, what those beyond WHOLE may take.

  Returns:
    Found.

  Raises:
    ValueError: as `check`.
  """
  size = min(len(place.source), place.limit or len(place.source))
  count = min(max(rows, WHOLE), size)
  drawn = np.random.default_rng(0).choice(size, count, replace=False).tolist()
  found, end = Found(), time.perf_counter() + seconds
  for number, index in enumerate(drawn):
    if number >= WHOLE and time.perf_counter() > end:
      break
    try:
      example = place.example(index)
      prepared = place.prepare(example, index)
      row = _tokens(place, prepared)
      whole = number < WHOLE and place.preprocess(
        example, np.random.default_rng(index)
      )
    except ValueError as error:
      found.bad[index] = str(error)
      continue
    where = f"{place.name}: {fields.where(example)}"
    _check_answer_is_unseen(place, where, prepared, row, tok.pad_id)
    _check_metric(place, prepared)
    if whole:
      _check_whole(place, where, whole)
      found.notes = found.notes or _copied_answer(place, example, index)
    found.rows.append(_count(place, tok, prepared, row))
  _conclude(place, found)
  return found


def _tokens(place, prepared):
  """The row of an example after the ops, over a picture of one pixel."""
  if "image" in prepared:
    image = prepared["image"]
    frames = isinstance(image, list | tuple) or np.ndim(image) == 4
    pixel = np.zeros((1, 1, 3), np.uint8)
    pixels = [pixel] * len(image) if frames else pixel
    prepared = {**prepared, "image": pixels}
  bare = dataclasses.replace(place.preprocess, ops=(), res=1)
  row = bare(prepared, np.random.default_rng(0))
  return {key: value for key, value in row.items() if key != "image"}


def _check_answer_is_unseen(place, where, prepared, row, pad_id):
  """Neither prompt nor masks show an answer to what is to predict it."""
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
  no_answer = dict.fromkeys({"suffix", place.answer_key} & prepared.keys(), "")
  other = _tokens(place, {**prepared, **no_answer})
  trains = "mask_loss" in row and not place.decodes
  prompt = int(supervised.argmax()) if trains else len(supervised)
  for key in ("text", "mask_ar", "mask_input"):
    if not np.array_equal(row[key][:prompt], other[key][:prompt]):
      hint = "; make it with the evaluation layout (train=False)"
      raise ValueError(
        f"{where}: the answer leaks into the prompt: without it, {key} of the "
        "prompt is another"
        + (hint if place.decodes and "mask_loss" in row else "")
      )


def _check_metric(place, prepared):
  """The metric finds what it reads of an example."""
  # Without a score of its own it may need all examples together.
  if place.metric and type(place.metric).score is not metrics.Metric.score:
    example = {key: prepared[key] for key in prepared if key != "image"}
    try:
      place.metric.score("", example, place.answer_key)
    except ValueError as error:
      raise ValueError(f"{place.name}: {error}") from None


def _check_whole(place, where, row):
  """The image is one, and padding can be stacked upon the row."""
  if not np.isfinite(row["image"]).all():
    raise ValueError(f"{where}: the preprocessed image is not finite")
  padding = place.preprocess.padding()
  if _shapes(row) != _shapes(padding):
    raise ValueError(
      f"{where}: the row has {_shapes(row)}, a row of padding "
      f"{_shapes(padding)}; they must be alike to be stacked"
    )
  for key in ("mask_input", "mask_loss"):
    if key in padding and padding[key].any():
      raise ValueError(f"{place.name}: {key} of a row of padding is not all 0")


def _shapes(row):
  shown = (f"{k} {v.dtype}{list(v.shape)}" for k, v in sorted(row.items()))
  return ", ".join(shown)


def _copied_answer(place, example, index):
  """Notes on a field that becomes the answer and stands in the prompt too.

  Told by a mark in its place: it is then all of the answer, and in the prompt.
  Where other texts of the field stand in the prompt too, they are choices.
  """
  for key, value in example.items():
    texts = [value] if isinstance(value, str) else value
    if key.startswith("_") or not isinstance(texts, list):
      continue
    marks = [f"{_MARK}{i}x" for i in range(len(texts))]
    marked = marks[0] if isinstance(value, str) else marks
    try:
      prepared = place.prepare({**example, key: marked}, index)
    except Exception:  # an op that looks for something in the field
      continue
    prompt = str(prepared.get("prefix")).lower()
    in_prompt = [mark for mark in marks if mark in prompt]
    answer = prepared.get(place.answer_key)
    answers = answer if isinstance(answer, list) else [answer]
    answers = [str(answer).lower() for answer in answers]
    if len(in_prompt) == 1 and in_prompt[0] in answers:
      return [
        f'an op writes "{key}", which is the answer, into the prompt, as of '
        f"{fields.where(example)}; right only if it stands there among others "
        "to choose from"
      ]
  return []


def _count(place, tok, prepared, row):
  if "mask_loss" in row:
    answer = supervised = int(row["mask_loss"].sum())
    prompt = int(row["mask_input"].sum()) - supervised
    return Row(prompt, answer, supervised, bool(row.get("truncated", False)))
  answers = prepared.get(place.answer_key)
  answers = answers if isinstance(answers, list) else [answers]
  lengths = [len(tok.encode(a, eos=True)) for a in answers if type(a) is str]
  answer = min(lengths, default=None)
  # An answer of just so many tokens is complete, though without its eos.
  cut = bool(answer and place.max_answer and answer - 1 > place.max_answer)
  return Row(int(row["mask_input"].sum()), answer, None, cut)


def _conclude(place, found):
  """What only all rows of a place together tell."""
  if found.bad:
    count = f"{len(found.bad)} of {len(found.bad) + len(found.rows)} examples"
    first = found.bad[min(found.bad)]
    if not place.skips:
      raise ValueError(
        f"{place.name}: {count} looked at cannot be used, the first: {first}"
      )
    found.notes.append(f"{count} looked at will be skipped, such as {first}")
  supervised = [row.supervised for row in found.rows]
  if None in supervised or not supervised:
    return
  if not any(supervised):
    raise ValueError(
      f"{place.name}: none of {len(supervised)} examples looked at has a "
      "supervised token; mask_loss is 0 throughout"
    )
  if empty := supervised.count(0):
    found.notes.append(
      f"{empty} of {len(supervised)} examples have no supervised token"
    )
  if (share := _share(place, found)) < _LOW_SHARE:
    found.notes.append(
      f"only {share:.2%} of text_len is supervised; if the rest is padding, a "
      "lower text_len saves time"
    )


def weight_notes(plan, tok):
  """What in the initial weights does not go with resolution or tokenizer.

  Args:
    plan: trainers.plan.Plan.
    tok: the tokenizer.

  Returns:
    List of lines.
  """
  config = plan.config
  leaves = formats.open(config.init).leaves if config.init else {}
  notes = []
  if positions := leaves.get("img/pos_embedding"):
    ours = {**plan.trainable, **plan.frozen}["img/pos_embedding"].shape[1]
    if positions.shape[1] != ours:
      notes.append(
        f"{config.init} has {positions.shape[1]} image positions, res "
        f"{config.res} makes {ours}: their embedding is resampled"
      )
  if table := leaves.get("llm/embedder/input_embedding"):
    rows = table.shape[0]
    if tok.vocab_size != rows:
      notes.append(
        f"{config.tokenizer} has {tok.vocab_size} ids, {config.init} a "
        f"vocabulary of {rows}: was it trained with this tokenizer?"
      )
    elif rows == variants.VOCAB_SIZE and tok.loc_id(0) != _FIRST_LOC:
      notes.append(
        f"{config.tokenizer} gives {tokenizer.LOC[0]} the id {tok.loc_id(0)}, "
        f"published checkpoints {_FIRST_LOC}: was {config.init} trained with "
        "this tokenizer?"
      )
  return notes


def _line(place, found):
  """The line of a place in the table."""
  answers = [row.answer for row in found.rows if row.answer is not None]
  supervises = found.rows and found.rows[0].supervised is not None
  return (
    place.name,
    f"{len(place.source):,}",
    str(len(found.rows) + len(found.bad)),
    _spread([row.prompt for row in found.rows]),
    _spread(answers),
    str(place.preprocess.text_len),
    str(sum(row.cut for row in found.rows)),
    f"{_share(place, found):.1%}" if supervises else "-",
  )


def _spread(numbers):
  if not numbers:
    return "-"
  marks = np.percentile(numbers, (50, 99, 100), method="higher")
  return "/".join(map(str, marks))


def _share(place, found):
  """Supervised tokens per input position."""
  supervised = [row.supervised for row in found.rows]
  return sum(supervised) / (len(supervised) * place.preprocess.text_len)
