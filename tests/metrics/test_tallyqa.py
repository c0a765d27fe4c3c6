import collections

import numpy as np
import pytest

from paligemma.metrics import tallyqa
from tests.metrics import adversarial_texts


@pytest.mark.parametrize(
  ("text", "expected"),
  [
    ("none", "0"),
    ("Zero", "0"),
    ("TEN", "10"),
    ("nineteen", "19"),
    ("twenty", "20"),
    ("twenty-one", "twenty-one"),
    (" two", " two"),
    ("3", "3"),
    ("", ""),
  ],
)
def test_numeral(text, expected):
  assert tallyqa.numeral(text) == expected


def test_by_complexity_and_count():
  examples = [
    {"suffix": "2", "issimple": 1},
    {"suffix": 2, "issimple": 0},
    {"suffix": "Fifteen", "issimple": np.int64(0)},
    {"suffix": np.int32(16), "issimple": -1},
    {"suffix": "0"},
  ]
  found = tallyqa.TallyQA()(["two", "3", "15", "sixteen", "none"], examples)
  assert found == {
    "acc": 0.8,
    "acc/simple": 1.0,
    "acc/complex": 0.5,
    "acc/count_2": 0.5,
    "acc/count_15": 1.0,
    "acc/count_0": 1.0,
    "num/simple": 1.0,
    "num/complex": 2.0,
    "num/count_2": 2.0,
    "num/count_15": 1.0,
    "num/count_0": 1.0,
    "num": 5.0,
  }


@pytest.mark.parametrize(
  "bad", ["many", "-1", "2.0", "", "²", "١٢", "9" * 5000, True, -3, 2.0]
)
def test_an_answer_that_is_no_count(bad):
  with pytest.raises(ValueError, match=r'"suffix" is .*expected a count such'):
    tallyqa.TallyQA()(["2"], [{"suffix": bad}])


def test_over_adversarial_texts():
  words = dict(zero=0, none=0, TWO=2, ten=10, Eleven=11, twenty=20)
  counts = [i % 21 for i in range(10_000)]
  predictions = adversarial_texts.near(list(map(str, counts)), seed=43)
  predictions[::5] = [list(words)[i % len(words)] for i in range(2000)]
  hits, total = collections.Counter(), collections.Counter()
  for prediction, count in zip(predictions, counts, strict=True):
    word = {name.casefold(): str(value) for name, value in words.items()}
    hits[count] += word.get(prediction.casefold(), prediction) == str(count)
    total[count] += 1
  found = tallyqa.TallyQA()(predictions, [{"suffix": n} for n in counts])
  assert found["acc"] == pytest.approx(hits.total() / 10_000)
  assert 2000 < hits.total() < 8000
  for count in range(16):
    expected = hits[count] / total[count]
    assert found[f"acc/count_{count}"] == pytest.approx(expected)
    assert found[f"num/count_{count}"] == total[count]
  assert "acc/count_16" not in found
