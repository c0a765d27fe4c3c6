"""CIDEr: TF-IDF-weighted similarity of the n-grams of captions and references.

An n-gram weighs more the fewer images of the corpus have it in their
references. So a score belongs to a corpus: the mean of the scores of two halves
is not the score of the whole.
"""

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from paligemma.metrics import ngrams

SIGMA = 6.0  # of the penalty on a difference in length, in words

Weighted = tuple[list[dict[tuple[str, ...], float]], np.ndarray, int]


def ciders(
  predictions: Sequence[ngrams.Counts],
  references: Sequence[Sequence[ngrams.Counts]],
  *,
  clipped: bool = True,
) -> list[float]:
  """Returns the score of each caption; their mean is the score of the corpus.

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
    vectors = [{} for _ in range(ngrams.LONGEST)]
    for ngram, times in counts.items():
      weight = ngram_weights.get(ngram, log_images)
      vectors[len(ngram) - 1][ngram] = times * weight
    squares = [math.fsum(w * w for w in v.values()) for v in vectors]
    return vectors, np.sqrt(squares), ngrams.num_words(counts)

  scores = []
  for prediction, theirs in zip(predictions, references, strict=True):
    ours = weighted(prediction)
    similar = [_similarity(ours, weighted(r), clipped) for r in theirs]
    scores.append(10 * math.fsum(similar) / len(similar))
  return scores


def _similarity(ours: Weighted, theirs: Weighted, clipped: bool) -> float:
  """Returns the mean over n of the cosine of two captions' n-grams."""
  products = np.zeros(ngrams.LONGEST)
  for n, (vector, reference) in enumerate(zip(ours[0], theirs[0], strict=True)):
    for ngram, mine in vector.items():
      weight = reference.get(ngram, 0.0)
      products[n] += (min(mine, weight) if clipped else mine) * weight
  norms = ours[1] * theirs[1]
  cosine = products / np.where(norms > 0, norms, 1)
  difference = ours[2] - theirs[2] if clipped else 0
  penalty = math.exp(-(difference**2) / (2 * SIGMA**2))
  return float(cosine.mean()) * penalty
