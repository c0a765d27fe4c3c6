"""POPE: does the model see objects that are not there? Yes or no."""

import math

from paligemma.metrics import answer_fields
from paligemma.metrics import metric as metric_lib

ANSWERS = ("yes", "no")


class POPE(metric_lib.Metric):
  """Accuracy and the trade between seeing too much and too little.

  A prediction counts after lowering, if it is exactly "yes" or "no"; any other
  is wrong and neither.

  Keys, all in [0, 1]:
    acc: share of the right predictions.
    valid_percent: share (not per cent, in spite of its name) of yes and no.
    precision: of those that said yes, the share where yes is true.
    recall: of those where yes is true, the share that said yes.
    f1: harmonic mean of both. All three are 0 where they divide 0 by 0.
    yes_rate: share of the predictions that are yes.
  And num, the number of examples.

  Source: Li et al. 2023, "Evaluating Object Hallucination in Large
  Vision-Language Models", section 5; big_vision,
  evaluators/proj/paligemma/transfers/pope.py, which has acc, valid_percent and
  num. The official script takes every first sentence without "no", "No" or
  "not" for a yes; where all predictions are valid, both give the same numbers.
  """

  def score(self, prediction, example, answer_key):
    answer = answer_fields.choice(example, answer_key, "answer", ANSWERS)
    said = prediction.lower()
    return {
      "acc": float(said == answer),
      "valid_percent": float(said in ANSWERS),
      "yes_rate": float(said == "yes"),
      "yes_is_true": float(answer == "yes"),
      "yes_and_true": float(said == answer == "yes"),
    }

  def reduce(self, rows):
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
