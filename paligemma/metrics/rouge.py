"""ROUGE-L: the longest common subsequence of a caption and its references."""

from collections.abc import Sequence

BETA = 1.2  # weight of recall relative to precision


def common_subsequence(a: Sequence[str], b: Sequence[str]) -> int:
  """Returns the length of the longest common subsequence of words."""
  row = [0] * (len(b) + 1)  # row[j]: of a[:i] and b[:j]
  for word in a:
    diagonal = 0
    for j, other in enumerate(b, start=1):
      above = row[j]
      row[j] = diagonal + 1 if word == other else max(above, row[j - 1])
      diagonal = above
  return row[-1]


def rouge_l(prediction: str, references: Sequence[str]) -> float:
  """Returns the F measure of the longest common subsequence, in [0, 1].

  Words are separated by single spaces. As in pycocoevalcap, the empty text is
  one word, "": two empty captions score 1. Precision and recall are the maxima
  over the references, each separately.

  Source: Lin 2004, "ROUGE: A Package for Automatic Evaluation of Summaries",
  section 3; beta and the two maxima are those of pycocoevalcap/rouge/rouge.py.
  """
  words = prediction.split(" ")
  precision = recall = 0.0
  for reference in references:
    theirs = reference.split(" ")
    common = common_subsequence(words, theirs)
    precision = max(precision, common / len(words))
    recall = max(recall, common / len(theirs))
  if not precision:
    return 0.0
  return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)
