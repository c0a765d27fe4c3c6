import collections
import random

import pytest

from paligemma.metrics import rsvqa


def test_means_over_types():
  examples = [
    {"answers": ["Yes"], "question_type": "comp"},
    {"answers": ["no"], "question_type": "comp"},
    {"answers": "rural", "question_type": "rural_urban"},
    {"answers": ["3"] * 3, "question_type": "count"},
  ]
  found = rsvqa.RSVQA()(
    ["yes", "yes", "rural", "3"], examples, answer_key="answers"
  )
  assert found == {
    "acc": pytest.approx((1 / 3 + 0 + 1 + 1) / 4),
    "acc_any": 0.75,
    "anls": 0.75,
    "acc_comp": 0.5,
    "acc_rural_urban": 1.0,
    "acc_count": 1.0,
    "acc_avg": pytest.approx(2.5 / 3),
    "acc_avg_nonum": 0.75,
    "num": 4.0,
  }


def test_no_mean_without_a_type_for_it():
  example = {"suffix": "5", "question_type": "area"}
  found = rsvqa.RSVQA()(["5"], [example])
  assert found["acc_avg"] == found["acc_area"] == 1.0
  assert "acc_avg_nonum" not in found
  assert "acc_comp" not in found


def test_lower():
  example = {"suffix": "Yes", "question_type": "presence"}
  assert rsvqa.RSVQA()(["yes"], [example])["acc_avg"] == 1.0
  assert rsvqa.RSVQA(lower=False)(["yes"], [example])["acc_avg"] == 0.0


def test_over_random_examples():
  rng = random.Random(41)
  examples, predictions, right = [], [], collections.defaultdict(list)
  for _ in range(10_000):
    kind = rng.choice(["comp", "presence", "presence", "count"])
    answer = rng.choice(["yes", "NO", "", "7"])
    predictions.append(rng.choice(["Yes", "no", "", "7 ", "7"]))
    examples.append({"suffix": [answer], "question_type": kind})
    right[kind].append(answer.upper() == predictions[-1].upper())
  means = {kind: sum(hits) / len(hits) for kind, hits in right.items()}
  found = rsvqa.RSVQA()(predictions, examples)
  for kind, mean in means.items():
    assert found[f"acc_{kind}"] == pytest.approx(mean)
  assert found["acc_avg"] == pytest.approx(sum(means.values()) / 3)
  nonum = (means["comp"] + means["presence"]) / 2
  assert found["acc_avg_nonum"] == pytest.approx(nonum)
  assert found["acc_any"] == pytest.approx(sum(map(sum, right.values())) / 1e4)


def test_unknown_type():
  example = {"suffix": "5", "question_type": "rural"}
  with pytest.raises(
    ValueError, match=r"rural_urban, area.*mean \"rural_urban\""
  ):
    rsvqa.RSVQA()(["5"], [example])
