"""Few-shot classification: ridge regression on the embeddings of images.

Axes: N examples to learn from, M others, E features, C classes.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int

from paligemma import messages
from paligemma.data import preprocess, sources, text_ops
from paligemma.data.siglip_tokenizer import SiglipTokenizer
from paligemma.evals import embedding
from paligemma.evals.evaluator import Progress, Recorded
from paligemma.evals.predictions import Record
from paligemma.evals.zero_shot import read_class

SHOTS = (1, 5, 10, 25)
REGULARIZERS = tuple(2.0**i for i in range(-10, 20))
HELD_OUT = 5  # one of so many chooses the regularizer
_BIAS = 100.0  # a constant feature, so large that it is hardly regularized


def _score(shots):
  return f"{shots}_shot_accuracy"


@dataclasses.dataclass(frozen=True)
class FewShot(Recorded):
  """Accuracy of a linear classifier that saw 1, 5, 10 or 25 of each class.

  Of a class that has fewer it sees those. A fifth of the examples to learn
  from is held out to choose the regularizer; the others are drawn without
  replacement. The source is looked at once, at the end, and the text tower
  never.

  Attributes:
    preprocess: of the task contrastive.
    tokenizer: canonicalizes the names of classes.
    train: source and preprocess of the examples to learn from.
    num_seeds: draws of examples, over which the accuracy is averaged.
    answer_key: field with the class, a text or a number, after the ops.
    Others: as of Evaluator.
  """

  tokenizer: SiglipTokenizer
  _: dataclasses.KW_ONLY
  train: tuple[sources.Source, preprocess.Preprocess]
  num_seeds: int = 3
  answer_key: str = "suffix"

  higher_is_better = dict.fromkeys(map(_score, SHOTS), True)

  def reader(self) -> preprocess.Op:
    """Returns the op that reads the class of an example, also a number."""
    return functools.partial(
      _read_class, key=self.answer_key, tok=self.tokenizer
    )

  def predict(
    self,
    model: nn.Module,
    params: Mapping[str, Any],
    mesh: Mesh,
    *,
    progress: Progress | None = None,
  ) -> list[Record]:
    """Returns a record of every example, see predictions.py.

    Its "5_shot_accuracy" is the share of the draws that are right, its
    prediction what most draws of 25 examples say, and its score the logarithm
    of their share.

    Raises:
      ValueError: as embedding.embed_images; there is one class alone to learn,
        or no class has two examples.
    """
    key, read = self.answer_key, self.reader()
    source, prepare = self.train
    learned = dataclasses.replace(
      self, source=source, preprocess=prepare, limit=None
    )
    progress = progress or (lambda done, total: None)
    total, found = len(learned) + len(self), []
    for part, before in ((learned, 0), (self, len(learned))):
      images = embedding.embed_images(
        part,
        model,
        params,
        mesh,
        read=read,
        answer_key=key,
        progress=lambda done, _, before=before: progress(before + done, total),
      )
      truths = [example[key] for example in images.examples]
      found.append((images.z, truths))
    (x, truths), (x_test, truths_test) = found
    names = sorted(set(truths))
    if len(names) < 2:
      raise ValueError(
        f'evaluator "{self.name}": one class alone to learn, '
        f'"{messages.shown(names[0])}", expected 2 or more'
      )
    index = {name: i for i, name in enumerate(names)}
    y = np.array([index[name] for name in truths])
    y_test = np.array([index.get(name, -1) for name in truths_test])
    if np.bincount(y).max() < 2:
      raise ValueError(
        f'evaluator "{self.name}": {len(y)} classes of one example each, '
        "expected 2 of some class: one to learn from, one to choose the "
        "regularizer"
      )
    said = {
      _score(shots): np.array(
        [
          classify(x, y, x_test, shots=shots, seed=seed)
          for seed in range(self.num_seeds)
        ]
      )
      for shots in SHOTS
    }

    def answer(i, truth):
      votes = np.bincount(said[_score(SHOTS[-1])][:, i])
      best = votes.argmax()
      return {
        "prediction": names[best],
        "score": math.log(votes[best] / self.num_seeds),
        "correct": bool(best == truth),
        **{
          name: float(np.mean(of[:, i] == truth)) for name, of in said.items()
        },
      }

    return embedding.records(
      images, key, itertools.starmap(answer, enumerate(y_test))
    )

  @staticmethod
  def reduce(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Returns the means of any selection of rows, and num_examples."""
    scores = {
      name: float(np.mean([row[name] for row in rows]))
      for name in map(_score, SHOTS)
    }
    return {**scores, "num_examples": float(len(rows))}


def _read_class(example, rng, *, key, tok):
  example = text_ops.Text(key)(example, rng)
  return read_class(example, rng, key=key, names=None, known=None, tok=tok)


def classify(
  x: Float[np.ndarray, "N E"],
  y: Int[np.ndarray, " N"],
  x_test: Float[np.ndarray, "M E"],
  *,
  shots: int,
  seed: int,
) -> Int[np.ndarray, " M"]:
  """Returns the classes of examples, learned from a few of each class.

  Args:
    x, y: embeddings and classes 0 to C-1, each of which is there; a fifth of
      those of a class, rounded up, but not all, chooses the regularizer, of
      equally good ones the middle one; `shots` of the others are learned from.
    x_test: embeddings of the others.
    shots: examples of each class.
    seed: of the draw.
  """
  rng = np.random.default_rng(seed)
  learned, held_out = [], []
  for label in range(y.max() + 1):
    own = rng.permutation(np.flatnonzero(y == label))
    held = min(math.ceil(len(own) / HELD_OUT), len(own) - 1)
    held_out += own[:held].tolist()
    learned += own[held:][:shots].tolist()
  logits = ridge(x[learned], y[learned])
  accuracy = [
    np.mean(logits(x[held_out], r).argmax(1) == y[held_out])
    for r in REGULARIZERS
  ]
  best = np.flatnonzero(accuracy == np.max(accuracy))
  best = REGULARIZERS[best[len(best) // 2]]
  return logits(x_test, best).argmax(1)


def ridge(
  x: Float[np.ndarray, "N E"], y: Int[np.ndarray, " N"]
) -> Callable[[Float[np.ndarray, "M E"], float], Float[np.ndarray, "M C"]]:
  """Fits a linear classifier; returns a function of others and a regularizer.

  Features are scaled to mean 0 and deviation 1, and a constant one is added;
  targets are 1 for the class and -1 for the others. The weights minimize the
  squared error plus the regularizer times their squared norm.

  Source: big_vision, evaluators/fewshot_lsr.py; in float64, and by a singular
  value decomposition.
  """
  mean, std = x.mean(axis=0, dtype=np.float64), x.std(axis=0, dtype=np.float64)

  def features(x):
    x = (x - mean) / (std + 1e-5)
    return np.pad(x, [(0, 0), (0, 1)], constant_values=_BIAS)

  u, s, v = np.linalg.svd(features(x), full_matrices=False)
  targets = u.T @ (2.0 * np.eye(y.max() + 1)[y] - 1)

  def logits(x, regularizer):
    scale = s / (s**2 + regularizer)
    return features(x) @ (v.T @ (scale[:, None] * targets))

  return logits
