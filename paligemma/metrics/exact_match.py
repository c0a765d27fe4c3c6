"""Exact match: the prediction equals one of the answers."""

import dataclasses
from collections.abc import Sequence

from paligemma.metrics import answer_fields
from paligemma.metrics.metric import Example, Metric, Row, means


def exact_match(
  prediction: str,
  answers: str | Sequence[str],
  *,
  lower: bool = False,
  strip: bool = True,
) -> float:
  """Returns 1.0 if the prediction equals one of the answers, else 0.0.

  Args:
    prediction: decoded text.
    answers: one answer or several; an empty list scores 0.0.
    lower: compare case-insensitively.
    strip: ignore white space at both ends of both texts.

  Source: big_vision, evaluators/proj/paligemma/transfers/vqa.py, which
  lowercases on request; we strip as well.
  """

  def normalize(text):
    text = text.strip() if strip else text
    return text.lower() if lower else text

  if isinstance(answers, str):
    answers = [answers]
  return float(normalize(prediction) in map(normalize, answers))


@dataclasses.dataclass(frozen=True)
class ExactMatch(Metric):
  """{"exact_match": share of the predictions that are right}, in [0, 1].

  Attributes:
    lower, strip: as in exact_match.
  """

  lower: bool = False
  strip: bool = True
  is_mean = True
  higher_is_better = dict.fromkeys(("exact_match",), True)

  def score(self, prediction: str, example: Example, answer_key: str) -> Row:
    answers = answer_fields.text_or_texts(example, answer_key, "answer")
    match = exact_match(prediction, answers, lower=self.lower, strip=self.strip)
    return {"exact_match": match}

  def reduce(self, rows: Sequence[Row]) -> dict[str, float]:
    return means(rows)
