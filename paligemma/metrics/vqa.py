"""Accuracy of short answers that are compared without normalization."""

import dataclasses
from collections.abc import Sequence

from paligemma.metrics import anls, answer_fields
from paligemma.metrics.metric import Example, Metric, Row


def vqa(
  prediction: str, answers: str | Sequence[str], *, lower: bool = False
) -> Row:
  """Returns three scores of one prediction.

  Args:
    prediction: decoded text.
    answers: one answer, or a list of the answers of several people.
    lower: compare case-insensitively.

  Returns:
    acc: for one answer 1 or 0; for a list min(1, matches / 3), because three
      people who agree make an answer right. A list of one or two answers gives
      at most 1/3 or 2/3: read acc_any or anls there.
    acc_any: 1 if the prediction equals any answer, else 0.
    anls: the largest anls over the answers.

  Source: big_vision, evaluators/proj/paligemma/transfers/vqa.py, which chooses
  by the name of the field, "answer" or "answers"; here its type decides. Like
  the official script of A-OKVQA it neither normalizes nor leaves an answer out.
  OK-VQA and VizWiz are officially scored as VQAv2: metric "vqav2".
  """
  is_one = isinstance(answers, str)
  answers = [answers] if is_one else answers
  if lower:
    prediction = prediction.lower()
    answers = [answer.lower() for answer in answers]
  matches = list(answers).count(prediction)
  return {
    "acc": float(matches) if is_one else min(1.0, matches / 3),
    "acc_any": float(matches > 0),
    "anls": anls.best(prediction, answers),
  }


@dataclasses.dataclass(frozen=True)
class VQA(Metric):
  """Means of the three scores of `vqa`, and num, the number of examples.

  Attributes:
    lower: compare case-insensitively. Of the published transfers DocVQA,
      InfographicVQA, OCR-VQA and ST-VQA do; AI2D, A-OKVQA, GQA, xGQA, MaRVL,
      NLVR2, OK-VQA, VizWiz and the videos do not.
  """

  lower: bool = False
  higher_is_better = dict.fromkeys(("acc", "acc_any", "anls"), True)

  def score(self, prediction: str, example: Example, answer_key: str) -> Row:
    answers = answer_fields.text_or_texts(example, answer_key, "answer")
    return vqa(prediction, answers, lower=self.lower)
