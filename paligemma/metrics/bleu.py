"""BLEU: which share of a caption's runs of words is found in the references.

Counts add up over a corpus before they are divided; a mean over captions is not
BLEU.
"""

import dataclasses
import math
from collections.abc import Iterable, Sequence

import numpy as np

from paligemma.metrics import ngrams

# Of pycocoevalcap: the share of no runs at all, or of none found, is near 0.
_SMALL = 1e-9
_TINY = 1e-15


@dataclasses.dataclass(frozen=True)
class Statistics:
  """What BLEU needs to know of one caption.

  Attributes:
    length: of the caption in words.
    reference_length: of the reference nearest in length, of two the shorter.
    found: for n = 1 to 4, runs of n words that are in a reference, each as
      often as in that which has it most often.
    total: runs of n words of the caption.
  """

  length: int
  reference_length: int
  found: tuple[int, ...]
  total: tuple[int, ...]


def statistics(
  prediction: ngrams.Counts, references: Sequence[ngrams.Counts]
) -> Statistics:
  """Compares a caption with its references, one at least (ngrams.count)."""
  length, *lengths = (_length(c) for c in (prediction, *references))
  most = ngrams.Counts()
  for reference in references:
    most |= reference
  found = [0] * ngrams.LONGEST
  for run, times in prediction.items():
    found[len(run) - 1] += min(times, most[run])
  return Statistics(
    length=length,
    reference_length=min(lengths, key=lambda n: (abs(n - length), n)),
    found=tuple(found),
    total=tuple(max(0, length - n) for n in range(ngrams.LONGEST)),
  )


def bleu(captions: Iterable[Statistics]) -> list[float]:
  """BLEU-1, BLEU-2, BLEU-3 and BLEU-4 of a corpus, each in [0, 1].

  Source: Papineni et al. 2002, "BLEU: a Method for Automatic Evaluation of
  Machine Translation", equation 3; its constants, and the reference length
  nearest to each caption, are those of pycocoevalcap/bleu/bleu_scorer.py.
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


def _length(counts):
  return sum(times for run, times in counts.items() if len(run) == 1)
