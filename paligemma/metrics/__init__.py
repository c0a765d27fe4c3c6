"""Metrics: pure functions from predicted texts and raw examples to numbers.

  metric(predictions, examples, *, answer_key="suffix") -> {name: value}

  predictions: list[str], one per example.
  examples: list[dict], the raw examples of the source, in the same order.
  answer_key: the field of an example that holds its answer or answers.

A metric sees all examples at once, because CIDEr and mean average precision are
not means over examples. Those in METRICS are Metrics: metric.rows(...) returns
the numbers of each example, metric.reduce(rows) the scores.
"""

import functools
import inspect
from collections.abc import Callable

from paligemma import registry
from paligemma.metrics import (
  anls,
  captions,
  chartqa,
  detection,
  exact_match,
  mmvp,
  pope,
  rsvqa,
  science_qa,
  segmentation,
  tallyqa,
  vqa,
  vqav2,
)
from paligemma.metrics.metric import Metric, OfFunction

__all__ = ["METRICS", "Metric", "make"]

# Name -> constructor of the metric.
METRICS = {
  "anls": anls.ANLS,
  "captions": captions.Captions,
  "chartqa": chartqa.ChartQA,
  "detection": detection.Detection,
  "exact_match": exact_match.ExactMatch,
  "mmvp": mmvp.MMVP,
  "pope": pope.POPE,
  "rsvqa": rsvqa.RSVQA,
  "science_qa": science_qa.ScienceQA,
  "segmentation": segmentation.Segmentation,
  "tallyqa": tallyqa.TallyQA,
  "textvqa": functools.partial(vqav2.VQAv2, by_type=False),
  "vqa": vqa.VQA,
  "vqav2": vqav2.VQAv2,
}


def make(metric: str | Callable) -> Callable:
  """Returns the metric that a string names, or that a function makes.

  Args:
    metric: a string with a name in METRICS, "exact_match", "vqa(lower=True)";
      or a Metric; or a function of a prediction and its example that returns
      {name: value}, of which means are taken; or, with a parameter answer_key,
      a function of the form above.

  Raises:
    ValueError: unknown name or option.
  """
  if isinstance(metric, Metric):
    return metric
  if isinstance(metric, str):
    return registry.make(metric, METRICS, "metric")
  if not callable(metric):
    raise ValueError(
      f"metric is {metric!r:.60}, expected a name or a function of a "
      "prediction and its example"
    )
  takes = inspect.signature(metric).parameters.values()
  reads_all = any(
    x.name == "answer_key" or x.kind is x.VAR_KEYWORD for x in takes
  )
  return metric if reads_all else OfFunction(metric)
