"""Scores of records of predictions, with confidence intervals.

Examples that cannot be used have no prediction and are left out.
"""

import inspect
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

from paligemma.evals.predictions import Record, is_bad
from paligemma.metrics import answer_fields, bootstrap

Example = Mapping[str, Any]


def good(
  examples: Sequence[Example | None], *records: Sequence[Record]
) -> list[Sequence[Any]]:
  """Keeps the examples for which all records have a prediction.

  Returns:
    [examples, *records], each without the other examples.

  Raises:
    ValueError: there are examples, but none is left.
  """
  rows = list(zip(examples, *records, strict=True))
  kept = [row for row in rows if not any(is_bad(line) for line in row[1:])]
  if rows and not kept:
    error = next(line["error"] for line in rows[0][1:] if is_bad(line))
    raise ValueError(
      f"none of {len(rows)} examples can be used, the first: {error}"
    )
  return [[row[i] for row in kept] for i in range(1 + len(records))]


def apply(
  function: Callable,
  records: Sequence[Record],
  examples: Sequence[Example],
  *,
  answer_key: str,
) -> Any:
  """Calls a metric, or its `rows`, on records and their examples.

  Args:
    function: a metric, or metric.rows. If it has an argument `confidences` and
      any record has confidences of boxes, it gets them.
    records: of Generate.predict or predictions.read.
    examples: one per record.
    answer_key: field of an example with its answer or answers.
  """
  examples, records = good(examples, records)
  arguments = {}
  takes = inspect.signature(getattr(function, "rows", function)).parameters
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
  **options: Any,
) -> dict[str, bootstrap.Estimate]:
  """Returns scores with their confidence intervals.

  Args:
    metric: a Metric, or a function called as one, which has no intervals.
    records, examples, answer_key: as in `apply`.
    **options: of bootstrap.estimate.
  """
  examples, records = good(examples, records)
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
  **options: Any,
) -> dict[str, bootstrap.Comparison]:
  """Compares two predictions of every example that both have one of.

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
  examples, records_a, records_b = good(examples, records_a, records_b)
  return bootstrap.compare(
    metric,
    *(
      apply(metric.rows, records, examples, answer_key=answer_key)
      for records in (records_a, records_b)
    ),
    groups=groups(metric, examples),
    **options,
  )


def groups(
  metric: Callable, examples: Sequence[Example]
) -> list[Hashable] | None:
  """Returns the key of each example's group for resampling, None without."""
  if (key := getattr(metric, "group_key", None)) is None:
    return None
  return [answer_fields.read(example, key, "group") for example in examples]
