"""ANLS: edit similarity of the prediction and the nearest answer."""

from collections.abc import Iterable, Sequence

from paligemma.metrics import answer_fields
from paligemma.metrics.metric import Example, Metric, Row

THRESHOLD = 0.5


def edit_distance(a: str, b: str) -> int:
  """Returns the Levenshtein distance of two texts, in characters.

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
  """Returns 1 - NL if NL = edits / length of the longer text < 0.5, else 0.

  Two empty texts score 1.

  Source: big_vision, evaluators/proj/paligemma/transfers/vqa.py; Biten et al.
  2019, "Scene Text Visual Question Answering", equation 1.
  """
  longer = max(len(prediction), len(answer))
  # A difference of the lengths alone takes that many edits.
  if 2 * abs(len(prediction) - len(answer)) >= longer > 0:
    return 0.0
  distance = edit_distance(prediction, answer) / max(longer, 1)
  return 1.0 - distance if distance < THRESHOLD else 0.0


def best(prediction: str, answers: Iterable[str]) -> float:
  """Returns the largest anls over the answers."""
  return max(anls(prediction, answer) for answer in set(answers))


def official(prediction: str, answers: Sequence[str]) -> float:
  """Returns ANLS as the test servers of DocVQA, InfographicVQA and ST-VQA do.

  It differs from `best` in three ways: both texts are lowercased, stripped, and
  runs of white space become one space; the edits are divided by the length of
  the longer text before that; and a similarity of exactly 0.5 counts as 0.5.

  Source: evaluation script of rrc.cvc.uab.es for "Document Visual Question
  Answering"; the same function is `anls` of lmms-eval.
  """

  def normalize(text):
    return " ".join(text.lower().split())

  def distance(answer):
    edits = edit_distance(normalize(prediction), normalize(answer))
    # That script takes the length in upper case; a few letters grow, such as ß.
    return edits / max(len(prediction.upper()), len(answer.upper()), 1)

  similarity = 1.0 - min(map(distance, set(answers)))
  return similarity if similarity >= THRESHOLD else 0.0


class ANLS(Metric):
  """Mean ANLS, case-insensitive: DocVQA, InfographicVQA, ST-VQA.

  Keys:
    anls: `best` of the lowercased texts, as big_vision reports in training.
    anls_official: `official`, the published scores.
    num: number of examples.
  """

  higher_is_better = dict.fromkeys(("anls", "anls_official"), True)

  def score(self, prediction: str, example: Example, answer_key: str) -> Row:
    answers = answer_fields.accepted(example, answer_key, "answer")
    lowered = [answer.lower() for answer in answers]
    return {
      "anls": best(prediction.lower(), lowered),
      "anls_official": official(prediction, answers),
    }
