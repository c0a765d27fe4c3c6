import pytest

from paligemma.metrics import vqa
from tests.metrics import adversarial_texts


@pytest.mark.parametrize(
  ("prediction", "answers", "acc", "acc_any", "anls"),
  [
    ("cat", "cat", 1, 1, 1),
    ("Cat", "cat", 0, 0, 2 / 3),
    ("cat ", "cat", 0, 0, 3 / 4),
    ("dog", "cat", 0, 0, 0),
    ("", "", 1, 1, 1),
    ("cat", ["cat"], 1 / 3, 1, 1),
    ("cat", ["cat", "dog", "cat"], 2 / 3, 1, 1),
    ("cat", ["cat"] * 3, 1, 1, 1),
    ("cat", ["cat"] * 10, 1, 1, 1),
    ("cut", ["cat", "dog"], 0, 0, 2 / 3),
    ("", ["", "dog"], 1 / 3, 1, 1),
  ],
)
def test_vqa(prediction, answers, acc, acc_any, anls):
  assert vqa.vqa(prediction, answers) == {
    "acc": pytest.approx(acc),
    "acc_any": acc_any,
    "anls": pytest.approx(anls),
  }


def test_lower_means_both_sides():
  for answers in ("CAT", ["CAT"] * 3):
    assert vqa.vqa("Cat", answers, lower=True)["acc"] == 1.0
    assert vqa.vqa("Cat", answers)["acc"] == 0.0


def test_over_adversarial_texts():
  texts = adversarial_texts.texts(seed=11, number=10_000)
  predictions = adversarial_texts.near(texts, seed=13)
  seen = set()
  for i, prediction in enumerate(predictions):
    answers = [texts[i]] * (i % 5) + texts[i + 1 : i + 3] + [""]
    for lower, fold in ((False, str), (True, str.lower)):
      equal = [fold(answer) == fold(prediction) for answer in answers]
      found = vqa.vqa(prediction, answers, lower=lower)
      assert found["acc"] == min(3, sum(equal)) / 3
      assert found["acc_any"] == any(equal)
      assert (found["anls"] == 1) == any(equal)
      seen.add(found["acc"])
  assert seen == {0, 1 / 3, 2 / 3, 1}


def test_metric():
  examples = [{"suffix": "Cat"}, {"suffix": ["cat", "dog"]}]
  found = vqa.VQA()(["cat", "cat"], examples)
  assert found == {
    "acc": pytest.approx(1 / 6),
    "acc_any": 0.5,
    "anls": pytest.approx(5 / 6),
    "num": 2.0,
  }
  assert vqa.VQA(lower=True)(["cat", "cat"], examples)["acc_any"] == 1.0
