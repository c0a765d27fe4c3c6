"""Decodes an answer for every example, scores all, writes them as JSONL."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Mapping
from concurrent import futures
from typing import Any

import jax
import numpy as np
from etils import epath

from paligemma import disk, metrics
from paligemma.data import batches, image_ops, preprocess, sources, tokenizer
from paligemma.data import example_fields as data_fields
from paligemma.data.example_fields import Example
from paligemma.decoding import decode, samplers
from paligemma.decoding import grammar as grammar_lib
from paligemma.evals import gather, predictions, scoring
from paligemma.evals.predictions import Record
from paligemma.metrics import confidence
from paligemma.training import sharding


@dataclasses.dataclass(frozen=True)
class Generate:
  """Predictions of a model for a source, and a metric over them.

  Attributes:
    name: names the evaluator in reports and the folder of its predictions.
    source: the examples.
    preprocess: makes the rows, in the evaluation layout (train=False).
    tokenizer: turns ids into text; gives eos_id and pad_id.
    batch_size: examples per batch over all processes.
    max_decode_len: most tokens of a prediction.
    sampler: a sampler, or a string for samplers.make, such as "greedy",
      "nucleus(p=0.9)", "beam(beam_size=4)" or "best_of(n=8)".
    metric: a metric, or a string for metrics.make such as "vqa(lower=True)";
      None only predicts. One with an argument `confidences`, as detection, gets
      those of the boxes in each prediction.
    limit: evaluate the first `limit` examples only; None for all.
    num_workers: data worker processes; 0 works in this one.
    answer_key: field with the answer or answers, after the preprocess's ops.
    grammar: the answers that are allowed, or a string for grammar.make such as
      'boxes(["cat", "dog"])' or 'choices("yes", "no")'; None allows all.
    on_bad: key of batches.ON_BAD: what becomes of an example that cannot be
      used. "stop" raises; "skip" names it, in the log and in the place of its
      prediction, and has no score of it.
  """

  name: str
  source: sources.Source
  preprocess: preprocess.Preprocess
  tokenizer: tokenizer.Tokenizer
  batch_size: int
  max_decode_len: int
  sampler: str | samplers.AnySampler = "greedy"
  metric: str | Callable | None = "exact_match"
  limit: int | None = None
  num_workers: int = 0
  answer_key: str = "suffix"
  grammar: str | grammar_lib.Grammar | None = None
  on_bad: str = "stop"

  def __len__(self) -> int:
    return min(len(self.source), self.limit or len(self.source))

  def run(
    self, model, params, mesh, *, output_dir=None, rng=None, progress=None
  ) -> dict[str, float]:
    """Decodes all examples and returns the metric over them.

    Args:
      model, params, mesh, rng, progress: as in `predict`.
      output_dir: predictions go to {output_dir}/{name}/predictions.jsonl, which
        is replaced as a whole or not at all; None writes nothing.

    Returns:
      The values of the metric over the good examples, num_examples, their
      number, and with on_bad="skip" num_bad, that of the others; the same in
      every process.

    Raises:
      ValueError: as `predict` and the metric; no example can be used.
    """
    metric = None if self.metric is None else metrics.make(self.metric)
    with contextlib.ExitStack() as stack:
      temporary = None
      if output_dir is not None and jax.process_index() == 0:
        path = epath.Path(output_dir) / self.name / "predictions.jsonl"
        temporary = stack.enter_context(disk.file(path))
      records, examples = self.predict(
        model, params, mesh, path=temporary, rng=rng, progress=progress
      )
    scores = {}
    if metric is not None:
      scores = scoring.apply(
        metric, records, examples, answer_key=self.answer_key
      )
    bad = sum(map(predictions.is_bad, records))
    scores["num_examples"] = float(len(records) - bad)
    return scores | ({"num_bad": float(bad)} if self.on_bad == "skip" else {})

  def predict(
    self,
    model,
    params,
    mesh,
    *,
    rng=None,
    path: epath.PathLike | None = None,
    settings: Mapping[str, Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
  ) -> tuple[list[Record], list[Example]]:
    """Decodes all examples, or those that a file does not have yet.

    Which process reads an example gives its fields, but the image, to all the
    others; they never get near the model. Process 0 writes.

    Args:
      model: a Model, hashable.
      params: its parameters, {"img": ..., "llm": ...}.
      mesh: mesh with the axis "data", over which batches are split.
      rng: key for a stochastic sampler, folded with the number of the batch.
      path: file to append each batch to, see predictions.py; None for none.
      settings: what the predictions depend on, as JSON values: the file is
        resumed behind its last whole batch, and refused if it has others, see
        predictions.resume. Default: there is no file yet.
      progress: called between batches with the number of examples done, and of
        all; what it raises ends the evaluation.

    Returns:
      The records of all examples, in order, and the examples they are about,
      after the ops and without the image, None for a bad one. Without a metric,
      which alone would read them, there are no examples.

    Raises:
      ValueError: unknown sampler or grammar, the preprocess has the training
        layout, a stochastic sampler has no rng, or the file cannot be resumed.
    """
    if self.batch_size < 1:
      raise ValueError(f"batch_size is {self.batch_size}, expected 1 or more")
    if isinstance(self.sampler, str):
      samplers.make(self.sampler)  # a mistake in it leaves no file
    allowed = self.grammar
    if allowed is not None:
      allowed = grammar_lib.make(allowed, self.tokenizer)
    records = self._kept(path, settings)
    examples = []
    if self.metric is not None:
      examples = self.examples(len(records))
    progress = progress or (lambda done, total: None)
    progress(len(records), len(self))
    with contextlib.ExitStack() as stack:
      append = None
      if path is not None and jax.process_index() == 0:
        append = stack.enter_context(predictions.appending(path))
      start = -(-len(records) // self.batch_size)
      for number, batch in enumerate(self._batches(start), start=start):
        mine = batch.pop("_example").tolist(), batch.pop("_error").tolist()
        found = [
          row for part in gather.gather(mine) for row in zip(*part, strict=True)
        ]
        decoded = self._decode(
          model,
          params,
          mesh,
          batch,
          grammar=allowed,
          rng=None if rng is None else jax.random.fold_in(rng, number),
        )
        new = self._records(len(records), found, decoded)
        if append is not None:
          append(new)
        records += new
        if self.metric is not None:
          examples += [example for example, _ in found[: len(new)]]
        progress(len(records), len(self))
    assert len(records) == len(self), "examples lost or repeated"
    return records, examples

  def examples(self, count: int | None = None) -> list[Example]:
    """The first examples after the ops, without the image, read again.

    Args:
      count: how many; default all that are evaluated.

    Returns:
      list, with None for a bad example, if those are skipped.
    """
    with futures.ThreadPoolExecutor() as pool:
      return list(pool.map(self._example, range(len(self))[:count]))

  def _example(self, index):
    # The rng of batches.evaluation, so that random ops choose the same again.
    rng = np.random.default_rng(index)
    try:
      example = self.preprocess.prepare(
        self.source[index], rng, self.answer_key
      )
      return _without_image(example, self._reads_size)
    except ValueError:
      if self.on_bad == "stop":
        raise
      return None

  @property
  def _reads_size(self) -> bool:
    metric = self.metric and metrics.make(self.metric)
    return getattr(metric, "reads_size", False)

  def _kept(self, path, settings) -> list[Record]:
    """The records that a file already has, in every process."""
    if path is None or settings is None:
      return []
    kept = None
    if jax.process_index() == 0:
      try:
        kept = predictions.resume(
          path, settings, count=len(self), batch_size=self.batch_size
        )
      except ValueError as error:  # for all processes, or the others would wait
        kept = error
    kept = gather.gather(kept)[0]
    if isinstance(kept, ValueError):
      raise kept
    return kept

  def _batches(self, start) -> Iterable[dict[str, np.ndarray]]:
    """The local batches from the one of that number on, with "_example"."""
    all_batches = batches.evaluation(
      self.source,
      _Keeping(self.preprocess, self.answer_key, self._reads_size),
      batch_size=self.batch_size,
      process_index=jax.process_index(),
      process_count=jax.process_count(),
      num_workers=self.num_workers,
      limit=self.limit,
      on_bad=self.on_bad,
    )
    return dataclasses.replace(all_batches, dataset=all_batches.dataset[start:])

  def _decode(self, model, params, mesh, batch, **options):
    """Decoded, of all rows of a global batch, in every process."""
    del batch["_index"]  # the rows are in order
    batch = sharding.put_batch(batch, mesh)
    with jax.set_mesh(mesh):
      decoded = decode.generate(
        model,
        params,
        batch,
        max_decode_len=self.max_decode_len,
        sampler=self.sampler,
        eos_id=self.tokenizer.eos_id,
        pad_id=self.tokenizer.pad_id,
        prompt_buckets=(),  # all batches have one shape
        **options,
      )
    return sharding.fetch(decoded)

  def _records(self, start, found, decoded) -> list[Record]:
    """The records of a batch whose first example has the index `start`."""
    made = []
    for row, (example, error) in enumerate(found[: len(self) - start]):
      if error:
        made.append(predictions.bad_record(start + row, error))
        continue
      length = decoded.num_tokens[row]
      ids = decoded.tokens[row, :length].tolist()
      log_probs = decoded.log_probs[row, :length].astype(np.float64)
      made.append(
        predictions.record(
          start + row,
          example,
          self.answer_key,
          prediction=self.tokenizer.decode(ids),
          score=float(log_probs.sum()),
          confidences=self._confidences(ids, log_probs),
        )
      )
    return made

  def _confidences(self, ids, log_probs) -> list[float]:
    """How sure the model is of each box in the text that ids stand for."""
    pieces = self.tokenizer.pieces(ids)
    found = confidence.of_objects(pieces, log_probs, (1, 1))
    return [item.box for item in found if item.box is not None]


@dataclasses.dataclass(frozen=True)
class _Keeping:
  """A preprocess whose rows carry the example that they were made of."""

  preprocess: preprocess.Preprocess
  answer_key: str
  reads_size: bool

  def __call__(self, example, rng):
    example = self.preprocess.prepare(example, rng, self.answer_key)
    # What is left to do, so that no op runs twice.
    row = dataclasses.replace(self.preprocess, ops=())(example, rng)
    kept = _without_image(example, self.reads_size)
    return {**row, "_example": _boxed(kept)}

  def padding(self):
    return {**self.preprocess.padding(), "_example": _boxed(None)}


def _boxed(value):
  """An array of no dimension that holds any object, for np.stack."""
  box = np.empty((), object)
  box[()] = value
  return box


def _without_image(example, reads_size):
  """The example without what would fill the memory: encoded or plain pixels.

  Args:
    example: its fields.
    reads_size: whether to add the size of its image where it has none.
  """
  kept = {
    key: value
    for key, value in example.items()
    if key != "image" and not isinstance(value, bytes)
  }
  if reads_size and not {"height", "width"} <= kept.keys():
    where = data_fields.where(example)
    kept["height"], kept["width"] = image_ops.size(
      example["image"], where=where
    )
  return kept
