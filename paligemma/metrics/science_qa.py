"""ScienceQA: the letter in "The answer is B."."""

import re

from paligemma.metrics import answer_fields
from paligemma.metrics.metric import Example, Metric, Row

_ANSWER = re.compile(r"the answer is ([a-z])\.")


def letter(text: str) -> str | None:
  """Returns the lowercased letter if a text begins with "The answer is B."."""
  match = _ANSWER.match(text.lower())
  return match and match[1]


class ScienceQA(Metric):
  """Accuracy of the letter chosen; text after the sentence is ignored.

  Keys:
    acc: share of the predictions with the letter of the answer.
    parsefail: share of those without a letter; they are wrong.
    num: number of examples.

  Source: Lu et al. 2022, "Learn to Explain"; big_vision,
  evaluators/proj/paligemma/transfers/science_qa.py. The official script
  (lupantech/ScienceQA, models/run_gpt3.py) finds the sentence anywhere, is case
  sensitive, and draws a choice at random if there is none. In big_vision a
  prediction without a letter matches an answer without one; here such an answer
  is an error.
  """

  higher_is_better = dict.fromkeys(("acc",), True) | {"parsefail": False}

  def score(self, prediction: str, example: Example, answer_key: str) -> Row:
    answer = letter(answer_fields.text(example, answer_key, "answer"))
    if answer is None:
      expected = '"The answer is A." or the like'
      raise answer_fields.wrong(example, answer_key, expected)
    found = letter(prediction)
    return {"acc": float(found == answer), "parsefail": float(found is None)}
