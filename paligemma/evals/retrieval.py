"""Image-text retrieval: is what belongs together among the nearest?

Axes: N images, M texts, E features of an embedding.
"""

import dataclasses
import functools
import itertools
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float32, Int

from paligemma.data import example_fields
from paligemma.data.example_fields import Example
from paligemma.data.siglip_tokenizer import SiglipTokenizer
from paligemma.evals import embedding
from paligemma.evals.evaluator import PerExample, Progress

WAYS = ("image_to_text", "text_to_image")
TOP = (1, 5, 10)

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Retrieval(PerExample):
  """Recall at 1, 5 and 10, of texts for images and of images for texts.

  Equal images, and equal texts, are one: what belongs to one of them belongs to
  all. A line in the log says how many there are.

  Attributes:
    preprocess: of the task contrastive.
    tokenizer: of the text tower.
    answer_key: field with the text or texts of an image, after the ops.
    Others: as of Evaluator.
  """

  tokenizer: SiglipTokenizer
  _: dataclasses.KW_ONLY
  answer_key: str = "suffix"

  higher_is_better = dict.fromkeys(
    (f"{way}_recall@{k}" for way in WAYS for k in TOP), True
  )

  def rows(
    self,
    model: nn.Module,
    params: Mapping[str, Any],
    mesh: Mesh,
    *,
    progress: Progress | None = None,
  ) -> list[dict[str, list[int]]]:
    """Ranks the texts for every image, and the images for its texts.

    Returns:
      Per usable example "image_to_text", a list of how many texts are nearer to
      its image than the nearest that belongs; and "text_to_image", the same for
      each of its texts.

    Raises:
      ValueError: as embedding.embed_images; an example has no text.
    """
    images = embedding.embed_images(
      self,
      model,
      params,
      mesh,
      read=functools.partial(read_texts, key=self.answer_key),
      answer_key=self.answer_key,
      progress=progress,
    )
    of_image = [example[self.answer_key] for example in images.examples]
    counts = [len(own) for own in of_image]
    owner = np.repeat(np.arange(len(counts)), counts)
    texts = map(self.tokenizer.canonicalize, itertools.chain(*of_image))
    # Numbers of different images and texts.
    _, first, image = np.unique(
      images.digests, return_index=True, return_inverse=True
    )
    texts, text = np.unique(np.array([*texts], object), return_inverse=True)
    if (len(first), len(texts)) != (len(image), len(text)):
      _log.warning(
        'evaluator "%s": of %d images %d are different, of %d texts %d; what '
        "belongs to one of equal ones belongs to all",
        *(self.name, len(image), len(first), len(text), len(texts)),
      )
    to_text, to_image = rank_pairs(
      images.z[first],
      embedding.embed_texts(
        model, params, self.tokenizer, texts.tolist(), mesh=mesh
      ),
      set(zip(image[owner].tolist(), text.tolist(), strict=True)),
    )
    by_image = np.split(to_image[text], np.cumsum(counts)[:-1])
    return [
      {"image_to_text": [int(rank)], "text_to_image": own.tolist()}
      for rank, own in zip(to_text[image], by_image, strict=True)
    ]

  def reduce(
    self, rows: Sequence[Mapping[str, Sequence[int]]]
  ) -> dict[str, float]:
    """Returns the scores of any selection of rows; rows may repeat.

    image_to_text_recall@k: share of the images to which one of the k nearest
      texts belongs.
    text_to_image_recall@k: share of the texts to which one of the k nearest
      images belongs.
    num_texts: number of texts.
    num_examples: number of images.

    Source: big_vision, evaluators/proj/image_text/image_text_retrieval.py,
    where a text belongs to one image alone.
    """
    scores = {}
    for way in WAYS:
      found = np.concatenate([row[way] for row in rows])
      scores |= {f"{way}_recall@{k}": float(np.mean(found < k)) for k in TOP}
    num_texts = float(sum(len(row["text_to_image"]) for row in rows))
    return {**scores, "num_texts": num_texts, "num_examples": float(len(rows))}


def rank_pairs(
  zimg: Float32[np.ndarray, "N E"],
  ztxt: Float32[np.ndarray, "M E"],
  pairs: Iterable[tuple[int, int]],
) -> tuple[Int[np.ndarray, " N"], Int[np.ndarray, " M"]]:
  """Returns how many texts are nearer to each image than one of its own.

  And how many images are nearer to each text, in the same way.

  Args:
    zimg, ztxt: embeddings of L2 norm 1.
    pairs: (image, text) that belong together; each image and each text is in
      at least one.
  """
  texts, images = [[] for _ in zimg], [[] for _ in ztxt]
  for image, text in pairs:
    texts[image].append(text)
    images[text].append(image)
  of_image = embedding.ranks(zimg, ztxt, texts)
  return of_image, embedding.ranks(ztxt, zimg, images)


def read_texts(
  example: Example, rng: np.random.Generator, *, key: str
) -> Example:
  """An op that makes a list of the text or texts of an example."""
  del rng
  value = example_fields.read(example, key)
  texts = [value] if isinstance(value, str) else value
  if (
    not isinstance(texts, list)
    or not texts
    or not all(isinstance(x, str) for x in texts)
  ):
    raise example_fields.wrong(example, key, "a text, or a list of texts")
  return {**example, key: texts}
