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
  """Statistics of one caption, from which the scores of a corpus follow.

  Attributes:
    prediction: n-grams of the caption.
    references: n-grams of each reference.
    bleu: counts for BLEU.
    rouge: its ROUGE-L.
  """

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
    answers = answer_fields.text_or_texts(example, answer_key, "caption")
    answers = [answers] if isinstance(answers, str) else answers
    ours = ptb_tokenizer.tokenize(prediction)
    theirs = [ptb_tokenizer.tokenize(answer) for answer in answers]
    counts = ngrams.count(ours)
    reference_counts = tuple(map(ngrams.count, theirs))
    return Record(
      prediction=counts,
      references=reference_counts,
      bleu=bleu.statistics(counts, reference_counts),
      rouge=rouge.rouge_l(ours, theirs),
    )

  def reduce(self, rows: Sequence[Record]) -> dict[str, float]:
    """Returns the scores of a corpus, not empty; records may repeat."""
    corpus = [r.prediction for r in rows], [r.references for r in rows]
    scores = {
      "cider": _mean(cider.ciders(*corpus)),
      "cider_unclipped": _mean(cider.ciders(*corpus, clipped=False)),
    }
    for n, value in enumerate(bleu.bleu(r.bleu for r in rows), start=1):
      scores[f"bleu-{n}"] = value
    scores["rouge"] = _mean([r.rouge for r in rows])
    return scores | {"num": float(len(rows))}


def _mean(values):
  return math.fsum(values) / len(values)
