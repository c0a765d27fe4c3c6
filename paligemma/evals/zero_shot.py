"""Zero-shot classification: which class is an image nearest to, as a text?

Axes: N images, C classes, T templates, E features of an embedding.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float32

from paligemma import messages, registry
from paligemma.data import class_texts, example_fields, preprocess
from paligemma.data.example_fields import Example
from paligemma.data.siglip_tokenizer import SiglipTokenizer
from paligemma.evals import embedding
from paligemma.evals.evaluator import Progress, Recorded
from paligemma.evals.predictions import Record


@dataclasses.dataclass(frozen=True)
class ZeroShot(Recorded):
  """Accuracy of the class whose texts are nearest to the image.

  Attributes:
    preprocess: of the task contrastive.
    tokenizer: of the text tower.
    class_names: the classes; an example names one of them, or has its index.
      Default: all that examples name, in alphabetical order.
    templates: as of class_texts.make_texts.
    answer_key: field with the class, after the ops.
    Others: as of Evaluator.
  """

  tokenizer: SiglipTokenizer
  _: dataclasses.KW_ONLY
  class_names: Sequence[str] | None = None
  templates: str | Sequence[str] = "short"
  answer_key: str = "suffix"

  higher_is_better = dict.fromkeys(
    ("accuracy", "top5_accuracy", "mean_per_class_accuracy"), True
  )

  def reader(self) -> preprocess.Op:
    """Returns the op that reads the class of an example, see `read_class`.

    Raises:
      ValueError: as class_texts.make_texts.
    """
    names, tok = self.class_names, self.tokenizer
    class_texts.make_texts(
      tok, ["a"] if names is None else names, self.templates
    )
    known = None if names is None else class_texts.read_names(tok, names)
    return functools.partial(
      read_class, key=self.answer_key, names=names, known=known, tok=tok
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

    Its prediction is the name of the nearest class, its score the logarithm of
    the probability of that (see `log_probabilities`), and "rank" the number of
    classes that are nearer than the true one, its "true_class".

    Raises:
      ValueError: as embedding.embed_images and class_texts.make_texts; the
        class of an example is not among class_names.
    """
    names, key, tok = self.class_names, self.answer_key, self.tokenizer
    images = embedding.embed_images(
      self,
      model,
      params,
      mesh,
      read=self.reader(),
      answer_key=key,
      progress=progress,
    )
    truths = [example[key] for example in images.examples]
    if names is None:
      names = sorted(set(truths))
    if len(names) < 2:
      raise ValueError(
        f'evaluator "{self.name}": one class alone, '
        f'"{messages.shown(names[0])}", expected 2 or more'
      )
    classes = embed_classes(
      model, params, tok, names, self.templates, mesh=mesh
    )
    index = {name: i for i, name in enumerate(names)}
    found = embedding.ranks(images.z, classes, [[index[x]] for x in truths])
    scores = log_probabilities(params, images.z @ classes.T)
    return embedding.records(
      images,
      key,
      (
        {
          "prediction": names[best],
          "score": float(score[best]),
          "correct": not rank,
          "rank": int(rank),
          "true_class": truth,
        }
        for truth, rank, best, score in zip(
          truths, found.rank, found.nearest, scores, strict=True
        )
      ),
    )

  @staticmethod
  def reduce(rows: Sequence[Record]) -> dict[str, float]:
    """Returns the scores of any selection of records; they may repeat.

    accuracy: share of the images whose true class is the nearest.
    top5_accuracy: share of those whose true class is among the five nearest.
    mean_per_class_accuracy: mean over the classes of their accuracy.
    num_examples: number of images.
    """
    rank = np.array([row["rank"] for row in rows])
    truth = np.array([row["true_class"] for row in rows])
    _, label = np.unique(truth, return_inverse=True)
    by_class = np.bincount(label, rank == 0) / np.bincount(label)
    return {
      "accuracy": float(np.mean(rank == 0)),
      "top5_accuracy": float(np.mean(rank < 5)),
      "mean_per_class_accuracy": float(np.mean(by_class)),
      "num_examples": float(len(rows)),
    }


def embed_classes(
  model: nn.Module,
  params: Mapping[str, Any],
  tok: SiglipTokenizer,
  class_names: Sequence[str],
  templates: str | Sequence[str],
  *,
  mesh: Mesh | None = None,
) -> Float32[np.ndarray, "C E"]:
  """Returns an embedding of every class, see `average`.

  Raises:
    ValueError: as class_texts.make_texts; the text tower cuts the texts of two
      classes where they begin to differ.
  """
  texts = class_texts.make_texts(tok, class_names, templates)
  _check_cut(tok, class_names, texts, model.txt.text_len)
  z = embedding.embed_texts(model, params, tok, texts, mesh=mesh)
  return average(z.reshape(len(class_names), -1, z.shape[1]))


def _check_cut(tok, class_names, texts, length):
  """Raises if two classes are one to a text tower of so many tokens."""
  tokens, is_cut = tok.encode(texts, length)
  if not is_cut.any():
    return
  first = {}
  for name, row in zip(
    class_names, tokens.reshape(len(class_names), -1), strict=True
  ):
    if (other := first.setdefault(row.tobytes(), name)) != name:
      raise ValueError(
        f'the classes "{messages.shown(other)}" and "{messages.shown(name)}" '
        f"are equal in the {length} tokens that the text tower reads of each "
        "text; give shorter templates or names"
      )


def average(
  z: Float32[np.ndarray, "C T E"],
) -> Float32[np.ndarray, "C E"]:
  """Returns the mean over the templates, normalized again.

  Source: big_vision, evaluators/proj/image_text/discriminative_classifier.py.
  """
  z = z.mean(axis=1)
  return z / (np.linalg.norm(z, axis=1, keepdims=True) + 1e-8)


def log_probabilities(
  params: Mapping[str, Any], near: Float32[np.ndarray, "N C"]
) -> Float32[np.ndarray, "N C"]:
  """Returns the logarithm of the probability of each class.

  With a bias each is the sigmoid of its logit, so classes do not exclude each
  other; without, it is the softmax over the classes.

  Args:
    params: of the model, of which the temperature and the bias are read.
    near: cosine similarities.
  """
  logits = near * np.exp(np.asarray(params["t"], np.float32))
  if "b" in params:
    logits += np.asarray(params["b"], np.float32)
    return np.asarray(jax.nn.log_sigmoid(logits))
  return np.asarray(jax.nn.log_softmax(logits, axis=1))


def read_class(
  example: Example,
  rng: np.random.Generator,
  *,
  key: str,
  names: Sequence[str] | None,
  known: Mapping[str, int] | None,
  tok: SiglipTokenizer,
) -> Example:
  """An op that writes the class of an example in the one way it is spelled.

  Args:
    key: field with the class, or its index in `names`.
    names, known: of class_texts.read_names; None: any.
    tok: as of class_texts.read_name.
  """
  del rng
  value = example_fields.read(example, key)
  if names is not None and isinstance(value, int | np.integer):
    if 0 <= value < len(names):
      return {**example, key: names[value]}
    raise example_fields.wrong(example, key, f"0 to {len(names) - 1}")
  if names is None and isinstance(value, int | np.integer):
    raise example_fields.wrong(
      example, key, "the name of a class (for its index give class_names)"
    )
  name = class_texts.read_name(tok, example_fields.text(example, key))
  if not name:
    raise example_fields.wrong(example, key, "the name of a class")
  if names is None:
    return {**example, key: name}
  if name not in known:
    raise example_fields.error(
      example,
      f'"{messages.shown(value)}" is none of the {len(names)} class_names.'
      + registry.did_you_mean(name, known),
    )
  return {**example, key: names[known[name]]}
