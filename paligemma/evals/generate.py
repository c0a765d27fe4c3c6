"""Decodes an answer for every example, scores all, writes them as JSONL."""

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from etils import epath

from paligemma import decode, metrics, samplers, sharding
from paligemma.data import batches, preprocess, sources, tokenizer
from paligemma.metrics import exact_match

_WRITTEN_AS = {"_where": "where", "_image_path": "image"}


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
      None only predicts.
    limit: evaluate the first `limit` examples only; None for all.
    num_workers: data worker processes; 0 works in this one.
    answer_key: field with the answer or answers, after the preprocess's ops.
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

  def run(
    self, model, params, mesh, *, output_dir=None, rng=None
  ) -> dict[str, float]:
    """Decodes all examples and returns the metric over them.

    The examples are looked up again by their index once all is decoded, so no
    answer ever travels with a batch. Every process returns the same numbers;
    process 0 writes.

    Args:
      model: a Model, hashable.
      params: its parameters, {"img": ..., "llm": ...}.
      mesh: mesh with the axis "data", over which batches are split.
      output_dir: predictions go to {output_dir}/{name}/predictions.jsonl, which
        is replaced as a whole or not at all; None writes nothing. One line per
        example, in order: its fields after the ops, as far as JSON can hold
        them (no pixels; _where becomes where and _image_path becomes image),
        then ours, which win over a field of the same name:
          index: its place in the source.
          prediction: the decoded text.
          score: log-probability of the prediction, summed over its tokens.
          correct: whether it is an exact match; absent without an answer.
      rng: key for a stochastic sampler, folded with the number of the batch.

    Returns:
      The values of the metric, and num_examples.

    Raises:
      ValueError: unknown metric or sampler, the preprocess has the training
        layout, a stochastic sampler has no rng, or an answer is missing.
    """
    metric = None if self.metric is None else metrics.make(self.metric)
    decoded = self._decode(model, params, mesh, rng)
    predictions = [prediction for prediction, _ in decoded]
    examples = [self._example(index) for index in range(len(decoded))]
    if output_dir is not None and jax.process_index() == 0:
      records = [
        self._record(index, example, *decoded[index])
        for index, example in enumerate(examples)
      ]
      path = epath.Path(output_dir) / self.name / "predictions.jsonl"
      _write_jsonl(path, records)
    scores = {}
    if metric is not None:
      scores = metric(predictions, examples, answer_key=self.answer_key)
    return scores | {"num_examples": float(len(examples))}

  def _decode(self, model, params, mesh, rng) -> list[tuple[str, float]]:
    """Prediction and score of every example, in the order of the source."""
    found = {}
    for number, batch in enumerate(
      batches.evaluation(
        self.source,
        self.preprocess,
        batch_size=self.batch_size,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        num_workers=self.num_workers,
        limit=self.limit,
      )
    ):
      # int32, as JAX has no 64-bit integers unless told to.
      batch["_index"] = batch["_index"].astype(np.int32)
      batch = sharding.put_batch(batch, mesh)
      with jax.set_mesh(mesh):
        decoded = decode.generate(
          model,
          params,
          batch,
          max_decode_len=self.max_decode_len,
          sampler=self.sampler,
          rng=None if rng is None else jax.random.fold_in(rng, number),
          eos_id=self.tokenizer.eos_id,
          pad_id=self.tokenizer.pad_id,
          prompt_buckets=(),  # all batches have one shape
        )
      rows, index, decoded = sharding.fetch(
        (batch["_mask"], batch["_index"], decoded)
      )
      for row in np.flatnonzero(rows):
        ids = decoded.tokens[row, : decoded.num_tokens[row]].tolist()
        score = decoded.log_probs[row].sum(dtype=np.float64)
        found[int(index[row])] = self.tokenizer.decode(ids), float(score)
    assert sorted(found) == list(range(len(found))), "examples lost or repeated"
    return [found[index] for index in range(len(found))]

  def _example(self, index) -> dict[str, Any]:
    """What the preprocess read, but the image, which would fill the memory."""
    # The rng of batches.evaluation, so that random ops choose the same again.
    rng = np.random.default_rng(index)
    example = self.preprocess.prepare(self.source[index], rng)
    return {key: value for key, value in example.items() if key != "image"}

  def _record(self, index, example, prediction, score) -> dict[str, Any]:
    """The JSONL line of one example."""
    record = {
      _WRITTEN_AS.get(key, key): value
      for key, value in example.items()
      if _is_json(value)
    }
    record |= {"index": index, "prediction": prediction, "score": score}
    answer = example.get(self.answer_key)
    if isinstance(answer, str | list):
      match = exact_match.exact_match(prediction, answer)
      record["correct"] = bool(match)
    return record


def _is_json(value) -> bool:
  try:
    _to_json(value)
  except (TypeError, ValueError):
    return False
  return True


def _to_json(value) -> str:
  return json.dumps(value, ensure_ascii=False, default=_to_python)


def _to_python(value):
  """NumPy scalars, such as the question ids of TFDS, as Python numbers."""
  if isinstance(value, np.generic):
    return value.item()
  raise TypeError(f"no JSON for {type(value).__name__}")


def _write_jsonl(path, records):
  """Writes one object per line; the file appears complete or not at all."""
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.with_name(path.name + ".tmp")
  text = "".join(f"{_to_json(record)}\n" for record in records)
  temporary.write_bytes(text.encode())
  temporary.replace(path)
