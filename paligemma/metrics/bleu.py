"""BLEU: n-gram precision of captions against their references.

Counts are summed over a corpus and then divided; a mean over captions is not
BLEU.
"""

import dataclasses
import functools
import math
import operator
from collections.abc import Iterable, Sequence

import numpy as np

from paligemma.metrics import ngrams

# Of pycocoevalcap: they keep 0 / 0 and 0 / n near 0.
_SMALL = 1e-9
_TINY = 1e-15


@dataclasses.dataclass(frozen=True)
class Statistics:
  """Counts of one caption; `found` and `total` are of n-grams, n = 1 to 4.

  Attributes:
    length: words of the caption.
    reference_length: words of the reference nearest in length; of two equally
      near ones the shorter.
    found: those that a reference has too, each counted at most as often as the
      reference with most of it has it.
    total: all.
  """

  length: int
  reference_length: int
  found: tuple[int, ...]
  total: tuple[int, ...]


def statistics(
  prediction: ngrams.Counts, references: Sequence[ngrams.Counts]
) -> Statistics:
  """Compares the n-grams of a caption with those of its references."""
  length, *lengths = map(ngrams.num_words, (prediction, *references))
  most = functools.reduce(operator.or_, references)
  found = [0] * ngrams.LONGEST
  for ngram, times in prediction.items():
    found[len(ngram) - 1] += min(times, most[ngram])
  nearest = min(lengths, key=lambda n: (abs(n - length), n))
  total = tuple(max(0, length - n) for n in range(ngrams.LONGEST))
  return Statistics(length, nearest, tuple(found), total)


def bleu(captions: Iterable[Statistics]) -> list[float]:
  """Returns BLEU-1, BLEU-2, BLEU-3 and BLEU-4 of a corpus, each in [0, 1].

  Source: Papineni et al. 2002, "BLEU: a Method for Automatic Evaluation of
  Machine Translation", equation 3; constants and choice of reference length as
  in pycocoevalcap/bleu/bleu_scorer.py.
  """
  captions = list(captions)
  found = np.sum([c.found for c in captions], axis=0)
  total = np.sum([c.total for c in captions], axis=0)
  length = sum(c.length for c in captions)
  reference_length = sum(c.reference_length for c in captions)
  product = np.cumprod((found + _TINY) / (total + _SMALL))
  scores = product ** (1 / np.arange(1, ngrams.LONGEST + 1))
  ratio = (length + _TINY) / (reference_length + _SMALL)
  penalty = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
  return (scores * penalty).tolist()
