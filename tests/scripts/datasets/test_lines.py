"""Lines of examples: what they may hold, and what is said of all else."""

import json
import re

import pytest

from scripts.datasets import lines


def test_a_line_is_its_example():
  example = {"image": "a.png", "answers": [], "question": "n°\u2028?"}
  line = lines.encode(example)
  assert json.loads(line) == example
  assert "\n" not in line and "°" in line


@pytest.mark.parametrize(
  ("field", "value", "message"),
  [
    ("question", None, "question is None, expected a text"),
    ("answers", ["a", 1], "answers is ['a', 1], expected a list of texts"),
    ("captions", "a", "captions is 'a', expected a list of texts"),
    ("correct", True, "correct is True, expected a number"),
    ("question_id", [1], "question_id is [1], expected a text or a number"),
    ("answer", 3, "answer is 3, expected a text"),
    ("bbox", [0.0, float("nan")], "not JSON compliant"),
    ("question", "a \ud83d", "a text holds '\\ud83d', half a surrogate pair"),
  ],
)
def test_a_field_of_another_kind_is_named(field, value, message):
  with pytest.raises(ValueError, match=re.escape(message)):
    lines.encode({"image": "a.png", field: value})


def test_answers_can_be_numbers():
  assert lines.encode({"answer": 3}, answer=int) == '{"answer": 3}'
  with pytest.raises(ValueError, match="answer is '3', expected a number"):
    lines.encode({"answer": "3"}, answer=int)
