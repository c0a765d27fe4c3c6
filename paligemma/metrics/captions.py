"""Captions: CIDEr, BLEU and ROUGE-L as pycocoevalcap computes them."""

import dataclasses
import math
from collections.abc import Sequence

from paligemma.metrics import (
  answer_fields,
  bleu,
  cider,
  ngrams,
  ptb_tokenizer,
  rouge,
)
from paligemma.metrics.metric import Example, Metric


@dataclasses.dataclass(frozen=True)
class Record:
  """Statistics of one caption, from which the scores of a corpus follow."""

  prediction: ngrams.Counts
  references: tuple[ngrams.Counts, ...]
  bleu: bleu.Statistics
  rouge: float


class Captions(Metric):
  """Scores of captions against all references of their image.

  A row is a Record, because CIDEr and BLEU are not means over captions. A
  resample of the rows is a corpus of its own.

  Keys:
    cider: in [0, 10], published times 100; CIDEr-D, pycocoevalcap's "CIDEr".
    cider_unclipped: the original CIDEr, without clipping and length penalty.
    bleu-1 ... bleu-4, rouge: in [0, 1].
    num: number of captions.
  """

  def score(self, prediction: str, example: Example, answer_key: str) -> Record:
    answers = answer_fields.accepted(example, answer_key, "caption")
    words = ptb_tokenizer.tokenize(prediction)
    references = [ptb_tokenizer.tokenize(answer) for answer in answers]
    counts = ngrams.count(words)
    reference_counts = tuple(map(ngrams.count, references))
    return Record(
      counts,
      reference_counts,
      bleu.statistics(counts, reference_counts),
      rouge.rouge_l(words, references),
    )

  def reduce(self, rows: Sequence[Record]) -> dict[str, float]:
    """Returns the scores of a corpus, not empty; records may repeat."""
    corpus = [r.prediction for r in rows], [r.references for r in rows]
    bleus = enumerate(bleu.bleu(r.bleu for r in rows), start=1)
    return {
      "cider": _mean(cider.ciders(*corpus)),
      "cider_unclipped": _mean(cider.ciders(*corpus, clipped=False)),
      **{f"bleu-{n}": value for n, value in bleus},
      "rouge": _mean([r.rouge for r in rows]),
      "num": float(len(rows)),
    }


def _mean(values):
  return math.fsum(values) / len(values)
