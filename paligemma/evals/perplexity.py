"""Perplexity of the true answers, teacher-forced."""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh

from paligemma.evals.evaluator import PerExample, Progress
from paligemma.training import losses, sharding

Row = dict[str, float]

_KEYS = ("text", "mask_ar", "mask_input", "mask_loss", "_mask", "_index")


@dataclasses.dataclass(frozen=True)
class Perplexity(PerExample):
  """Negative log-likelihood (nll) of the supervised tokens.

  Attributes:
    preprocess: in the training layout (train=True), whose mask_loss says which
      tokens are the answer.
    Others: as of Evaluator.
  """

  reads_loss = True
  rows_file = "nll.jsonl"
  higher_is_better = dict.fromkeys(
    ("perplexity", "nll_per_token", "nll_per_example"), False
  )

  def rows(
    self,
    model: nn.Module,
    params: Mapping[str, Any],
    mesh: Mesh,
    *,
    progress: Progress | None = None,
  ) -> list[Row]:
    """Returns the sums of every usable example, in order.

    Arguments are those of Generate.predict.

    Returns:
      Per example, "index": in the source; "nll" s_i: summed nll in nats of its
      supervised tokens, and "tokens" n_i: their number.

    Raises:
      ValueError: batches have no mask_loss, or it supervises no token at all;
        an example cannot be used, or with on_bad="skip" all of them.
    """
    progress = progress or (lambda done, total: None)
    progress(0, len(self))
    rows, errors = [], []
    for batch in self.batches(self.preprocess):
      errors += filter(None, batch["_error"])
      if "mask_loss" not in batch:
        raise ValueError(
          f'evaluator "{self.name}": batches have no mask_loss, so the answer'
          " cannot be told from prompt and padding; make them with the training"
          " layout (train=True)."
        )
      keys = _KEYS if model.img is None else ("image", *_KEYS)
      batch = sharding.put_batch({key: batch[key] for key in keys}, mesh)
      with jax.set_mesh(mesh):
        sums = _token_sums(model, params, batch)
      found = sharding.fetch((batch["_mask"], batch["_index"], *sums))
      real, *columns = found
      rows += [
        {"index": int(i), "nll": float(s), "tokens": float(n)}
        for i, s, n in zip(*(x[real] for x in columns), strict=True)
      ]
      progress(len(rows), len(self))
    if not rows:
      raise ValueError(
        f'evaluator "{self.name}": none of {len(self)} examples can be used, '
        f"one of them: {next(iter(errors), '')}"
      )
    if not any(row["tokens"] for row in rows):
      raise ValueError(
        f'evaluator "{self.name}": no supervised token in {len(rows)}'
        " examples, expected answers under mask_loss."
      )
    return rows

  @staticmethod
  def reduce(rows: Sequence[Row]) -> dict[str, float]:
    """Returns the scores of any selection of rows; rows may repeat.

      nll_per_token: sum_i s_i / sum_i n_i.
      perplexity: exp(nll_per_token).
      nll_per_example: mean_i s_i / n_i, the training loss without label
        smoothing (0 for an example without a supervised token, as there).
      num_tokens: sum_i n_i.
      num_examples: number of examples.

    Source: big_vision, evaluators/proj/paligemma/perplexity.py, whose "avg" is
    our nll_per_example and whose "sum" is mean_i s_i. It does not exponentiate,
    and without mask_loss it averages over prompt and padding; we raise.
    """
    # Sums in float64: 1e6 float32 terms lose the digits that are compared.
    nll = np.array([row["nll"] for row in rows], np.float64)
    count = np.array([row["tokens"] for row in rows], np.float64)
    per_token = nll.sum() / max(count.sum(), 1)
    return {
      "perplexity": math.exp(per_token) if per_token < 709 else math.inf,
      "nll_per_token": float(per_token),
      "nll_per_example": float(np.mean(nll / np.maximum(count, 1))),
      "num_tokens": float(count.sum()),
      "num_examples": float(len(rows)),
    }


@functools.partial(jax.jit, static_argnames="model")
def _token_sums(model, params, batch):
  """Returns summed nll f32[B] and number f32[B] of the supervised tokens."""
  text, mask_ar = batch["text"], batch["mask_ar"]
  features, _ = model.apply(
    {"params": params},
    batch.get("image"),
    text[:, :-1],
    mask_ar[:, :-1],
    input_mask=batch["mask_input"][:, :-1],
    method="compute_features",
  )
  targets = text[:, 1:], batch["mask_loss"][:, 1:]
  return losses.supervised_sums(*model.output_layer(params), features, *targets)
