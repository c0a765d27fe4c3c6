"""Perplexity of the true answers: how much the model is surprised by them."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence

import jax
import numpy as np

from paligemma.data import batches, preprocess, sources
from paligemma.training import losses, sharding

Row = dict[str, float]

_KEYS = ("image", "text", "mask_ar", "mask_input", "mask_loss", "_mask")


@dataclasses.dataclass(frozen=True)
class Perplexity:
  """Negative log-likelihood (nll) of the supervised tokens, teacher-forced.

  Attributes:
    name: names the evaluator in reports.
    source: the examples, with answers.
    preprocess: makes the rows, in the training layout (train=True), whose
      mask_loss says which tokens are the answer.
    batch_size: examples per batch over all processes.
    limit: evaluate the first `limit` examples only; None for all.
    num_workers: data worker processes; 0 works in this one.
    on_bad: key of batches.ON_BAD: what becomes of an example that cannot be
      used. "stop" raises; "skip" names it in the log and leaves it out.
  """

  name: str
  source: sources.Source
  preprocess: preprocess.Preprocess
  batch_size: int
  limit: int | None = None
  num_workers: int = 0
  on_bad: str = "stop"

  def __len__(self) -> int:
    return min(len(self.source), self.limit or len(self.source))

  def run(
    self, model, params, mesh, *, output_dir=None, rng=None, progress=None
  ) -> dict[str, float]:
    """Evaluates the source; nothing is written and nothing is drawn at random.

    Args:
      model, params, mesh, progress: as in `rows`.
      output_dir: unused, as every evaluator is called alike.
      rng: unused, likewise.

    Returns:
      As `reduce`, and with on_bad="skip" num_bad, the number of examples that
      were left out.

    Raises:
      ValueError: as `rows`.
    """
    rows = self.rows(model, params, mesh, progress=progress)
    scores = self.reduce(rows)
    if self.on_bad == "skip":
      scores["num_bad"] = float(len(self) - len(rows))
    return scores

  def rows(
    self,
    model,
    params,
    mesh,
    *,
    progress: Callable[[int, int], None] | None = None,
  ) -> list[Row]:
    """The sums of every good example, in order.

    Args:
      model: a Model, hashable.
      params: its parameters, {"img": ..., "llm": ...}.
      mesh: mesh with the axis "data", over which batches are split.
      progress: called between batches with the number of examples done, and of
        all; what it raises ends the evaluation.

    Returns:
      Per example, "nll" s_i: summed nll in nats of its supervised tokens, and
      "tokens" n_i: their number.

    Raises:
      ValueError: batches have no mask_loss, or it supervises no token at all; a
        bad example, or with on_bad="skip" none that is good.
    """
    progress = progress or (lambda done, total: None)
    progress(0, len(self))
    rows, first_error = [], ""
    for batch in batches.evaluation(
      self.source,
      self.preprocess,
      batch_size=self.batch_size,
      process_index=jax.process_index(),
      process_count=jax.process_count(),
      num_workers=self.num_workers,
      limit=self.limit,
      on_bad=self.on_bad,
    ):
      first_error = first_error or next(filter(None, batch["_error"]), "")
      if "mask_loss" not in batch:
        raise ValueError(
          f'evaluator "{self.name}": batches have no mask_loss, so the answer'
          " cannot be told from prompt and padding; make them with the training"
          " layout (train=True)."
        )
      batch = sharding.put_batch({key: batch[key] for key in _KEYS}, mesh)
      with jax.set_mesh(mesh):
        sums = _token_sums(model, params, batch)
      real, nll, tokens = sharding.fetch((batch["_mask"], *sums))
      rows += [
        {"nll": float(s), "tokens": float(n)}
        for s, n in zip(nll[real], tokens[real], strict=True)
      ]
      progress(len(rows), len(self))
    if not rows:
      raise ValueError(
        f'evaluator "{self.name}": none of {len(self)} examples can be used, '
        f"one of them: {first_error}"
      )
    if not any(row["tokens"] for row in rows):
      raise ValueError(
        f'evaluator "{self.name}": no supervised token in {len(rows)}'
        " examples, expected answers under mask_loss."
      )
    return rows

  def reduce(self, rows: Sequence[Row]) -> dict[str, float]:
    """Numbers over rows, which may be any choice of them, with repetition.

    Returns:
      nll_per_token: sum_i s_i / sum_i n_i.
      perplexity: exp(nll_per_token).
      nll_per_example: mean_i s_i / n_i, the training loss without smoothing (an
        example without a supervised token counts as 0, as it does there).
      num_tokens: sum_i n_i.
      num_examples: number of examples.

    Source: big_vision, evaluators/proj/paligemma/perplexity.py, whose "avg" is
    our nll_per_example and whose "sum" is mean_i s_i. It exponentiates nothing,
    and without mask_loss it averages over prompt and padding; we refuse.
    """
    # Sums in float64: 1e6 float32 terms lose the digits that are compared.
    nll = np.array([row["nll"] for row in rows], np.float64)
    count = np.array([row["tokens"] for row in rows], np.float64)
    per_token = nll.sum() / max(count.sum(), 1)
    return {
      "perplexity": math.exp(per_token),
      "nll_per_token": float(per_token),
      "nll_per_example": float(np.mean(nll / np.maximum(count, 1))),
      "num_tokens": float(count.sum()),
      "num_examples": float(len(rows)),
    }


@functools.partial(jax.jit, static_argnames="model")
def _token_sums(model, params, batch):
  """Summed nll f32[B] and number f32[B] of each row's supervised tokens."""
  text, mask_ar = batch["text"], batch["mask_ar"]
  features, _ = model.apply(
    {"params": params},
    batch["image"],
    text[:, :-1],
    mask_ar[:, :-1],
    input_mask=batch["mask_input"][:, :-1],
    method="compute_features",
  )
  return losses.supervised_sums(
    *model.output_layer(params),
    features,
    text[:, 1:],
    batch["mask_loss"][:, 1:],
  )
