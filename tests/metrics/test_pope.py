import random

import pytest
from sklearn import metrics as sklearn_metrics

from paligemma.metrics import pope


def scored(predictions, answers):
  return pope.POPE()(predictions, [{"suffix": answer} for answer in answers])


def test_by_hand():
  predictions = ["yes", "YES", "no", "yes", "maybe", "No.", "no"]
  answers = ["yes", "yes", "yes", "no", "no", "no", "no"]
  assert scored(predictions, answers) == {
    "acc": pytest.approx(3 / 7),
    "valid_percent": pytest.approx(5 / 7),
    "precision": pytest.approx(2 / 3),
    "recall": pytest.approx(2 / 3),
    "f1": pytest.approx(2 / 3),
    "yes_rate": pytest.approx(3 / 7),
    "num": 7.0,
  }


def test_nothing_divides_by_zero():
  found = scored(["no", ""], ["no", "no"])
  assert found["precision"] == found["recall"] == found["f1"] == 0.0


@pytest.mark.parametrize("answer", ["Yes", "", "true", 1, None])
def test_an_answer_that_is_neither(answer):
  with pytest.raises(ValueError, match="expected one of: yes, no"):
    scored(["yes"], [answer])


@pytest.mark.parametrize("seed", range(5))
def test_equals_sklearn(seed):
  rng = random.Random(seed)
  answers = rng.choices(["yes", "no"], weights=[seed, 3], k=2003)
  said = rng.choices(["yes", "Yes", "no", "NO", "yes ", "", "?"], k=2003)
  found = scored(said, answers)
  truth = [answer == "yes" for answer in answers]
  guess = [text in ("yes", "Yes") for text in said]
  scores = sklearn_metrics.precision_recall_fscore_support(
    truth, guess, average="binary", zero_division=0
  )
  for name, score in zip(("precision", "recall", "f1"), scores, strict=False):
    assert found[name] == pytest.approx(score), name
  assert found["yes_rate"] == pytest.approx(sum(guess) / 2003)
  right = sum(s.lower() == a for s, a in zip(said, answers, strict=True))
  assert found["acc"] == pytest.approx(right / 2003)
