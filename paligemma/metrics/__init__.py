"""Metrics: pure functions from predicted texts and raw examples to numbers.

  metric(predictions, examples, *, answer_key="suffix") -> {name: value}

  predictions: list[str], one per example.
  examples: list[dict], the raw examples of the source, in the same order.
  answer_key: the field of an example that holds its answer or answers.

A metric sees all examples at once, since some (CIDEr, mean average precision)
are no mean of per-example values. Its own options are bound where it is chosen:
functools.partial(exact_match.score, lower=True).
"""

from collections.abc import Callable

from paligemma import tree
from paligemma.metrics import exact_match

METRICS = {"exact_match": exact_match.score}


def make(metric: str | Callable) -> Callable:
  """The metric of that name in METRICS; a function is returned as is.

  Raises:
    ValueError: unknown name.
  """
  if not isinstance(metric, str):
    return metric
  return tree.lookup(METRICS, metric, "metric")
