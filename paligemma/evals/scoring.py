"""From records of predictions to scores, with intervals if there are rows."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from paligemma.evals.predictions import Record
from paligemma.metrics import bootstrap, fields

Example = Mapping[str, Any]


def apply(
  function: Callable,
  records: Sequence[Record],
  examples: Sequence[Example],
  *,
  answer_key: str,
) -> Any:
  """Calls a metric, or its `rows`, on records and what they are about.

  Args:
    function: a metric, or metric.rows. One with an argument `confidences` gets
      those of the boxes, if any record has some.
    records: of Generate.predict or predictions.read.
    examples: as many.
    answer_key: field of an example with its answer or answers.
  """
  arguments = {}
  takes = inspect.signature(function).parameters
  if "confidences" in takes and any("confidences" in r for r in records):
    arguments["confidences"] = [r.get("confidences", []) for r in records]
  texts = [line["prediction"] for line in records]
  return function(texts, examples, answer_key=answer_key, **arguments)


def estimate(
  metric: Callable,
  records: Sequence[Record],
  examples: Sequence[Example],
  *,
  answer_key: str,
  **options,
) -> dict[str, bootstrap.Estimate]:
  """Scores with their intervals; a function that has no rows has none.

  Args:
    metric: a Metric, or any function of its form.
    records, examples, answer_key: as in `apply`.
    **options: of bootstrap.estimate.
  """
  if not hasattr(metric, "rows"):
    scores = apply(metric, records, examples, answer_key=answer_key)
    return {name: bootstrap.Estimate(value) for name, value in scores.items()}
  rows = apply(metric.rows, records, examples, answer_key=answer_key)
  return bootstrap.estimate(
    metric, rows, groups=groups(metric, examples), **options
  )


def compare(
  metric: Callable,
  records_a: Sequence[Record],
  records_b: Sequence[Record],
  examples: Sequence[Example],
  *,
  answer_key: str,
  **options,
) -> dict[str, bootstrap.Comparison]:
  """Compares two predictions of every example.

  Args:
    metric: a Metric.
    records_a, records_b, examples, answer_key: as in `apply`.
    **options: of bootstrap.compare.

  Raises:
    ValueError: the metric has no rows.
  """
  if not hasattr(metric, "rows"):
    raise ValueError(
      f"{metric} cannot compare: it has no rows, expected a metrics.Metric"
    )
  return bootstrap.compare(
    metric,
    *(
      apply(metric.rows, records, examples, answer_key=answer_key)
      for records in (records_a, records_b)
    ),
    groups=groups(metric, examples),
    **options,
  )


def groups(metric, examples):
  """Per example, what it shares with those that it is resampled with."""
  if (key := getattr(metric, "group_key", None)) is None:
    return None
  return [fields.read(example, key, "group") for example in examples]
