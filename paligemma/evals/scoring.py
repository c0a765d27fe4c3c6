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
  kept = [row for row in rows if not any(map(is_bad, row[1:]))]
  if rows and not kept:
    error = next(filter(is_bad, rows[0][1:]))["error"]
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

  If it has an argument `confidences` and any record has confidences of boxes,
  it gets them.
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

  Options are those of bootstrap.estimate. A function that is called as a Metric
  but has no `rows` has no intervals.
  """
  examples, records = good(examples, records)
  if not hasattr(metric, "rows"):
    scores = apply(metric, records, examples, answer_key=answer_key)
    return {name: bootstrap.Estimate(value) for name, value in scores.items()}
  rows = apply(metric.rows, records, examples, answer_key=answer_key)
  options["groups"] = groups(metric, examples)
  return bootstrap.estimate(metric, rows, **options)


def compare(
  metric: Callable,
  records_a: Sequence[Record],
  records_b: Sequence[Record],
  examples: Sequence[Example],
  *,
  answer_key: str,
  **options: Any,
) -> dict[str, bootstrap.Comparison]:
  """Compares two predictions of every example for which both files have one.

  Options are those of bootstrap.compare.

  Raises:
    ValueError: the metric has no rows.
  """
  if not hasattr(metric, "rows"):
    raise ValueError(
      f"{metric} cannot compare: it has no rows, expected a metrics.Metric"
    )
  examples, *both = good(examples, records_a, records_b)
  rows_a, rows_b = (
    apply(metric.rows, records, examples, answer_key=answer_key)
    for records in both
  )
  options["groups"] = groups(metric, examples)
  return bootstrap.compare(metric, rows_a, rows_b, **options)


def groups(
  metric: Callable, examples: Sequence[Example]
) -> list[Hashable] | None:
  """Returns the key of each example's group for resampling, None without."""
  if (key := getattr(metric, "group_key", None)) is None:
    return None
  return [answer_fields.read(example, key, "group") for example in examples]
