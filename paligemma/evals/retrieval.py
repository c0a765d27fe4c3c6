"""Image-text retrieval: is what belongs together among the nearest?

Axes: N images, M texts, E features of an embedding.
"""

import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import flax.linen as nn
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float32

from paligemma.data import pairs, preprocess
from paligemma.data.siglip_tokenizer import SiglipTokenizer
from paligemma.evals import embedding
from paligemma.evals.evaluator import Progress, Recorded
from paligemma.evals.predictions import Record

WAYS = ("image_to_text", "text_to_image")
TOP = (1, 5, 10)


@dataclasses.dataclass(frozen=True)
class Retrieval(Recorded):
  """Recall at 1, 5 and 10, of texts for images and of images for texts.

  The texts of an image are its captions, see pairs.captions.
  Equal images, and equal texts, are one: what belongs to one of them belongs to
  all. The scores say how many are different.

  Attributes:
    preprocess: of the task contrastive.
    tokenizer: of the text tower.
    Others: as of Evaluator.
  """

  answer_key: ClassVar[str] = "captions"

  tokenizer: SiglipTokenizer

  higher_is_better = dict.fromkeys(
    (f"{way}_recall@{k}" for way in WAYS for k in TOP), True
  )

  def reader(self) -> preprocess.Op:
    """Returns the op that reads the captions of an example."""
    return _read

  def predict(
    self,
    model: nn.Module,
    params: Mapping[str, Any],
    mesh: Mesh,
    *,
    progress: Progress | None = None,
  ) -> list[Record]:
    """Returns a record of every example, see predictions.py.

    Its prediction is the nearest text, its score how near that is (cosine);
    "image_to_text", a list of how many texts are nearer to its image than the
    nearest that belongs; "text_to_image", the same for each of its texts; and
    numbers of the different "image_number" and "text_numbers".

    Raises:
      ValueError: as embedding.embed_images; an example has no caption; all
        images or all texts are equal.
    """
    images = embedding.embed_images(
      self,
      model,
      params,
      mesh,
      read=self.reader(),
      answer_key=self.answer_key,
      progress=progress,
    )
    of_image = [example["captions"] for example in images.examples]
    counts = [len(own) for own in of_image]
    owner = np.repeat(np.arange(len(counts)), counts)
    texts = map(self.tokenizer.canonicalize, itertools.chain(*of_image))
    # Numbers of different images and texts.
    _, first, image = np.unique(
      images.digests, return_index=True, return_inverse=True
    )
    texts, text = np.unique(np.array([*texts], object), return_inverse=True)
    if min(len(first), len(texts)) < 2:
      raise ValueError(
        f'evaluator "{self.name}": {len(first)} different images and '
        f"{len(texts)} different texts, expected 2 or more of both: of one "
        "alone each recall is 1"
      )
    to_text, to_image = rank_pairs(
      images.z[first],
      embedding.embed_texts(
        model, params, self.tokenizer, texts.tolist(), mesh=mesh
      ),
      set(zip(image[owner].tolist(), text.tolist(), strict=True)),
    )
    own = np.split(text, np.cumsum(counts)[:-1])
    return embedding.records(
      images,
      self.answer_key,
      (
        {
          "prediction": texts[to_text.nearest[i]],
          "score": float(to_text.similarity[i]),
          "correct": not to_text.rank[i],
          "image_number": i,
          "text_numbers": j.tolist(),
          "image_to_text": [int(to_text.rank[i])],
          "text_to_image": to_image.rank[j].tolist(),
        }
        for i, j in zip(image.tolist(), own, strict=True)
      ),
    )

  @staticmethod
  def reduce(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Returns the scores of any selection of rows; rows may repeat.

    image_to_text_recall@k: share of the images to which one of the k nearest
      texts belongs.
    text_to_image_recall@k: share of the texts to which one of the k nearest
      images belongs.
    num_images, num_texts: how many are different.
    num_examples: number of examples.

    Source: big_vision, evaluators/proj/image_text/image_text_retrieval.py,
    where a text belongs to one image alone.
    """
    scores = {}
    for way in WAYS:
      found = np.array([*itertools.chain(*(row[way] for row in rows))])
      scores |= {f"{way}_recall@{k}": float(np.mean(found < k)) for k in TOP}
    texts = itertools.chain(*(row["text_numbers"] for row in rows))
    return {
      **scores,
      "num_images": float(len({row["image_number"] for row in rows})),
      "num_texts": float(len(set(texts))),
      "num_examples": float(len(rows)),
    }


def rank_pairs(
  zimg: Float32[np.ndarray, "N E"],
  ztxt: Float32[np.ndarray, "M E"],
  together: Iterable[tuple[int, int]],
) -> tuple[embedding.Ranks, embedding.Ranks]:
  """Ranks all texts for each image, and all images for each text.

  Args:
    zimg, ztxt: embeddings of L2 norm 1.
    together: (image, text) that belong to each other; each image and each text
      is in at least one.
  """
  texts, images = [[] for _ in zimg], [[] for _ in ztxt]
  for image, text in together:
    texts[image].append(text)
    images[text].append(image)
  of_image = embedding.ranks(zimg, ztxt, texts)
  return of_image, embedding.ranks(ztxt, zimg, images)


def _read(example, rng):
  """An op: "captions" are all captions of an example."""
  del rng
  return {**example, "captions": pairs.captions(example)}
