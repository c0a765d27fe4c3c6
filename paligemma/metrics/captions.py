"""Captions: CIDEr, BLEU and ROUGE-L as pycocoevalcap computes them."""

import dataclasses
import functools
import math
import operator
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from paligemma.metrics import answer_fields, ptb_tokenizer
from paligemma.metrics.metric import Example, Metric

LONGEST = 4  # n-grams have 1 to 4 words
BETA = 1.2  # of ROUGE-L: weight of recall relative to precision
SIGMA = 6.0  # of CIDEr-D: of the penalty on a difference in length, in words

# Of pycocoevalcap: they keep the 0 / 0 and 0 / n of BLEU near 0.
_SMALL = 1e-9
_TINY = 1e-15

NGrams = Counter[tuple[str, ...]]
Weighted = tuple[list[dict[tuple[str, ...], float]], np.ndarray, int]


@dataclasses.dataclass(frozen=True)
class BleuCounts:
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


@dataclasses.dataclass(frozen=True)
class Record:
  """Statistics of one caption, from which the scores of a corpus follow."""

  prediction: NGrams
  references: tuple[NGrams, ...]
  bleu: BleuCounts
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

  higher_is_better = dict.fromkeys(
    ("cider", "cider_unclipped", *(f"bleu-{n}" for n in range(1, 5)), "rouge"),
    True,
  )

  def score(self, prediction: str, example: Example, answer_key: str) -> Record:
    answers = answer_fields.accepted(example, answer_key, "caption")
    words = ptb_tokenizer.tokenize(prediction)
    references = [ptb_tokenizer.tokenize(answer) for answer in answers]
    ngrams, *of_references = map(count_ngrams, (words, *references))
    return Record(
      ngrams,
      tuple(of_references),
      bleu_counts(ngrams, of_references),
      rouge_l(words, references),
    )

  def reduce(self, rows: Sequence[Record]) -> dict[str, float]:
    """Returns the scores of a corpus, not empty; records may repeat."""
    corpus = [r.prediction for r in rows], [r.references for r in rows]
    bleus = enumerate(bleu(r.bleu for r in rows), start=1)
    return {
      "cider": statistics.fmean(ciders(*corpus)),
      "cider_unclipped": statistics.fmean(ciders(*corpus, clipped=False)),
      **{f"bleu-{n}": value for n, value in bleus},
      "rouge": statistics.fmean([r.rouge for r in rows]),
      "num": float(len(rows)),
    }


def count_ngrams(text: str) -> NGrams:
  """Counts the n-grams of 1 to 4 words of a text, the shorter ones first."""
  words = text.split()
  return Counter(
    tuple(words[i : i + n])
    for n in range(1, LONGEST + 1)
    for i in range(len(words) - n + 1)
  )


def bleu_counts(prediction: NGrams, references: Sequence[NGrams]) -> BleuCounts:
  """Compares the n-grams of a caption with those of its references."""
  length, *lengths = map(_num_words, (prediction, *references))
  most = functools.reduce(operator.or_, references)
  found = [0] * LONGEST
  for ngram, times in prediction.items():
    found[len(ngram) - 1] += min(times, most[ngram])
  nearest = min(lengths, key=lambda n: (abs(n - length), n))
  total = tuple(max(0, length - n) for n in range(LONGEST))
  return BleuCounts(length, nearest, tuple(found), total)


def bleu(captions: Iterable[BleuCounts]) -> list[float]:
  """Returns BLEU-1, BLEU-2, BLEU-3 and BLEU-4 of a corpus, each in [0, 1].

  Counts are summed over the corpus and then divided; a mean over captions is
  not BLEU.

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
  scores = product ** (1 / np.arange(1, LONGEST + 1))
  ratio = (length + _TINY) / (reference_length + _SMALL)
  penalty = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
  return (scores * penalty).tolist()


def ciders(
  predictions: Sequence[NGrams],
  references: Sequence[Sequence[NGrams]],
  *,
  clipped: bool = True,
) -> list[float]:
  """Returns the CIDEr of each caption; their mean is that of the corpus.

  An n-gram weighs more the fewer images of the corpus have it in their
  references. So a score belongs to a corpus: the mean of the scores of two
  halves is not the score of the whole.

  Args:
    predictions: n-grams of one caption per image.
    references: per image, the n-grams of its references, at least one.
    clipped: CIDEr-D, which counts a repeated n-gram at most as often as the
      reference has it and penalizes a difference in length. It is
      pycocoevalcap's CIDEr and that of all published scores. False: the paper's
      equations 2 and 3, without either.

  Returns:
    Scores in [0, 10]; published as 100 times the mean, 120 for 1.2. With a
    single image all weights are 0, and so is the score.

  Source: Vedantam et al. 2015, "CIDEr: Consensus-based Image Description
  Evaluation"; pycocoevalcap/cider/cider_scorer.py (clipped) and pyciderevalcap
  (not clipped), neither with the paper's stemming.
  """
  images_with = Counter(
    ngram for images in references for ngram in set().union(*images)
  )
  log_images = math.log(len(references))
  weights = {n: log_images - math.log(n) for n in set(images_with.values())}
  ngram_weights = {ngram: weights[n] for ngram, n in images_with.items()}

  def weighted(counts) -> Weighted:
    vectors = [{} for _ in range(LONGEST)]
    for ngram, times in counts.items():
      weight = ngram_weights.get(ngram, log_images)
      vectors[len(ngram) - 1][ngram] = times * weight
    squares = [math.fsum(w * w for w in v.values()) for v in vectors]
    return vectors, np.sqrt(squares), _num_words(counts)

  scores = []
  for prediction, several in zip(predictions, references, strict=True):
    caption = weighted(prediction)
    similar = [_similarity(caption, weighted(r), clipped) for r in several]
    scores.append(10 * math.fsum(similar) / len(similar))
  return scores


def _similarity(caption: Weighted, reference: Weighted, clipped: bool) -> float:
  """Returns the mean over n of the cosine of two captions' n-grams."""
  vectors, norms, length = caption
  reference_vectors, reference_norms, reference_length = reference
  products = np.zeros(LONGEST)
  for n, weights in enumerate(reference_vectors):
    for ngram, x in vectors[n].items():
      y = weights.get(ngram, 0.0)
      products[n] += (min(x, y) if clipped else x) * y
  norms = norms * reference_norms
  cosine = products / np.where(norms > 0, norms, 1)
  difference = length - reference_length if clipped else 0
  penalty = math.exp(-(difference**2) / (2 * SIGMA**2))
  return float(cosine.mean()) * penalty


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
    reference_words = reference.split(" ")
    common = common_subsequence(words, reference_words)
    precision = max(precision, common / len(words))
    recall = max(recall, common / len(reference_words))
  if not precision:
    return 0.0
  return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)


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


def _num_words(ngrams):
  return sum(times for ngram, times in ngrams.items() if len(ngram) == 1)
