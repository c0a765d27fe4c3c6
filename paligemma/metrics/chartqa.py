"""ChartQA: numbers may be 5 % off, everything else must match."""

import dataclasses

from paligemma.metrics import answer_fields
from paligemma.metrics import metric as metric_lib

MAX_RELATIVE_ERROR = 0.05


def relaxed_match(prediction: str, answer: str) -> bool:
  """Whether the prediction is within 5 % of a number, or equals a text.

  A text is a number if Python's float reads it ("7", "-1e3", " 7 "; not
  "1,000" or "$7"); with "%" at its end it counts as a hundredth of that. Where
  either side is no number, or the answer is 0, both must be equal as texts.

  Source: Masry et al. 2022, "ChartQA", section 5.1; big_vision,
  evaluators/proj/paligemma/transfers/chartqa.py; pix2struct, metrics.py, which
  compares texts without regard to case (see ChartQA.lower).
  """
  found, expected = _number(prediction), _number(answer)
  if found is None or not expected:
    return prediction == answer
  return abs(found - expected) / abs(expected) <= MAX_RELATIVE_ERROR


@dataclasses.dataclass(frozen=True)
class ChartQA(metric_lib.Metric):
  """Relaxed accuracy; the published score is its mean over human and augmented.

  Keys:
    acc: share of the predictions that equal the answer.
    relaxed_acc: share of those that `relaxed_match` it.
    num: number of examples.

  Attributes:
    lower: compare without regard to case, as the published transfer and the
      official scorer do.
  """

  lower: bool = True

  def score(self, prediction, example, answer_key):
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
