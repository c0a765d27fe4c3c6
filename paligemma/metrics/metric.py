"""The base of all metrics: numbers per example (rows), then scores over rows.

Rows are computed once from the texts, scores over any selection of rows (all, a
group, a resample for a confidence interval) from the rows alone.
"""

import dataclasses
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

Example = Mapping[str, Any]
Row = dict[str, float]


class Metric:
  """Scores examples one by one; a subclass defines `score` or `score_all`.

  Attributes:
    group_key: field of an example; examples with an equal value are scored
      together, so a resample has all of them or none. Default: each example is
      its own group.
    reads_size: whether it reads "height" and "width" of the image; evaluators
      add them to examples that lack them.
    higher_is_better: of each score by which weights can be compared, whether a
      higher one is better; counts and shares are not among them. Default: not
      known.
  """

  group_key: ClassVar[str | None] = None
  reads_size: ClassVar[bool] = False
  higher_is_better: ClassVar[Mapping[str, bool]] = {}

  @property
  def is_mean(self) -> bool:
    """Whether reduce returns only means and counts of rows ("num", "num/...").

    Resamples are then computed all at once."""
    return type(self).reduce is Metric.reduce

  def score(self, prediction: str, example: Example, answer_key: str) -> Any:
    """Returns the numbers of one example, {name: value}.

    A name for a group of examples ("acc/yesno") is present for members of the
    group only. A subclass that overrides `reduce` may return another type.

    Args:
      prediction: decoded text.
      example: the raw example.
      answer_key: field of the example with its answer or answers.

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
  ) -> list[Any]:
    """Returns one row per example, in order; arguments as of `score`.

    Raises:
      ValueError: as score; no example, or not one prediction for each. The
        message begins with the example's "_where", or else its index.
    """
    return self.score_all(pairs(predictions, examples), answer_key)

  def score_all(
    self, named: Sequence[tuple[str, Example]], answer_key: str
  ) -> list[Any]:
    """Returns one row per (prediction, example): of `score`, one by one."""
    return [self.score(*pair, answer_key) for pair in named]

  def reduce(self, rows: Sequence[Row]) -> dict[str, float]:
    """Returns the scores of any selection of rows; rows may repeat.

    They are {name: mean over the rows that have it}; "num/x", the number of
    rows that have "acc/x"; and "num", the number of rows.
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
    **options: Any,
  ) -> dict[str, float]:
    """Returns the scores of all examples; arguments and errors as of rows."""
    return self.reduce(self.rows(predictions, examples, **options))


@dataclasses.dataclass(frozen=True)
class OfFunction(Metric):
  """Means of the {name: value} that a function returns.

  It is called with each decoded text and its example, after the ops.
  """

  function: Callable[[str, Example], Row]

  def score(self, prediction: str, example: Example, answer_key: str) -> Row:
    return self.function(prediction, example)


def pairs(
  predictions: Sequence[str], examples: Sequence[Example]
) -> list[tuple[str, Example]]:
  """Pairs predictions with examples and adds "_where" to examples without it.

  Raises:
    ValueError: no example, not one prediction for each, a prediction that is
      not a text or an example that is not a mapping.
  """
  if len(predictions) != len(examples):
    raise ValueError(
      f"{len(predictions)} predictions for {len(examples)} examples, expected"
      " one for each."
    )
  if not examples:
    raise ValueError("no example to score, expected at least one.")
  named = []
  for i, pair in enumerate(zip(predictions, examples, strict=True)):
    prediction, example = pair
    if not isinstance(example, Mapping):
      raise ValueError(
        f"example {i}: expected a mapping of fields, found {example!r:.60}."
      )
    example = {"_where": f"example {i}", **example}
    if not isinstance(prediction, str):
      raise ValueError(
        f"{example['_where']}: expected a text as prediction, found"
        f" {prediction!r:.60}."
      )
    named.append((prediction, example))
  return named


def means(rows: Sequence[Row]) -> dict[str, float]:
  """Returns {name: mean over the rows that have it}, in order of appearance.

  The sum is exact (math.fsum), so the order of the rows does not matter.
  """
  columns = defaultdict(list)
  for row in rows:
    for name, value in row.items():
      columns[name].append(value)
  return {name: math.fsum(x) / len(x) for name, x in columns.items()}
