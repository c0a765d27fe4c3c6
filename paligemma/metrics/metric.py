"""What a metric is: a row of numbers per example, then numbers over the rows.

The rows are made once from the texts; numbers over any choice of them (all, a
group, a resample for a confidence interval) come from the rows alone.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

Example = Mapping[str, Any]
Row = dict[str, float]


class Metric:
  """Scores examples one by one; a subclass gives `score`, or else `rows`.

  Called like any metric, metric(predictions, examples, answer_key="suffix"),
  it returns reduce(rows(...)).

  Attributes:
    group_key: field of an example whose value it shares with those that are
      scored together: a resample has all of them or none. Default None: each
      example stands for itself.
    reads_size: whether it reads "height" and "width" of the image, which
      evaluators take from the picture where an example has none.
  """

  group_key: ClassVar[str | None] = None
  reads_size: ClassVar[bool] = False

  @property
  def is_mean(self) -> bool:
    """Whether reduce gives but means over the rows that have a name, and
    numbers of rows ("num", "num/..."): resamples are then made at once."""
    return type(self).reduce is Metric.reduce

  def score(self, prediction: str, example: Example, answer_key: str) -> Row:
    """The numbers of one example.

    Args:
      prediction: decoded text.
      example: the raw example.
      answer_key: field of the example with its answer or answers.

    Returns:
      {name: value}. A name that concerns a group of examples ("acc/yesno") is
      there for the members of the group only. A subclass with a `reduce` of its
      own may return what that reads instead.

    Raises:
      ValueError: a field is missing, empty or of the wrong type.
    """
    raise NotImplementedError

  def rows(
    self,
    predictions: Sequence[str],
    examples: Sequence[Example],
    *,
    answer_key: str = "suffix",
  ) -> list[Row]:
    """One row per example, in order.

    Args:
      predictions: decoded texts, one per example.
      examples: the raw examples.
      answer_key: as in score.

    Raises:
      ValueError: as score; no example at all, or not one prediction for each.
        The line begins with the "_where" of an example, or else its place.
    """
    return [
      self.score(prediction, example, answer_key)
      for prediction, example in pairs(predictions, examples)
    ]

  def reduce(self, rows: Sequence[Row]) -> dict[str, float]:
    """Numbers over rows, which may be any choice of them, with repetition.

    Returns:
      {name: its mean over the rows that have it}, "num/x" rows that have
      "acc/x", and num, the number of rows.
    """
    scores = means(rows)
    sizes = {
      "num/" + name.removeprefix("acc/"): float(sum(name in r for r in rows))
      for name in scores
      if name.startswith("acc/")
    }
    return scores | sizes | {"num": float(len(rows))}

  def __call__(
    self,
    predictions: Sequence[str],
    examples: Sequence[Example],
    *,
    answer_key: str = "suffix",
  ) -> dict[str, float]:
    """Numbers over all examples; arguments and errors as those of rows."""
    return self.reduce(self.rows(predictions, examples, answer_key=answer_key))


@dataclasses.dataclass(frozen=True)
class OfFunction(Metric):
  """Means of what a function of a prediction and its example gives.

  Attributes:
    function: called with the decoded text and the example, after the ops; it
      returns {name: value}.
  """

  function: Callable[[str, Example], Row]

  def score(self, prediction: str, example: Example, answer_key: str) -> Row:
    return self.function(prediction, example)


def pairs(
  predictions: Sequence[str], examples: Sequence[Example]
) -> list[tuple[str, Example]]:
  """Prediction and example of every row, each example with its "_where".

  Raises:
    ValueError: no example at all, not one prediction for each, or a prediction
      that is no text or an example that is no mapping.
  """
  if len(predictions) != len(examples):
    raise ValueError(
      f"{len(predictions)} predictions for {len(examples)} examples, expected"
      " one for each."
    )
  if not examples:
    raise ValueError("no example to score, expected at least one.")
  named = []
  for index, example in enumerate(examples):
    if not isinstance(example, Mapping):
      raise ValueError(
        f"example {index}: expected a mapping of fields, found {example!r:.60}."
      )
    if "_where" not in example:
      example = {**example, "_where": f"example {index}"}
    if not isinstance(predictions[index], str):
      raise ValueError(
        f"{example['_where']}: expected a text as prediction, found"
        f" {predictions[index]!r:.60}."
      )
    named.append((predictions[index], example))
  return named


def means(rows: Sequence[Row]) -> dict[str, float]:
  """{name: mean over the rows that have it}, names as they first appear.

  The sum is exact (math.fsum), so the order of the rows does not matter.
  """
  columns = {}
  for row in rows:
    for name, value in row.items():
      columns.setdefault(name, []).append(value)
  return {
    name: math.fsum(values) / len(values) for name, values in columns.items()
  }
