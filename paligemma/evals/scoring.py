"""From records of predictions to scores, with intervals if there are rows.

Examples that cannot be used have no prediction and no part in a score.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from paligemma.evals.predictions import Record, is_bad
from paligemma.metrics import answer_fields, bootstrap

Example = Mapping[str, Any]


def good(
  examples: Sequence[Example | None], *records: Sequence[Record]
) -> list[Sequence[Any]]:
  """The examples that all records have a prediction for, and their records.

  Returns:
    [examples, *records], each without those of bad examples.

  Raises:
    ValueError: there are examples, and none is left.
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
  """Calls a metric, or its `rows`, on records and what they are about.

  Args:
    function: a metric, or metric.rows. One with an argument `confidences` gets
      those of the boxes, if any record has some.
    records: of Generate.predict or predictions.read; bad ones are left out.
    examples: as many.
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
  **options,
) -> dict[str, bootstrap.Estimate]:
  """Scores with their intervals; a function that has no rows has none.

  Args:
    metric: a Metric, or any function of its form.
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
  **options,
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


def groups(metric, examples):
  """Per example, what it shares with those that it is resampled with."""
  if (key := getattr(metric, "group_key", None)) is None:
    return None
  return [answer_fields.read(example, key, "group") for example in examples]
