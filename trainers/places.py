"""Where rows of the data are made, and how long their texts are."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from paligemma import evals, metrics
from paligemma.data import preprocess, sources
from paligemma.data.example_fields import Example
from paligemma.data.tokenizer import Tokenizer
from trainers import inputs
from trainers.plan import Plan


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

  def example(self, index: int) -> Example:
    """The raw example of that index, as the ops see it."""
    return self.positioned(self.source[index], index)

  def positioned(self, example: Example, index: int) -> Example:
    """An example of the source with what ops see of its position."""
    return {**example, "_index": index, "_epoch": 0} if self.trains else example

  def prepare(self, example: Example, index: int) -> Example:
    """The example after the ops, the random ones as in batches.evaluation."""
    rng = np.random.default_rng(index)
    return self.preprocess.prepare(example, rng, self.answer_key)


class Row(NamedTuple):
  """Tokens of a row: prompt with bos and newline, answer with eos."""

  prompt: int
  answer: int | None  # None if the example has no text under answer_key
  supervised: int | None  # None without mask_loss
  cut: bool  # the answer has more tokens than fit or are decoded


@dataclasses.dataclass
class Found:
  """What a place has told.

  Attributes:
    rows: the good ones, by index.
    bad: why examples cannot be used, by index.
    notes: what is odd.
    is_complete: whether all examples were read, or rows are those of a sample.
  """

  rows: dict[int, Row] = dataclasses.field(default_factory=dict)
  bad: dict[int, str] = dataclasses.field(default_factory=dict)
  notes: list[str] = dataclasses.field(default_factory=list)
  is_complete: bool = False


def train_places(plan: Plan, tok: Tokenizer) -> list[Place]:
  """The sources of the training data."""
  data = plan.config.train
  made = inputs.train_preprocesses(plan.config, tok)
  return [
    Place(
      f"train.{name}",
      source,
      prepare,
      trains=True,
      skips=data.on_bad == "skip",
    )
    for name, (source, _), prepare in zip(
      data.sources, plan.sources, made, strict=True
    )
  ]


def evaluation_places(evaluators: Sequence[inputs.Scheduled]) -> list[Place]:
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


def tokens(place: Place, prepared: Example) -> dict[str, np.ndarray]:
  """The row of an example after the ops, over a picture of one pixel."""
  if "image" in prepared:
    image = prepared["image"]
    if image is None:  # not read
      image = [None] * place.preprocess.frames or np.empty(0)
    frames = isinstance(image, list | tuple) or np.ndim(image) == 4
    pixel = np.zeros((1, 1, 3), np.uint8)
    pixels = [pixel] * len(image) if frames else pixel
    prepared = {**prepared, "image": pixels}
  bare = dataclasses.replace(place.preprocess, ops=(), res=1)
  row = bare(prepared, np.random.default_rng(0))
  return {key: value for key, value in row.items() if key != "image"}


def count(
  place: Place, tok: Tokenizer, prepared: Example, row: dict[str, np.ndarray]
) -> Row:
  """The lengths of a row; the shortest of several answers counts."""
  if "mask_loss" in row:
    answer = supervised = int(row["mask_loss"].sum())
    prompt = int(row["mask_input"].sum()) - supervised
    return Row(prompt, answer, supervised, bool(row.get("truncated", False)))
  lengths = [len(tok.encode(a, eos=True)) for a in answers(place, prepared)]
  prompt = int(row["mask_input"].sum())
  return prompt_row(place, prompt, min(lengths, default=None))


def answers(place: Place, prepared: Example) -> list[str]:
  """The texts of the answer or answers, those that are texts."""
  value = prepared.get(place.answer_key)
  if isinstance(value, str):
    return [value]
  return [x for x in value if isinstance(x, str)] if type(value) is list else []


def prompt_row(place: Place, prompt: int, answer: int | None) -> Row:
  """The Row of a prompt of so many tokens, of whose answers one has so many."""
  # An answer of just so many tokens is complete, though without its eos.
  cut = bool(answer and place.max_answer and answer - 1 > place.max_answer)
  return Row(prompt, answer, None, cut)
