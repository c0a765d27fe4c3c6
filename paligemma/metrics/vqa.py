"""Accuracy of short answers that are compared as they are."""

import dataclasses
from collections.abc import Sequence

from paligemma.metrics import anls, answer_fields
from paligemma.metrics import metric as metric_lib


def vqa(
  prediction: str, answers: str | Sequence[str], *, lower: bool = False
) -> metric_lib.Row:
  """Three scores of one prediction.

  Args:
    prediction: decoded text.
    answers: the one answer, or a list of those that several people gave.
    lower: compare without regard to case.

  Returns:
    acc: for one answer whether it is met; for a list min(1, matches / 3), as
      three people who agree make an answer right. A list of one or two answers
      thus gives at most 1/3 or 2/3: read acc_any or anls there.
    acc_any: whether any answer is met.
    anls: the largest anls over the answers.

  Source: big_vision, evaluators/proj/paligemma/transfers/vqa.py. There the
  form comes from the name of the field, "answer" or "answers"; here from its
  type. It neither normalises nor leaves an answer out, like the official script
  of A-OKVQA. OK-VQA and VizWiz are officially scored as VQAv2: metric "vqav2".
  """
  if lower:
    prediction = prediction.lower()
    several = not isinstance(answers, str)
    answers = [a.lower() for a in answers] if several else answers.lower()
  if isinstance(answers, str):
    acc = acc_any = float(prediction == answers)
    answers = [answers]
  else:
    matches = list(answers).count(prediction)
    acc, acc_any = min(1.0, matches / 3), float(matches > 0)
  return {
    "acc": acc,
    "acc_any": acc_any,
    "anls": anls.best(prediction, answers),
  }


@dataclasses.dataclass(frozen=True)
class VQA(metric_lib.Metric):
  """Means of the three scores of `vqa`, and num, the number of examples.

  Attributes:
    lower: compare without regard to case. Of the published transfers DocVQA,
      InfographicVQA, OCR-VQA and ST-VQA do; AI2D, A-OKVQA, GQA, xGQA, MaRVL,
      NLVR2, OK-VQA, VizWiz and the videos do not.
  """

  lower: bool = False

  def score(self, prediction, example, answer_key):
    answers = answer_fields.text_or_texts(example, answer_key, "answer")
    return vqa(prediction, answers, lower=self.lower)
