import functools
import itertools

import pytest

from paligemma.metrics import anls
from tests.metrics import adversarial_texts


@pytest.mark.parametrize(
  ("a", "b", "distance"),
  [
    ("", "", 0),
    ("", "abc", 3),
    ("kitten", "sitting", 3),
    ("abcdef", "bcdefa", 2),
    ("ab", "ba", 2),
    ("東京都", "京都", 1),
    ("e\u0301", "é", 2),
  ],
)
def test_edit_distance(a, b, distance):
  assert anls.edit_distance(a, b) == anls.edit_distance(b, a) == distance


def edits(a, b):
  """By definition: the cheapest of all ways to go on at the first letter."""

  @functools.cache
  def least(i, j):
    if i == len(a) or j == len(b):
      return len(a) - i + len(b) - j
    return min(
      least(i + 1, j) + 1,
      least(i, j + 1) + 1,
      least(i + 1, j + 1) + (a[i] != b[j]),
    )

  return least(0, 0)


def test_edit_distance_of_all_short_texts():
  words = [
    "".join(w) for n in range(5) for w in itertools.product("abc", repeat=n)
  ]
  for a, b in itertools.product(words[::2], words):
    assert anls.edit_distance(a, b) == edits(a, b)


@pytest.mark.parametrize(
  ("prediction", "answer", "score"),
  [
    ("hello", "hello", 1.0),
    ("hallo", "hello", 0.8),
    ("Hello", "hello", 0.8),
    ("abxx", "abcd", 0.0),  # NL is 0.5
    ("abxxx", "abcde", 0.0),
    ("abcx", "abcd", 0.75),
    ("ab", "abcd", 0.0),
    ("abc", "abcd", 0.75),
    ("", "", 1.0),
    ("x", "", 0.0),
    ("", "x", 0.0),
  ],
)
def test_anls(prediction, answer, score):
  assert anls.anls(prediction, answer) == pytest.approx(score)


@pytest.mark.parametrize(
  ("prediction", "answers", "score"),
  [
    ("abxx", ["abcd"], 0.5),
    ("abxxx", ["abcde"], 0.0),
    ("HALLO", ["zz", "hello"], 0.8),
    ("a \n b", ["a b"], 1.0),  # white space is one
    ("a    x", ["a    y"], 1 - 1 / 6),  # but its length is that of the raw text
    ("", [""], 1.0),
    ("x", [""], 0.0),
    ("xß", ["xyz"], 1 - 2 / 3 if 1 / 3 >= 0.5 else 0.0),
    ("xyß", ["xyz"], 0.75),  # 1 edit of "XYSS"
  ],
)
def test_official(prediction, answers, score):
  assert anls.official(prediction, answers) == pytest.approx(score)


def test_both_over_adversarial_texts():
  """Against the definitions, with the slow distance."""
  answers = adversarial_texts.texts(seed=5, number=10_000)
  predictions = adversarial_texts.near(answers, seed=7)
  met = partly = half = 0
  for prediction, answer in zip(predictions, answers, strict=True):
    longer = max(len(prediction), len(answer))
    similarity = 1 - edits(prediction, answer) / longer if longer else 1.0
    found = anls.anls(prediction, answer)
    assert found == pytest.approx(similarity if similarity > 0.5 else 0.0)
    tidy = [" ".join(text.lower().split()) for text in (prediction, answer)]
    longer = max(len(prediction.upper()), len(answer.upper()))
    similarity = 1 - edits(*tidy) / longer if longer else 1.0
    expected = similarity if similarity >= 0.5 else 0.0
    assert anls.official(prediction, [answer]) == pytest.approx(expected)
    met += found == 1
    partly += 0 < found < 1
    half += similarity == 0.5
  assert min(met, partly, half) > 50


def test_metric():
  examples = [{"answers": ["zz", "Abcx", "Abcd"]}, {"answers": "Five"}]
  found = anls.ANLS()(["aBcy", "fIve"], examples, answer_key="answers")
  assert found == {"anls": 0.875, "anls_official": 0.875, "num": 2.0}
