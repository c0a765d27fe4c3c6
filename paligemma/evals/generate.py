"""Decodes an answer for every example, scores them, writes them as JSONL."""

import collections
import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping
from concurrent import futures
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from paligemma import disk, metrics
from paligemma.data import chat, tokenizer
from paligemma.data.example_fields import Example
from paligemma.decoding import continuous, decode, samplers
from paligemma.decoding import grammar as grammar_lib
from paligemma.evals import gather, predictions, scoring
from paligemma.evals.evaluator import (
  Evaluator,
  Progress,
  WithExample,
  without_image,
)
from paligemma.evals.predictions import Record
from paligemma.metrics import confidence
from paligemma.training import sharding

_TOGETHER = 16  # batches, which a file that is continued decodes anew


@dataclasses.dataclass(frozen=True)
class Generate(Evaluator):
  """Predictions of a model for a source, and a metric over them.

  Attributes:
    preprocess: in the evaluation layout (train=False).
    max_decode_len: most tokens of a prediction.
    sampler: see samplers.make: "greedy", "nucleus(p=0.9)", "beam(beam_size=4)".
    metric: see metrics.make: "vqa(lower=True)"; None only predicts. A metric
      with an argument `confidences`, as detection, gets those of the boxes in
      each prediction.
    metric_note: why this metric, for a report.
    answer_key: field with the answer or answers, after the preprocess's ops.
    grammar: the answers that are allowed, see grammar.make:
      'boxes(["cat", "dog"])', 'choices("yes", "no")'. Default: all.
    finish: called with each record, which then also has the "height" and
      "width" of its image (the first of several); returns the record to keep,
      see answer_objects.AddObjects.
    on_bad: as of Evaluator; with "skip", the line of an unusable example holds
      an error instead of a prediction.
    Others: as of Evaluator.
  """

  tokenizer: tokenizer.Tokenizer
  _: dataclasses.KW_ONLY
  max_decode_len: int
  sampler: str | samplers.AnySampler = "greedy"
  metric: str | Callable | None = "exact_match"
  metric_note: str = ""
  answer_key: str = "suffix"
  grammar: str | grammar_lib.Grammar | None = None
  finish: Callable[[Record], Record] | None = None

  @property
  def higher_is_better(self) -> Mapping[str, bool]:
    """As of its metric; {} of a function, and without a metric."""
    metric = self.metric and metrics.make(self.metric)
    return getattr(metric, "higher_is_better", {})

  def run(
    self,
    model: nn.Module,
    params: Mapping[str, Any],
    mesh: Mesh,
    *,
    output_dir: epath.PathLike | None = None,
    **options: Any,
  ) -> dict[str, float]:
    """Decodes all examples and returns the metric over them.

    Args:
      output_dir: predictions go to {output_dir}/{name}/predictions.jsonl, which
        is replaced as a whole or not at all. Default: not written.
      **options: rng and progress, as in `predict`.

    Returns:
      The metric over the usable examples; num_examples, their number; and with
      on_bad="skip" num_bad, the number of others. The same in every process.

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
        model, params, mesh, path=temporary, **options
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
    model: nn.Module,
    params: Mapping[str, Any],
    mesh: Mesh,
    *,
    rng: jax.Array | None = None,
    path: epath.PathLike | None = None,
    settings: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
  ) -> tuple[list[Record], list[Example | None]]:
    """Decodes all examples, or those that a file does not have yet.

    The process that reads an example sends its fields, without the image, to
    all others; the model gets none of them. Process 0 writes the file.

    Args:
      model: hashable.
      params: {"img": ..., "llm": ...}.
      mesh: batches are split over its axis "data".
      rng: key for a stochastic sampler; batch n uses fold_in(rng, n).
      path: file to append each batch to, see predictions.py. Default: none.
      settings: what the predictions depend on, as JSON values. The file is
        continued after its last complete batch if it was begun with the same
        (on one device up to 15 batches before it are decoded again, so that the
        file is the same to the last bit),
        see predictions.resume. Default: the file does not exist yet.
      progress: see evaluator.Progress.

    Returns:
      The records of all examples, in order; and the examples after the ops,
      without the image, None for an unusable one. Without a metric, which alone
      would read them, the list of examples is empty.

    Raises:
      ValueError: unknown sampler or grammar, the preprocess has the training
        layout, a stochastic sampler has no rng, or the file cannot be resumed.
    """
    if self.batch_size < 1:
      raise ValueError(f"batch_size is {self.batch_size}, expected 1 or more")
    samplers.make(self.sampler)  # fails before the file is made
    grammar = self.grammar
    if grammar is not None:
      grammar = grammar_lib.make(grammar, self.tokenizer)
    records = self._resume(path, settings)
    examples = self.examples(len(records)) if self.metric is not None else []
    progress = progress or (lambda done, total: None)
    progress(len(records), len(self))
    start = -(-len(records) // self.batch_size)
    decodes = self._decode_each
    if mesh.size == 1 and callable(samplers.make(self.sampler)):
      decodes = self._decode_together
      if len(records) < len(self):  # a group again, for the same rounding
        start -= start % _TOGETHER
    position = start * self.batch_size
    prepare = WithExample(self.preprocess, self.answer_key, self._reads_size)
    batches = self.batches(prepare)
    batches = dataclasses.replace(batches, dataset=batches.dataset[start:])
    with contextlib.ExitStack() as stack:
      append = None
      if path is not None and jax.process_index() == 0:
        append = stack.enter_context(predictions.appending(path))
      waiting = collections.deque()  # examples of batches that are decoded

      def prompts():
        for batch in batches:
          mine = batch.pop("_example").tolist(), batch.pop("_error").tolist()
          del batch["_index"]  # the examples are in order
          waiting.append(
            [
              pair
              for columns in gather.gather(mine)
              for pair in zip(*columns, strict=True)
            ]
          )
          yield sharding.put_batch(batch, mesh)

      for decoded in decodes(
        model, params, prompts(), mesh, rng, grammar, start
      ):
        found = waiting.popleft()[: len(self) - position]
        position += len(found)
        if position <= len(records):  # in the file
          continue
        new = self._records(len(records), found, decoded)
        if append is not None:
          append(new)
        records += new
        if self.metric is not None:
          examples += [example for example, _ in found]
        progress(len(records), len(self))
    assert len(records) == len(self), "examples lost or repeated"
    return records, examples

  def examples(self, count: int | None = None) -> list[Example | None]:
    """Reads the first `count` examples again and applies the ops. Default: all.

    Returns:
      The examples without the image; with on_bad="skip", None for an unusable
      one.
    """
    with futures.ThreadPoolExecutor() as pool:
      return list(pool.map(self._example, range(len(self))[:count]))

  def _example(self, index):
    # The rng of batches.evaluation: random ops make the same choices again.
    rng = np.random.default_rng(index)
    try:
      example = self.source[index]
      example = self.preprocess.prepare(example, rng, self.answer_key)
      return without_image(example, self._reads_size)
    except ValueError:
      if self.on_bad == "stop":
        raise
      return None

  @property
  def _reads_size(self) -> bool:
    metric = self.metric and metrics.make(self.metric)
    return self.finish is not None or getattr(metric, "reads_size", False)

  def _resume(self, path, settings) -> list[Record]:
    """Returns the records that a file already has, in every process."""
    if path is None or settings is None:
      return []
    kept = None
    if jax.process_index() == 0:
      try:
        kept = predictions.resume(
          path, settings, count=len(self), batch_size=self.batch_size
        )
      except ValueError as error:  # raised in all processes, which wait for it
        kept = error
    kept = gather.gather(kept)[0]
    if isinstance(kept, ValueError):
      raise kept
    return kept

  @functools.cached_property
  def _end(self) -> int:
    """The token that ends all answers; a conversation has no image."""
    if self.preprocess.res is not None:
      return self.tokenizer.eos_id
    examples = map(self._example, range(len(self)))
    prompts = (example["prefix"] for example in examples if example)
    return chat.end_of_answers(self.tokenizer, prompts)

  def _decode_together(self, model, params, batches, _, rng, grammar, start):
    """Yields the Decoded of each batch; those of a group share their places."""
    rngs = (_of_batch(rng, number) for number in itertools.count(start))
    for first in batches:
      rest = itertools.islice(batches, _TOGETHER - 1)
      yield from continuous.generate(
        model,
        params,
        itertools.chain([first], rest),
        max_decode_len=self.max_decode_len,
        sampler=self.sampler,
        rngs=rngs,
        grammar=grammar,
        eos_id=self._end,
        pad_id=self.tokenizer.pad_id,
      )

  def _decode_each(self, model, params, batches, mesh, rng, grammar, start):
    """Yields the Decoded of each global batch, in every process."""
    for number, batch in enumerate(batches, start=start):
      with jax.set_mesh(mesh):
        decoded = decode.generate(
          model,
          params,
          batch,
          max_decode_len=self.max_decode_len,
          sampler=self.sampler,
          rng=_of_batch(rng, number),
          grammar=grammar,
          eos_id=self._end,
          pad_id=self.tokenizer.pad_id,
          prompt_buckets=(),  # all batches have one shape
        )
      yield sharding.fetch(decoded)

  def _records(self, start, found, decoded) -> list[Record]:
    """Returns the records of a batch whose first example has index `start`."""
    records = []
    for row, (example, error) in enumerate(found):
      if error:
        records.append(predictions.bad_record(start + row, error))
        continue
      length = decoded.num_tokens[row]
      ids = decoded.tokens[row, :length].tolist()
      log_probs = decoded.log_probs[row, :length].astype(np.float64)
      pieces = self.tokenizer.pieces(ids)
      record = predictions.record(
        start + row,
        example,
        self.answer_key,
        prediction=chat.answer(self.tokenizer, example["prefix"], ids),
        score=float(log_probs.sum()),
        confidences=confidence.of_boxes(pieces, log_probs),
      )
      records.append(self.finish(record) if self.finish else record)
    return records


def _of_batch(rng, number):
  return None if rng is None else jax.random.fold_in(rng, number)
