"""POPE: does the model see objects that are not there? Yes or no."""

import math
from collections.abc import Sequence

from paligemma.metrics import answer_fields
from paligemma.metrics.metric import Example, Metric, Row

ANSWERS = ("yes", "no")


class POPE(Metric):
  """Accuracy, precision and recall of "yes".

  A prediction is valid if its lowercased text is exactly "yes" or "no"; an
  invalid one is wrong and counts as neither.

  Keys, all in [0, 1]:
    acc: share of the right predictions.
    valid_percent: share (not per cent, in spite of its name) of valid ones.
    precision: of those predicted yes, the share where yes is true.
    recall: of those where yes is true, the share predicted yes.
    f1: harmonic mean of both. All three are 0 where they would divide by 0.
    yes_rate: share of the predictions that are yes.
  And num, the number of examples.

  Source: Li et al. 2023, "Evaluating Object Hallucination in Large
  Vision-Language Models", section 5; big_vision,
  evaluators/proj/paligemma/transfers/pope.py, which has acc, valid_percent and
  num. The official script takes every first sentence without "no", "No" or
  "not" for a yes; if all predictions are valid, the numbers are the same.
  """

  higher_is_better = dict.fromkeys(
    ("acc", "valid_percent", "precision", "recall", "f1"), True
  )

  def score(self, prediction: str, example: Example, answer_key: str) -> Row:
    answer = answer_fields.choice(example, answer_key, "answer", ANSWERS)
    said = prediction.lower()
    return {
      "acc": float(said == answer),
      "valid_percent": float(said in ANSWERS),
      "yes_rate": float(said == "yes"),
      "yes_is_true": float(answer == "yes"),
      "yes_and_true": float(said == answer == "yes"),
    }

  def reduce(self, rows: Sequence[Row]) -> dict[str, float]:
    scores = super().reduce(rows)
    said, true, both = (
      math.fsum(row[name] for row in rows)
      for name in ("yes_rate", "yes_is_true", "yes_and_true")
    )
    return {
      "acc": scores["acc"],
      "valid_percent": scores["valid_percent"],
      "precision": both / max(said, 1.0),
      "recall": both / max(true, 1.0),
      "f1": 2 * both / max(said + true, 1.0),
      "yes_rate": scores["yes_rate"],
      "num": scores["num"],
    }
