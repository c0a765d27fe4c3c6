"""Runs of words and how often they occur, which BLEU and CIDEr compare."""

from collections import Counter

LONGEST = 4

Counts = Counter[tuple[str, ...]]


def count(text: str) -> Counts:
  """Counts the runs of 1 to 4 successive words.

  Args:
    text: words separated by white space.

  Returns:
    (word, ...) -> how often, the shorter runs first.
  """
  words = text.split()
  return Counter(
    tuple(words[i : i + n])
    for n in range(1, LONGEST + 1)
    for i in range(len(words) - n + 1)
  )
