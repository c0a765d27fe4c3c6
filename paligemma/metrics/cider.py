"""CIDEr: how much a caption agrees with the references, rare words first.

A run of words weighs the more, the fewer images of the corpus have it in their
references. So a score belongs to a corpus: over half of the images it is
another one, and the mean over parts is not that of the whole.
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
  """Scores of the captions of a corpus, whose mean is the corpus's score.

  Args:
    predictions: the counts of one caption per image (ngrams.count).
    references: per image, the counts of its references, one at least.
    clipped: True: CIDEr-D, which counts a repeated run as often as the
      reference has it and penalizes another length. It is what pycocoevalcap
      calls CIDEr, and all published scores are. False: CIDEr of the paper's
      equations 2 and 3, without either.

  Returns:
    One score per image, in [0, 10]; published as 100 times the mean, 1.2 being
    120. With a single image all weights are 0, and so is the score.

  Source: Vedantam et al. 2015, "CIDEr: Consensus-based Image Description
  Evaluation"; pycocoevalcap/cider/cider_scorer.py (clipped) and pyciderevalcap
  (not clipped), neither with the paper's stemming.
  """
  images_with = Counter(
    run for images in references for run in set().union(*images)
  )
  log_images = math.log(len(references))
  weights = {n: log_images - math.log(n) for n in set(images_with.values())}
  run_weights = {run: weights[n] for run, n in images_with.items()}

  def weighted(counts) -> Weighted:
    vectors = [{} for _ in range(ngrams.LONGEST)]
    for run, times in counts.items():
      vectors[len(run) - 1][run] = times * run_weights.get(run, log_images)
    squares = [math.fsum(w * w for w in v.values()) for v in vectors]
    length = sum(times for run, times in counts.items() if len(run) == 1)
    return vectors, np.sqrt(squares), length

  scores = []
  for prediction, theirs in zip(predictions, references, strict=True):
    ours = weighted(prediction)
    similar = [_similarity(ours, weighted(r), clipped) for r in theirs]
    scores.append(10 * math.fsum(similar) / len(similar))
  return scores


def _similarity(ours: Weighted, theirs: Weighted, clipped: bool) -> float:
  """Mean over n of the cosine of two captions' runs of n words."""
  products = np.zeros(ngrams.LONGEST)
  for n, (vector, reference) in enumerate(zip(ours[0], theirs[0], strict=True)):
    for run, mine in vector.items():
      weight = reference.get(run, 0.0)
      products[n] += (min(mine, weight) if clipped else mine) * weight
  norms = ours[1] * theirs[1]
  cosine = products / np.where(norms > 0, norms, 1)
  difference = ours[2] - theirs[2] if clipped else 0
  penalty = math.exp(-(difference**2) / (2 * SIGMA**2))
  return float(cosine.mean()) * penalty
