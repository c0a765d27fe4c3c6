"""ScienceQA: the letter in "The answer is B."."""

import re

from paligemma.metrics import answer_fields
from paligemma.metrics import metric as metric_lib

_ANSWER = re.compile(r"the answer is ([a-z])\.")


def letter(text: str) -> str | None:
  """The letter, lowered, if the text begins with such a sentence, else None."""
  match = _ANSWER.match(text.lower())
  return match and match[1]


class ScienceQA(metric_lib.Metric):
  """Accuracy of the letter chosen; what follows the sentence is not read.

  Keys:
    acc: share of the predictions with the letter of the answer.
    parsefail: share of those without any; they are wrong.
    num: number of examples.

  Source: Lu et al. 2022, "Learn to Explain"; big_vision,
  evaluators/proj/paligemma/transfers/science_qa.py. The official script
  (lupantech/ScienceQA, models/run_gpt3.py) finds the sentence anywhere, minds
  its case, and where it fails draws a choice at random. In big_vision an answer
  without a letter is met by a prediction without one; here it is an error.
  """

  def score(self, prediction, example, answer_key):
    answer = letter(answer_fields.text(example, answer_key, "answer"))
    if answer is None:
      raise answer_fields.wrong(
        example, answer_key, '"The answer is A." or the like'
      )
    found = letter(prediction)
    return {"acc": float(found == answer), "parsefail": float(found is None)}
