"""Exact match: the prediction is, letter for letter, one of the answers."""

import dataclasses
from collections.abc import Sequence

from paligemma.metrics import answer_fields
from paligemma.metrics import metric as metric_lib


def exact_match(
  prediction: str,
  answers: str | Sequence[str],
  *,
  lower: bool = False,
  strip: bool = True,
) -> float:
  """Whether the prediction equals one of the answers.

  Args:
    prediction: decoded text.
    answers: one answer or several accepted ones.
    lower: compare without regard to case.
    strip: drop white space at both ends of both sides.

  Returns:
    1.0 or 0.0; 0.0 where there is no answer at all.

  Source: big_vision, evaluators/proj/paligemma/transfers/vqa.py, which lowers
  both sides on request and otherwise compares as is; we strip as well.
  """

  def normalize(text):
    text = text.strip() if strip else text
    return text.lower() if lower else text

  if isinstance(answers, str):
    answers = [answers]
  return float(normalize(prediction) in map(normalize, answers))


@dataclasses.dataclass(frozen=True)
class ExactMatch(metric_lib.Metric):
  """{"exact_match": share of the predictions that are right}, in [0, 1].

  Attributes:
    lower: as in exact_match.
    strip: as in exact_match.
  """

  lower: bool = False
  strip: bool = True
  is_mean = True  # of the rows, without their number

  def score(self, prediction, example, answer_key):
    answers = answer_fields.text_or_texts(example, answer_key, "answer")
    match = exact_match(prediction, answers, lower=self.lower, strip=self.strip)
    return {"exact_match": match}

  def reduce(self, rows):
    return metric_lib.means(rows)
