"""A source with its preprocessing, as checks read it, and lengths of texts."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from paligemma import evals, metrics
from paligemma.data import packing, preprocess, sources
from paligemma.data.example_fields import Example
from paligemma.data.tokenizer import Tokenizer
from trainers import inputs
from trainers.plan import Plan


@dataclasses.dataclass(frozen=True)
class Dataset:
  """A source and what its examples go through.

  Attributes:
    name: "train.main" or "evals.val".
    trains: whether ops see the index of an example, as in batches.train.
    skips: whether a bad example is skipped; else it would end the run.
    limit: only the first so many examples count; None for all.
    decodes: whether the model is to answer, and may not see the answer.
    answer_key: field with the answer or answers, after the ops.
    max_answer: most tokens that are decoded; None if none are.
    metric: reads the examples once all are decoded; None for none.
    note: on what was chosen for it, "" for nothing.
    is_packed: whether its texts share rows.
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
  note: str = ""
  is_packed: bool = False

  def example(self, index: int) -> Example:
    """The raw example of that index, as the ops see it."""
    return self.indexed(self.source[index], index)

  def indexed(self, example: Example, index: int) -> Example:
    """An example of the source with what ops see of its index."""
    return {**example, "_index": index, "_epoch": 0} if self.trains else example

  def prepare(self, example: Example, index: int) -> Example:
    """The example after the ops, the random ones as in batches.evaluation."""
    rng = np.random.default_rng(index)
    return self.preprocess.prepare(example, rng, self.answer_key)

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

  def count(
    self, tok: Tokenizer, prepared: Example, row: dict[str, np.ndarray]
  ) -> "TokenCounts":
    """The counts of what `tokenize` returned; of answers the shortest."""
    if "mask_loss" in row:
      answer = supervised = int(row["mask_loss"].sum())
      prompt = int(row["mask_input"].sum()) - supervised
      cut = bool(row.get("truncated", False))
      return TokenCounts(prompt, answer, supervised, cut)
    lengths = [len(tok.encode(a, eos=True)) for a in self.answers(prepared)]
    prompt = int(row["mask_input"].sum())
    return self.count_decoded(prompt, min(lengths, default=None))

  def count_decoded(self, prompt: int, answer: int | None) -> "TokenCounts":
    """The counts of a prompt that is to be answered."""
    # An answer of just so many tokens is complete, though without its eos.
    cut = bool(answer and self.max_answer and answer - 1 > self.max_answer)
    return TokenCounts(prompt, answer, None, cut)


class TokenCounts(NamedTuple):
  """Tokens of an example: prompt with bos and newline, answer with eos."""

  prompt: int | None  # None of a caption, which is the answer here
  answer: int | None  # None if the example has no text under answer_key
  supervised: int | None  # None without mask_loss
  cut: bool  # the answer has more tokens than fit or are decoded


@dataclasses.dataclass
class Findings:
  """What was found in a dataset.

  Attributes:
    counts: of the good examples, by index.
    errors: why examples cannot be used, by index.
    notes: what is odd.
    is_complete: whether all examples were read, or only a sample.
    lengths: positions that the text of each takes, if all were read.
  """

  counts: dict[int, TokenCounts] = dataclasses.field(default_factory=dict)
  errors: dict[int, str] = dataclasses.field(default_factory=dict)
  notes: list[str] = dataclasses.field(default_factory=list)
  is_complete: bool = False
  lengths: np.ndarray | None = None


def train_datasets(plan: Plan, tok: Tokenizer) -> list[Dataset]:
  """The sources of the training data."""
  data = plan.config.train
  made = inputs.train_preprocesses(plan.config, tok)
  skips = data.on_bad == "skip"
  return [
    Dataset(
      f"train.{name}",
      source.source if isinstance(source, packing.Rows) else source,
      prepare,
      trains=True,
      skips=skips,
      note=_note(spec, source),
      is_packed=isinstance(source, packing.Rows),
    )
    for (name, spec), (source, _), prepare in zip(
      data.sources.items(), plan.sources, made, strict=True
    )
  ]


def _note(spec, source):
  """On a source of which a share is for evaluation, and on its rows."""
  notes = []
  if isinstance(source, packing.Rows):
    notes.append(source.describe())
    source = source.source
  if share := spec.get("val_share"):
    what, copies = "images", "copies of one picture"
    if spec.kind == "text_jsonl":
      what, copies = "lines", "equal ones"
    notes.append(
      f"{share:g} of the {what} of {spec.path} are held out as val (seed "
      f"{spec.seed}), {copies} together; {len(source):,} examples train"
    )
  return "; ".join(notes)


def evaluation_datasets(
  evaluators: Sequence[inputs.Scheduled],
) -> list[Dataset]:
  """The sources of the evaluators.

  Raises:
    ValueError: a metric is unknown.
  """
  datasets = []
  for evaluator, _ in evaluators:
    options = {}
    if isinstance(evaluator, evals.Generate):
      metric = evaluator.metric and metrics.make(evaluator.metric)
      options = dict(
        decodes=True,
        answer_key=evaluator.answer_key,
        max_answer=evaluator.max_decode_len,
        metric=metric if isinstance(metric, metrics.Metric) else None,
        note=evaluator.metric_note,
      )
    datasets.append(
      Dataset(
        f"evals.{evaluator.name}",
        evaluator.source,
        evaluator.preprocess,
        skips=evaluator.on_bad == "skip",
        limit=getattr(evaluator, "limit", None),
        **options,
      )
    )
  return datasets
