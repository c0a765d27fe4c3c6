"""The base of evaluators: a source whose examples come in batches."""

import abc
import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from paligemma import disk
from paligemma.data import batches as batches_lib
from paligemma.data import example_fields, image_ops, sources
from paligemma.data import preprocess as preprocess_lib
from paligemma.data.example_fields import Example
from paligemma.data.sequence import Arrays
from paligemma.evals import predictions
from paligemma.evals.predictions import Record

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


@dataclasses.dataclass(frozen=True)
class PerExample(Evaluator, abc.ABC):
  """An evaluator whose scores follow from something of each example: a row.

  Attributes:
    rows_file: name of the file that `run` writes rows to, one JSON object a
      line; None, the default, for rows that are not written.
  """

  rows_file: ClassVar[str | None] = None

  @abc.abstractmethod
  def rows(
    self,
    model: nn.Module,
    params: Mapping[str, Any],
    mesh: Mesh,
    *,
    progress: Progress | None = None,
  ) -> list[Any]:
    """Returns a row of every usable example, in order."""

  @staticmethod
  @abc.abstractmethod
  def reduce(rows: Sequence[Any]) -> dict[str, float]:
    """Returns the scores of any selection of rows; rows may repeat."""

  def run(
    self,
    model: nn.Module,
    params: Mapping[str, Any],
    mesh: Mesh,
    *,
    output_dir: epath.PathLike | None = None,
    rng: jax.Array | None = None,
    progress: Progress | None = None,
  ) -> dict[str, float]:
    """Evaluates the source, see `rows`; rng is not used.

    Args:
      output_dir: rows go to {output_dir}/{name}/{rows_file}, if it is named.
        Default: not written.

    Returns:
      As `reduce`, and with on_bad="skip" num_bad, the number of examples that
      were left out.
    """
    del rng
    rows = self.rows(model, params, mesh, progress=progress)
    is_written = self.rows_file and output_dir is not None
    if is_written and jax.process_index() == 0:
      path = epath.Path(output_dir) / self.name / self.rows_file
      disk.write(path, "".join(f"{json.dumps(row)}\n" for row in rows))
    return self._score(rows)

  def _score(self, rows):
    scores = self.reduce(rows)
    if self.on_bad == "skip":
      scores["num_bad"] = float(len(self) - len(rows))
    return scores


@dataclasses.dataclass(frozen=True)
class Recorded(PerExample):
  """An evaluator whose rows are records of predictions, see predictions.py."""

  @abc.abstractmethod
  def predict(
    self,
    model: nn.Module,
    params: Mapping[str, Any],
    mesh: Mesh,
    *,
    progress: Progress | None = None,
  ) -> list[Record]:
    """Returns a record of every example, also of the unusable ones."""

  def rows(
    self,
    model: nn.Module,
    params: Mapping[str, Any],
    mesh: Mesh,
    *,
    progress: Progress | None = None,
  ) -> list[Record]:
    """Returns the records of the usable examples, see `predict`."""
    records = self.predict(model, params, mesh, progress=progress)
    return [x for x in records if not predictions.is_bad(x)]

  def run(
    self,
    model: nn.Module,
    params: Mapping[str, Any],
    mesh: Mesh,
    *,
    output_dir: epath.PathLike | None = None,
    rng: jax.Array | None = None,
    progress: Progress | None = None,
  ) -> dict[str, float]:
    """Evaluates the source as PerExample does.

    Args:
      output_dir: records go to {output_dir}/{name}/predictions.jsonl. Default:
        not written.
    """
    del rng
    records = self.predict(model, params, mesh, progress=progress)
    if output_dir is not None and jax.process_index() == 0:
      path = epath.Path(output_dir) / self.name / "predictions.jsonl"
      with (
        disk.file(path) as temporary,
        predictions.appending(temporary) as append,
      ):
        append(records)
    return self._score([x for x in records if not predictions.is_bad(x)])


@dataclasses.dataclass(frozen=True)
class WithExample:
  """A preprocess that adds the example to the arrays, as "_example".

  Attributes:
    preprocess: of the arrays.
    answer_key: field of the example with its texts.
    reads_size: whether the example also has the size of its image.
  """

  preprocess: preprocess_lib.Preprocess
  answer_key: str
  reads_size: bool = False

  def __call__(self, example: Example, rng: np.random.Generator) -> Arrays:
    example = self.preprocess.prepare(example, rng, self.answer_key)
    # The ops have run.
    row = dataclasses.replace(self.preprocess, ops=())(example, rng)
    kept = without_image(example, self.reads_size)
    return {**row, "_example": np.array(kept, object)}

  def padding(self) -> Arrays:
    return {**self.preprocess.padding(), "_example": np.array(None, object)}


def without_image(example: Example, reads_size: bool) -> Example:
  """Returns the example without image and bytes, which would fill the memory.

  With reads_size, it gets the "height" and "width" of its image.
  """
  kept = {
    key: value
    for key, value in example.items()
    if key != "image" and not isinstance(value, bytes)
  }
  if reads_size and None in (kept.get("height"), kept.get("width")):
    image = example["image"]
    kept["height"], kept["width"] = image_ops.size(
      image[0] if isinstance(image, list) else image,
      where=example_fields.where(example),
    )
  return kept
