"""TallyQA and CountBenchQA: exact counts, by complexity and by count."""

import numbers

from paligemma.metrics import answer_fields, vqav2
from paligemma.metrics.metric import Example, Metric, Row

LARGEST_COUNT = 15
_NUMERALS = vqav2.numerals(20)


def numeral(text: str) -> str:
  """Returns the digits of a number word up to twenty, else the text itself."""
  return _NUMERALS.get(text.lower(), text)


class TallyQA(Metric):
  """Share of the exact counts, "two" being the same as "2".

  The answer is a number or its text. The field "issimple" of an example is 1
  for a simple question, 0 for a complex one, -1 for unknown; it may be missing.

  Keys: acc; acc/simple and acc/complex; acc/count_0 ... acc/count_15 by the
  true count; the num/... of each; num. A group without an example has no key.

  Source: Acharya et al. 2019, "TallyQA: Answering Complex Counting Questions";
  big_vision, evaluators/proj/paligemma/transfers/tallyqa.py, which fails on a
  count above 15; here it counts for acc alone.
  """

  higher_is_better = dict.fromkeys(
    (
      *("acc", "acc/simple", "acc/complex"),
      *(f"acc/count_{n}" for n in range(LARGEST_COUNT + 1)),
    ),
    True,
  )

  def score(self, prediction: str, example: Example, answer_key: str) -> Row:
    answer = _count(example, answer_key)
    acc = float(numeral(prediction) == answer)
    row = {"acc": acc}
    if "issimple" in example:
      simple = example["issimple"]
      if not isinstance(simple, numbers.Integral) or simple not in (-1, 0, 1):
        raise answer_fields.wrong(example, "issimple", "1, 0 or -1 (unknown)")
      if simple >= 0:
        row["acc/simple" if simple else "acc/complex"] = acc
    if int(answer) <= LARGEST_COUNT:
      row[f"acc/count_{int(answer)}"] = acc
    return row


def _count(example, key) -> str:
  value = answer_fields.read(example, key, "answer")
  if isinstance(value, numbers.Integral):
    value = str(value)
  count = numeral(value) if isinstance(value, str) else ""
  # Nine digits at most, as reading a longer number may take forever.
  if not (count.isascii() and count.isdigit() and len(count) < 10):
    raise answer_fields.wrong(example, key, 'a count such as 2, "2" or "two"')
  return count
