"""Counts of n-grams, which BLEU and CIDEr compare."""

from collections import Counter

LONGEST = 4

Counts = Counter[tuple[str, ...]]


def count(text: str) -> Counts:
  """Counts the n-grams of 1 to 4 words of a text, the shorter ones first."""
  words = text.split()
  return Counter(
    tuple(words[i : i + n])
    for n in range(1, LONGEST + 1)
    for i in range(len(words) - n + 1)
  )


def num_words(counts: Counts) -> int:
  """Returns the number of words of the text that was counted."""
  return sum(times for ngram, times in counts.items() if len(ngram) == 1)
