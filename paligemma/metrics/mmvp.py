"""MMVP: pairs of images that CLIP confuses; both answers must be right."""

import collections
from collections.abc import Sequence

from paligemma.metrics import answer_fields, exact_match
from paligemma.metrics.metric import Example, Metric, Row


class MMVP(Metric):
  """Paired accuracy: a pair counts if both of its questions are right.

  The field "pair" of an example is a text or a number that it shares with
  exactly one other; question n (from 1) of the data set is in pair
  (n + 1) // 2.

  Keys:
    acc: share of the pairs with two right predictions: the published score.
    acc_question: share of the right predictions.
    num: number of questions, twice that of pairs.

  Source: Tong et al. 2024, "Eyes Wide Shut?", section 2.2. The official script
  asks GPT-4 whether a prediction is right; how the published scores were
  matched is not known. Here a prediction must equal an answer up to case and
  white space at the ends: list all accepted ones, as in ["(a)", "a", "open"].
  """

  group_key = "pair"
  higher_is_better = dict.fromkeys(("acc", "acc_question"), True)

  def score_all(
    self, named: Sequence[tuple[str, Example]], answer_key: str
  ) -> list[Row]:
    paired = collections.defaultdict(list)
    right = []
    for prediction, example in named:
      answers = answer_fields.text_or_texts(example, answer_key, "answer")
      right.append(exact_match.exact_match(prediction, answers, lower=True))
      paired[_pair(example)].append(right[-1])
    for _, example in named:
      if (found := len(paired[_pair(example)])) != 2:
        expected = f"two examples of each pair, not {found}"
        raise answer_fields.wrong(example, "pair", expected)
    return [
      {"acc": min(paired[_pair(example)]), "acc_question": one}
      for one, (_, example) in zip(right, named, strict=True)
    ]


def _pair(example):
  value = answer_fields.read(example, "pair", "number of the pair")
  if isinstance(value, bool) or not isinstance(value, str | int):
    raise answer_fields.wrong(example, "pair", "a text or a number")
  return value
