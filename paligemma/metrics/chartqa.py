"""ChartQA: numbers may be 5 % off, everything else must match exactly."""

import dataclasses

from paligemma.metrics import answer_fields
from paligemma.metrics.metric import Example, Metric, Row

MAX_RELATIVE_ERROR = 0.05


def relaxed_match(prediction: str, answer: str) -> bool:
  """Returns whether a prediction is within 5 % of a number, or equals a text.

  A text is a number if Python's float reads it ("7", "-1e3", " 7 "; not
  "1,000" or "$7"); a trailing "%" divides it by 100. If either text is not a
  number, or the answer is 0, the texts must be equal.

  Source: Masry et al. 2022, "ChartQA", section 5.1; big_vision,
  evaluators/proj/paligemma/transfers/chartqa.py; pix2struct, metrics.py, which
  compares texts case-insensitively (see ChartQA.lower).
  """
  found, expected = _number(prediction), _number(answer)
  if found is None or not expected:
    return prediction == answer
  return abs(found - expected) / abs(expected) <= MAX_RELATIVE_ERROR


@dataclasses.dataclass(frozen=True)
class ChartQA(Metric):
  """Relaxed accuracy; the published score is its mean over human and augmented.

  Keys:
    acc: share of the predictions that equal the answer.
    relaxed_acc: share of the predictions that `relaxed_match` it.
    num: number of examples.

  Attributes:
    lower: compare case-insensitively, as the published transfer and the
      official scorer do.
  """

  lower: bool = True
  higher_is_better = dict.fromkeys(("acc", "relaxed_acc"), True)

  def score(self, prediction: str, example: Example, answer_key: str) -> Row:
    answer = answer_fields.text(example, answer_key, "answer")
    if self.lower:
      prediction, answer = prediction.lower(), answer.lower()
    return {
      "acc": float(prediction == answer),
      "relaxed_acc": float(relaxed_match(prediction, answer)),
    }


def _number(text) -> float | None:
  try:
    if text.endswith("%"):
      return float(text.rstrip("%")) / 100
    return float(text)
  except ValueError:
    return None
