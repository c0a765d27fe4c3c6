"""The base of evaluators: a source whose examples come in batches."""

import dataclasses
from collections.abc import Callable
from typing import ClassVar

import jax

from paligemma.data import batches as batches_lib
from paligemma.data import preprocess as preprocess_lib
from paligemma.data import sources

# Called between batches with the numbers of examples done and of all; an
# exception that it raises ends the evaluation.
Progress = Callable[[int, int], None]


@dataclasses.dataclass(frozen=True)
class Evaluator:
  """A source, and how its examples become batches.

  Attributes:
    name: names the evaluator in reports and the folder of its predictions.
    source: the examples.
    preprocess: makes the arrays of an example.
    batch_size: examples per batch over all processes.
    limit: evaluate only the first `limit` examples. Default: all.
    num_workers: data worker processes.
    on_bad: key of batches.ON_BAD: what happens to an example that cannot be
      used. "stop" raises; "skip" logs it and leaves it out.
    reads_loss: whether its batches are those that the loss reads, with the
      answer.
  """

  reads_loss: ClassVar[bool] = False

  name: str
  source: sources.Source
  preprocess: preprocess_lib.Preprocess
  _: dataclasses.KW_ONLY
  batch_size: int
  limit: int | None = None
  num_workers: int = 0
  on_bad: str = "stop"

  def __len__(self) -> int:
    return min(len(self.source), self.limit or len(self.source))

  def batches(
    self, preprocess: preprocess_lib.Preprocess
  ) -> batches_lib.EvaluationBatches:
    """Returns the batches of this process, with arrays made by `preprocess`."""
    return batches_lib.evaluation(
      self.source,
      preprocess,
      batch_size=self.batch_size,
      process_index=jax.process_index(),
      process_count=jax.process_count(),
      num_workers=self.num_workers,
      limit=self.limit,
      on_bad=self.on_bad,
    )
