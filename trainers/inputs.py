"""From the values of a config to tokenizer, batches and evaluators."""

import collections
import contextlib
import dataclasses
import functools
import itertools
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import grain
import jax
import numpy as np
from ml_collections import ConfigDict

from configs import common
from paligemma import evals, io, metrics
from paligemma.data import (
  batches,
  objects,
  packing,
  preprocess,
  sources,
  tokenizer,
)
from paligemma.data.example_fields import Example
from paligemma.evals.evaluator import Evaluator
from paligemma.metrics import choice, segmentation
from paligemma.models import mask_codec
from paligemma.training import sharding
from trainers import progress, schedule, tasks, text_lengths
from trainers.tasks import datasets

Weighted = tuple[sources.Source, float]
# An evaluator and the steps between two runs, None for the first and last.
Scheduled = tuple[Evaluator, int | None]

# Preprocessing of an evaluator; what it lacks is as in training.
_OWN = ("ops", "resize", "too_long", "texts", "text_len", "frames")
# Examples that a metric is chosen by, of a source that must read their images.
_SAMPLE = 64


def make_sources(config: ConfigDict) -> list[Weighted]:
  """Opens the training data: (source, weight) pairs.

  The weight of None is the number of examples, so that those of all such
  sources are as likely as in one file. Sources of one group add up their
  weights, and those of their examples are equal.

  Raises:
    ValueError: there is no source, or one cannot be read.
  """
  common.complete(config)
  if not config.train.sources:
    raise ValueError(
      "config.train.sources is empty, expected what to train on, such as "
      'dict(main=dict(kind="jsonl", path="train.jsonl"))'
    )
  specs = config.train.sources
  opened = [make_source(spec) for spec in specs.values()]
  if config.train.get("packing"):
    opened = _packed(config, opened)
  weighted = [
    (source, len(source) if spec.weight is None else spec.weight)
    for source, spec in zip(opened, specs.values(), strict=True)
  ]
  return _equal_in_groups(weighted, [spec.group for spec in specs.values()])


def _equal_in_groups(weighted, groups):
  weights, sizes = collections.Counter(), collections.Counter()
  for (source, weight), group in zip(weighted, groups, strict=True):
    weights[group] += weight
    sizes[group] += len(source)
  return [
    (source, weights[x] * len(source) / sizes[x] if x else weight)
    for (source, weight), x in zip(weighted, groups, strict=True)
  ]


def _packed(config, opened):
  """The rows of all sources, see packing.py."""
  task = tasks.of(config)
  model = task.make_model(config)
  if model.img is not None:
    raise ValueError(
      f"config.train.packing is for texts alone, {config.model.variant} has an "
      "image tower; set it to False"
    )
  tok = task.make_tokenizer(config, model)
  how = {"seed": config.seed, "on_bad": config.train.on_bad}
  with progress.stage("packing the texts"):
    return [
      packing.Rows(source, through, **how)
      for source, through in zip(
        opened, train_preprocesses(config, tok), strict=True
      )
    ]


def examples_per_epoch(train_sources: list[Weighted]) -> int:
  """Number of examples of all sources, as in big_vision/input_pipeline.py.

  Unless the weights are the sizes, an epoch of a mixture holds some examples
  more than once and others not at all.
  """
  return sum(len(source) for source, _ in train_sources)


def train_preprocesses(
  config: ConfigDict, tok: tokenizer.Tokenizer
) -> list[preprocess.Preprocess]:
  """The preprocessing of each source of the training data, of each text."""
  data, task = common.complete(config).train, tasks.of(config)
  return [
    task.make_preprocess(
      config, tok, train=True, ops=(*spec.ops, *data.augment, *data.ops)
    )
    for spec in data.sources.values()
  ]


def train_batches(
  config: ConfigDict, train_sources: list[Weighted], tok: tokenizer.Tokenizer
) -> batches.TrainBatches:
  """The endless iterator over this process's share of the training batches."""
  through = train_preprocesses(config, tok)
  if config.train.get("packing"):
    through = [packing.Preprocess(of_text) for of_text in through]
  return batches.train(
    train_sources,
    through,
    batch_size=config.batch_size,
    seed=config.seed,
    process_index=jax.process_index(),
    process_count=jax.process_count(),
    num_workers=config.train.num_workers,
    on_bad=config.train.on_bad,
  )


class Feed(grain.DatasetIterator):
  """Training batches on the devices, the next one prefetched during a step.

  Its state is that of the batches it has returned: a prefetched one is read
  again after a restart, and an error in it is raised when it is asked for.

  Attributes:
    seconds_waited: spent so far on waiting for batches to be read. While a step
      runs it costs nothing, until it is longer than the step.
  """

  def __init__(
    self,
    batches: Iterator[Any],
    shapes: Mapping[str, jax.ShapeDtypeStruct],
    lengths: Sequence[int] = (),
  ):
    """Takes batches, and what the step reads, see abstract_batch.

    Texts are padded to one of several `lengths`, see text_lengths.py.
    """
    super().__init__()
    self._lengths = lengths
    self._batches = batches
    self._keys = list(shapes)
    self._mesh = shapes["_mask"].sharding.mesh
    self._next = None  # (state before the prefetched batch, it, its error)
    self.seconds_waited = 0.0

  def __next__(self) -> tuple[dict[str, jax.Array], dict[str, int]]:
    """The next batch on the devices; how many examples it skips and cuts."""
    self.prefetch()
    (_, batch, error), self._next = self._next, None
    if error is not None:
      raise error
    return batch

  def prefetch(self) -> None:
    """Reads the next batch and begins to copy it, unless that is done."""
    if self._next is not None:
      return
    state = self._batches.get_state()
    local = found = problem = None
    try:
      local, counts = self._read()
    except Exception as error:
      problem = error
    # Also after an error: the other processes wait for this one's length.
    length = self._length(local)
    if local is not None:
      try:
        found = self._put(local, length), counts
      except Exception as error:
        problem = error
    self._next = state, found, problem

  def get_state(self) -> dict[str, Any]:
    return self._next[0] if self._next else self._batches.get_state()

  def set_state(self, state: dict[str, Any]) -> None:
    self._next = None
    self._batches.set_state(state)

  def close(self) -> None:
    """Ends the data workers."""
    self._batches.close()
    super().close()

  def _read(self):
    start = time.perf_counter()
    local = next(self._batches)
    self.seconds_waited += time.perf_counter() - start
    counts = {
      "skipped": int((~local["_mask"]).sum()),
      "truncated": int(local.get("truncated", 0 * local["_mask"]).sum()),
    }
    return local, counts

  def _length(self, local):
    if len(self._lengths) > 1:
      mask = None if local is None else local["mask_input"]
      return text_lengths.of_batch(mask, self._lengths)
    return None

  def _put(self, local, length):
    local = {key: local[key] for key in self._keys}
    if length is not None:
      for key in text_lengths.KEYS:
        local[key] = local[key][:, : length + 1]
    return sharding.put_batch(local, self._mesh)


def abstract_batch(
  config: ConfigDict, mesh: jax.sharding.Mesh, *, decodes: bool = False
) -> dict[str, jax.ShapeDtypeStruct]:
  """Shapes and shardings of what the train step reads, or decode.generate."""
  shapes = tasks.of(config).batch_shapes(config, decodes=decodes)
  sharding.check_batch_size(config.batch_size, mesh)
  split = sharding.batch_sharding(mesh)
  return {
    key: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=split)
    for key, leaf in shapes.items()
  }


def make_evaluators(
  config: ConfigDict, tok: tokenizer.Tokenizer | None, **sizes: int
) -> list[Scheduled]:
  """Evaluators of the config with their intervals.

  Args:
    config: `evals` is read, and `train` for what an evaluator lacks.
    tok: None for evaluators that only score.
    **sizes: for durations, see schedule.steps.

  Raises:
    ValueError: a value of the config is wrong, or a file is not there.
  """
  common.complete(config)
  made = []
  for name, spec in config.evals.items():
    every = schedule.steps(spec, "every", default=None, **sizes)
    evaluator = tasks.evaluator(config, name)
    values = {"on_bad": None} | {
      key: value
      for key, value in spec.items()
      if key not in ("kind", "source", "train", "mask_codec", *_OWN)
      and not key.startswith("every_")
    }
    of_training = {
      "on_bad": config.train.on_bad,
      "batch_size": config.batch_size,
      "max_decode_len": config.get("text_len"),
    }
    values |= {
      key: value
      for key, value in of_training.items()
      if key in values and values[key] is None
    }
    own = {key: spec[key] for key in _OWN if spec.get(key) is not None}
    if "tokenizer" in evaluator.__dataclass_fields__:
      values["tokenizer"] = tok
    ops = own.pop("ops", config.train.ops)

    def read(source, own=own, ops=ops, train=evaluator.reads_loss):
      own = {**own, "ops": (*source.ops, *ops)}
      prepare = tasks.of(config).make_preprocess(
        config, tok, train=train, **own
      )
      return make_source(source), prepare

    values["name"] = name
    values["source"], values["preprocess"] = read(spec.source)
    if "train" in spec:
      values["train"] = read(spec.train)
    try:
      made.append((_with_metric(evaluator(**values), spec), every))
    except TypeError as error:
      raise ValueError(f"evals.{name}: {error}") from None
  return made


def mask_decoder(codec: str | os.PathLike | None) -> objects.DecodeMasks | None:
  """The decoder of the mask codec in a file; None without a file."""
  if not codec:
    return None
  return functools.partial(mask_codec.decode, io.load_mask_codec(codec))


def make_metric(
  metric: str | Callable,
  examples: Iterable[Example],
  *,
  answer_key: str,
  mask_codec: str | None,
  evaluator: str,
) -> tuple[str | Callable, str]:
  """The metric of an evaluator, and why it was chosen, "" if it was named.

  Args:
    metric: "auto" stands for the one that fits the answers of the examples.
    examples: after the ops, with or without images.
    mask_codec: path of the codec of masks.
    evaluator: its name, for the error.

  Raises:
    ValueError: masks are to be scored, and there is no codec.
  """
  note = ""
  if metric == "auto":
    metric, note = choice.choose(
      examples, answer_key, has_codec=bool(mask_codec)
    )
  if metric != "segmentation":
    return metric, note
  if not mask_codec:
    raise ValueError(
      f"evals.{evaluator}: the metric segmentation reads masks with "
      "mask_codec, such as vae-oid.npz; give its path, or another metric, such "
      "as detection for the boxes alone"
    )
  return segmentation.Segmentation(mask_decoder(mask_codec)), note


def _with_metric(evaluator, spec):
  """The evaluator with the metric that fits its answers, and that of masks."""
  if not getattr(evaluator, "metric", None):
    return evaluator
  metric, note = make_metric(
    evaluator.metric,
    _prepared(evaluator),
    answer_key=evaluator.answer_key,
    mask_codec=spec.get("mask_codec"),
    evaluator=evaluator.name,
  )
  return dataclasses.replace(evaluator, metric=metric, metric_note=note)


def _prepared(evaluator):
  """The examples after the ops, but for unusable ones, which checks report.

  All of them, or a sample where ops or the source may need the images.
  """
  source, through = evaluator.source, evaluator.preprocess
  texts = None if through.ops else sources.without_images(source)
  if texts is not None:
    texts = itertools.islice(texts, len(evaluator))
    yield from (text for text in texts if isinstance(text, dict))
    return
  count = min(len(evaluator), _SAMPLE)
  for index in np.linspace(0, len(evaluator) - 1, count).astype(int).tolist():
    with contextlib.suppress(ValueError):
      rng = np.random.default_rng(index)
      yield through.prepare(source[index], rng, evaluator.answer_key)


def make_source(spec: Mapping[str, Any]) -> sources.Source:
  """Opens the source that a config, or a part of config.json, describes."""
  ours = ("kind", "weight", "group", "ops")
  own = {k: v for k, v in spec.items() if k not in ours}
  return sources.make(spec.kind, **own)


def train_datasets(
  config: ConfigDict, train_sources: list[Weighted], tok: Any
) -> list[datasets.Dataset]:
  """The sources of the training data."""
  data, made = config.train, train_preprocesses(config, tok)
  skips = data.on_bad == "skip"
  return [
    tasks.of(config).dataset(
      f"train.{name}",
      source.source if isinstance(source, packing.Rows) else source,
      prepare,
      trains=True,
      skips=skips,
      note=_note(spec, source),
      rows=source if isinstance(source, packing.Rows) else None,
    )
    for (name, spec), (source, _), prepare in zip(
      data.sources.items(), train_sources, made, strict=True
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
  task: tasks.Task, evaluators: Sequence[Evaluator]
) -> list[datasets.Dataset]:
  """The sources of the evaluators.

  Raises:
    ValueError: a metric is unknown, or classes or templates are wrong.
  """
  found = []
  for evaluator in evaluators:
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
    elif isinstance(evaluator, evals.Recorded):
      options = {"reader": evaluator.reader()}
    options["skips"] = evaluator.on_bad == "skip"
    name = f"evals.{evaluator.name}"
    if isinstance(evaluator, evals.FewShot):
      found.append(task.dataset(f"{name}.train", *evaluator.train, **options))
    found.append(
      task.dataset(
        name,
        evaluator.source,
        evaluator.preprocess,
        limit=getattr(evaluator, "limit", None),
        **options,
      )
    )
  return found
