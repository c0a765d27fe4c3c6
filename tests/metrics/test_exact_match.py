import functools

import pytest

from paligemma import metrics
from paligemma.metrics import exact_match


@pytest.mark.parametrize(
  ("prediction", "answers", "options", "expected"),
  [
    ("two", "two", {}, 1.0),
    ("two", "two dogs", {}, 0.0),
    ("two", "Two", {}, 0.0),
    ("TWO", "Two", {"lower": True}, 1.0),
    (" two\n", "two", {}, 1.0),
    ("two", " two", {}, 1.0),
    ("two ", "two", {"strip": False}, 0.0),
    ("two", ["2", "two"], {}, 1.0),
    ("t", "two", {}, 0.0),
    ("t", ["two"], {}, 0.0),
    ("", "", {}, 1.0),
    ("", [], {}, 0.0),
  ],
)
def test_exact_match(prediction, answers, options, expected):
  assert exact_match.exact_match(prediction, answers, **options) == expected


def test_score_is_the_mean_over_examples():
  examples = [{"suffix": "a"}, {"suffix": ["b", "c"]}, {"suffix": "d"}]
  assert exact_match.score(["a", "c", "D"], examples) == {
    "exact_match": pytest.approx(2 / 3)
  }
  lower = functools.partial(exact_match.score, lower=True)
  assert lower(["a", "c", "D"], examples) == {"exact_match": 1.0}


def test_score_reads_the_given_field():
  examples = [{"suffix": "a", "answer": "b"}]
  scores = exact_match.score(["b"], examples, answer_key="answer")
  assert scores == {"exact_match": 1.0}


def test_score_names_the_example_without_an_answer():
  examples = [{"suffix": "a"}, {"sufix": "b", "_where": "x.jsonl:2"}]
  with pytest.raises(ValueError, match=r'x.jsonl:2.*"suffix".*"sufix"'):
    exact_match.score(["a", "b"], examples)


def test_score_of_nothing_is_an_error():
  with pytest.raises(ValueError, match="no example"):
    exact_match.score([], [])


def test_make():
  assert metrics.make("exact_match") is exact_match.score
  assert metrics.make(len) is len
  with pytest.raises(ValueError, match='mean "exact_match"'):
    metrics.make("exactmatch")
