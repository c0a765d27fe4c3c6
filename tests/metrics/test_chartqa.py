import fractions
import math

import pytest

from paligemma.metrics import chartqa
from tests.metrics import adversarial_texts


@pytest.mark.parametrize(
  ("prediction", "answer", "expected"),
  [
    ("105", "100", True),
    ("95", "100", True),
    ("105.1", "100", False),
    ("94.9", "100", False),
    ("-100", "100", False),
    ("-105", "-100", True),
    ("12%", "0.12", True),
    ("12%", "12", False),
    ("12.5%", "12%", True),
    ("5%%", "5%", True),
    ("0", "0", True),
    ("0.0", "0", False),  # where the answer is 0, texts must be equal
    ("0%", "0", False),
    ("0.001", "0", False),
    ("7.", "7", True),
    (" 7 ", "7", True),
    ("1,000", "1000", False),
    ("1,000", "1,000", True),
    ("$7", "7", False),
    ("1e3", "1000", True),
    ("nan", "nan", False),
    ("inf", "inf", False),
    ("Yes", "yes", False),
    ("yes", "yes", True),
    ("", "", True),
    ("", "5", False),
    ("%", "%", True),
    ("7", "seven", False),
  ],
)
def test_relaxed_match(prediction, answer, expected):
  assert chartqa.relaxed_match(prediction, answer) is expected


def exact_number(text):
  """As a fraction, or a float where there is none, or None."""
  scale = 100 if text.endswith("%") else 1
  try:
    value = float(text.rstrip("%") if scale == 100 else text) / scale
  except ValueError:
    return None
  return fractions.Fraction(value) if math.isfinite(value) else value


def test_over_adversarial_texts():
  """The bound from both sides, in exact arithmetic."""
  answers = adversarial_texts.texts(seed=31, number=10_000)
  predictions = adversarial_texts.near(answers, seed=37)
  numbers = [f"{n / 16:g}{end}" for n in range(-99, 99) for end in ("", "%")]
  answers += [answer for answer in numbers for _ in numbers[::7]]
  predictions += [prediction for _ in numbers for prediction in numbers[::7]]
  relaxed = strict = 0
  for prediction, answer in zip(predictions, answers, strict=True):
    found, expected = exact_number(prediction), exact_number(answer)
    if found is None or not expected:
      match = prediction == answer
    elif isinstance(expected, float):
      match = False  # nothing is near infinity or nan
    elif isinstance(found, float):
      match = False
    else:
      error = abs(found / expected - 1)
      match = error <= fractions.Fraction(5, 100)
      if abs(error - fractions.Fraction(5, 100)) < 1e-12:
        continue  # rounding decides
    assert chartqa.relaxed_match(prediction, answer) == match
    relaxed += match and prediction != answer
    strict += match and prediction == answer
  assert min(relaxed, strict) > 200


def test_metric():
  examples = [{"suffix": "100"}, {"suffix": "Red"}, {"suffix": "3"}]
  predictions = ["98", "red", "3"]
  found = chartqa.ChartQA()(predictions, examples)
  assert found == {"acc": pytest.approx(2 / 3), "relaxed_acc": 1.0, "num": 3.0}
  found = chartqa.ChartQA(lower=False)(predictions, examples)
  assert found["relaxed_acc"] == pytest.approx(2 / 3)
