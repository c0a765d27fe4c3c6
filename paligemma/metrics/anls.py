"""ANLS: how near, in edits, the prediction comes to the nearest answer."""

from collections.abc import Iterable, Sequence

from paligemma.metrics import answer_fields
from paligemma.metrics import metric as metric_lib

THRESHOLD = 0.5


def edit_distance(a: str, b: str) -> int:
  """Fewest insertions, deletions and substitutions of characters from a to b.

  Source: Wagner and Fischer 1974, "The String-to-String Correction Problem".
  """
  if a == b:
    return 0
  row = list(range(len(b) + 1))  # row[j]: distance of a[:i] and b[:j]
  for i, letter in enumerate(a, start=1):
    diagonal, row[0] = row[0], i
    for j, other in enumerate(b, start=1):
      substituted = diagonal + (letter != other)
      diagonal = row[j]
      row[j] = min(substituted, diagonal + 1, row[j - 1] + 1)
  return row[-1]


def anls(prediction: str, answer: str) -> float:
  """1 - NL where NL = edits / length of the longer text is below 0.5, else 0.

  Args:
    prediction: decoded text.
    answer: the one answer; the score over several is the largest.

  Returns:
    0.0, or a value in (0.5, 1]. An empty answer is met by an empty prediction.

  Source: big_vision, evaluators/proj/paligemma/transfers/vqa.py; Biten et al.
  2019, "Scene Text Visual Question Answering", equation 1. `official` differs.
  """
  longer = max(len(prediction), len(answer))
  # A difference of the lengths alone takes that many edits.
  if 2 * abs(len(prediction) - len(answer)) >= longer > 0:
    return 0.0
  distance = edit_distance(prediction, answer) / max(longer, 1)
  return 1.0 - distance if distance < THRESHOLD else 0.0


def best(prediction: str, answers: Iterable[str]) -> float:
  """The largest anls over the answers."""
  return max(anls(prediction, answer) for answer in set(answers))


def official(prediction: str, answers: Sequence[str]) -> float:
  """ANLS as in the script of the Robust Reading Competition.

  That site holds the test servers of DocVQA, InfographicVQA and ST-VQA.

  It differs from `anls` in three ways: both sides are lowered, and white space
  is stripped at the ends and single inside; the edits between these are divided
  by the length of the longer text as it was before; and a similarity of exactly
  0.5 counts as 0.5, not as 0.

  Args:
    prediction: decoded text.
    answers: accepted answers, one at least.

  Returns:
    0.0, or a value in [0.5, 1].

  Source: evaluation script of rrc.cvc.uab.es for "Document Visual Question
  Answering"; the same function is `anls` of lmms-eval.
  """

  def distance(answer):
    edits = edit_distance(_tidy(prediction), _tidy(answer))
    # Upper case, as there: its length differs for a few letters such as ß.
    return edits / max(len(prediction.upper()), len(answer.upper()), 1)

  similarity = 1.0 - min(distance(answer) for answer in set(answers))
  return similarity if similarity >= THRESHOLD else 0.0


class ANLS(metric_lib.Metric):
  """Mean ANLS, without regard to case: DocVQA, InfographicVQA, ST-VQA.

  Keys:
    anls: `anls` of the lowered texts, as big_vision reports while training.
    anls_official: `official`, as test servers report: the published scores.
    num: number of examples.
  """

  def score(self, prediction, example, answer_key):
    answers = answer_fields.text_or_texts(example, answer_key, "answer")
    answers = [answers] if isinstance(answers, str) else answers
    lowered = [answer.lower() for answer in answers]
    return {
      "anls": best(prediction.lower(), lowered),
      "anls_official": official(prediction, answers),
    }


def _tidy(text):
  return " ".join(text.lower().split())
