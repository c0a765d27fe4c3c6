import string

import pytest

from paligemma.metrics import science_qa
from tests.metrics import adversarial_texts


@pytest.mark.parametrize(
  ("text", "expected"),
  [
    ("The answer is A.", "a"),
    ("the ANSWER is e. BECAUSE: it is", "e"),
    ("The answer is A", None),
    (" The answer is A.", None),
    ("So the answer is A.", None),
    ("The answer is AB.", None),
    ("The answer is (A).", None),
    ("The answer is 1.", None),
    ("The answer is é.", None),
    ("The answer is \u212a.", "k"),  # the Kelvin sign lowers to k
    ("", None),
  ],
)
def test_letter(text, expected):
  assert science_qa.letter(text) == expected


def test_metric():
  examples = [{"suffix": f"The answer is {x}."} for x in "ABCD"]
  predictions = ["The answer is A. BECAUSE: B.", "the answer is C.", "C", ""]
  found = science_qa.ScienceQA()(predictions, examples)
  assert found == {"acc": 0.25, "parsefail": 0.5, "num": 4.0}


def test_an_answer_without_a_letter_is_an_error():
  with pytest.raises(ValueError, match=r'expected "The answer is A\." or'):
    science_qa.ScienceQA()(["B"], [{"suffix": "B"}])


def test_over_adversarial_texts():
  tails = adversarial_texts.texts(seed=47, number=10_000)
  parsed = 0
  for i, tail in enumerate(tails):
    text = "The answer is " * (i % 3 > 0) + string.ascii_letters[i % 52] * (
      i % 2
    )
    text += "." * (i % 5 > 0) + tail
    words = text.lower()
    start, rest = words[:14], words[14:16]
    expected = None
    if start == "the answer is " and len(rest) == 2 and rest[1] == ".":
      expected = rest[0] if rest[0] in string.ascii_lowercase else None
    assert science_qa.letter(text) == expected, repr(text)
    parsed += expected is not None
  assert parsed > 1000
