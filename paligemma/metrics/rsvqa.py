"""RSVQA: accuracy by type of question, and the mean over the types."""

import dataclasses
from collections.abc import Sequence

from paligemma.metrics import answer_fields, vqa
from paligemma.metrics.metric import Example, Metric, Row

QUESTION_TYPES = ("comp", "count", "presence", "rural_urban", "area")
NUMERIC_TYPES = ("count", "area")


@dataclasses.dataclass(frozen=True)
class RSVQA(Metric):
  """Remote sensing questions: needs each example's "question_type".

  Keys:
    acc, acc_any, anls: as those of `vqa.vqa`; acc_any is the overall accuracy.
    acc_{type}: acc_any over the questions of a type of QUESTION_TYPES.
    acc_avg: mean over the types that occur: the published score.
    acc_avg_nonum: the same without the types count and area.
    num: number of examples.

  Attributes:
    lower: compare case-insensitively, as the published transfers do.

  Source: Lobry et al. 2020, "RSVQA: Visual Question Answering for Remote
  Sensing Data"; big_vision, evaluators/proj/paligemma/transfers/rsvqa.py. There
  acc_avg_nonum is written twice for the low-resolution data, last without
  rural_urban, and a single "answer" counts for no type.
  """

  lower: bool = True
  higher_is_better = dict.fromkeys(
    (
      *("acc", "acc_any", "anls", "acc_avg", "acc_avg_nonum"),
      *(f"acc_{kind}" for kind in QUESTION_TYPES),
    ),
    True,
  )

  def score(self, prediction: str, example: Example, answer_key: str) -> Row:
    answers = answer_fields.text_or_texts(example, answer_key, "answer")
    kind = answer_fields.choice(
      example, "question_type", "type of question", QUESTION_TYPES
    )
    row = vqa.vqa(prediction, answers, lower=self.lower)
    return row | {f"acc_{kind}": row["acc_any"]}

  def reduce(self, rows: Sequence[Row]) -> dict[str, float]:
    scores = super().reduce(rows)
    textual = [kind for kind in QUESTION_TYPES if kind not in NUMERIC_TYPES]
    for name, kinds in (
      ("acc_avg", QUESTION_TYPES),
      ("acc_avg_nonum", textual),
    ):
      found = [scores[f"acc_{k}"] for k in kinds if f"acc_{k}" in scores]
      if found:
        scores[name] = sum(found) / len(found)
    return scores
