import pytest

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
  predictions = ["a", "c", "D "]
  assert exact_match.ExactMatch()(predictions, examples) == {
    "exact_match": pytest.approx(2 / 3)
  }
  lower = exact_match.ExactMatch(lower=True)
  assert lower(predictions, examples) == {"exact_match": 1.0}
  as_is = exact_match.ExactMatch(lower=True, strip=False)
  assert as_is(predictions, examples) == {"exact_match": pytest.approx(2 / 3)}
