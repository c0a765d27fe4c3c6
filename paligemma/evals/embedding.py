"""Embeddings of many images and texts, and how near they are to each other.

Axes: N examples, Q queries, G of what is searched, E features of an embedding.
"""

import contextlib
import dataclasses
import functools
import hashlib
import logging
import numbers
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float32, Int

from paligemma import messages
from paligemma.data import preprocess
from paligemma.data.example_fields import Example
from paligemma.data.siglip_tokenizer import SiglipTokenizer
from paligemma.evals import gather, predictions
from paligemma.evals.evaluator import Evaluator, Progress, WithExample
from paligemma.evals.predictions import Record
from paligemma.training import sharding

_BLOCK = 2**24  # most similarities held at a time
# An image in a batch: one array, or those of a NaFlex in this order.
_IMAGE = ("image", "patches", "type", "yidx", "xidx")

_log = logging.getLogger(__name__)


class Images(NamedTuple):
  """The images of a source.

  Attributes:
    z: float32[N, E], the embeddings of the usable examples.
    examples: those after the ops, without the image.
    digests: equal for images that are equal to the model.
    errors: index -> what is wrong with an unusable example.
  """

  z: np.ndarray
  examples: list[Example]
  digests: list[str]
  errors: dict[int, str]


def embed_images(
  evaluator: Evaluator,
  model: nn.Module,
  params: Mapping[str, Any],
  mesh: Mesh,
  *,
  read: preprocess.Op,
  answer_key: str,
  progress: Progress | None = None,
) -> Images:
  """Embeds the images of an evaluator's source, on all processes and devices.

  Args:
    evaluator: of the source.
    model, params, mesh: as of Generate.predict.
    read: runs after the ops; an example for which it raises is unusable.
    answer_key: field with the texts of the example.
    progress: see evaluator.Progress.

  Raises:
    ValueError: an example cannot be used, or with on_bad="skip" none of them.
  """
  progress = progress or (lambda done, total: None)
  progress(0, len(evaluator))
  prepared = dataclasses.replace(
    evaluator.preprocess, ops=(*evaluator.preprocess.ops, read)
  )
  found = Images(np.zeros((0, 0), np.float32), [], [], {})
  embedded, done = [], 0
  for batch in evaluator.batches(WithExample(prepared, answer_key)):
    arrays = {key: batch[key] for key in _IMAGE if key in batch}
    digests = [
      hashlib.blake2b(b"".join(row.tobytes() for row in rows)).hexdigest()
      for rows in zip(*arrays.values(), strict=True)
    ]
    mine = batch["_example"].tolist(), batch["_error"].tolist(), digests
    image = tuple(sharding.put_batch(arrays, mesh).values())
    image = image if image[1:] else image[0]
    with jax.set_mesh(mesh):
      z = sharding.fetch(_embed(model, params, image, None))
    columns = (zip(*part, strict=True) for part in gather.gather(mine))
    rows = [row for part in columns for row in part][: len(evaluator) - done]
    for index, (example, error, digest) in enumerate(rows, start=done):
      if error:
        found.errors[index] = error
        continue
      embedded.append(z[index - done])
      found.examples.append(example)
      found.digests.append(digest)
    done += len(rows)
    progress(done, len(evaluator))
  if not embedded:
    raise ValueError(
      f'evaluator "{evaluator.name}": none of {len(evaluator)} examples can be '
      f"used, one of them: {next(iter(found.errors.values()), '')}"
    )
  return found._replace(z=np.stack(embedded))


def records(
  images: Images, answer_key: str, answers: Iterable[Record]
) -> list[Record]:
  """Returns a record of every example, see predictions.py.

  Args:
    images: of all examples.
    answer_key: field of an example with its answer or answers.
    answers: of each usable example "prediction" and "score", whether it is
      "correct", and what else its record is to hold.
  """
  found, usable = [], zip(images.examples, answers, strict=True)
  for index in range(len(images.examples) + len(images.errors)):
    if index in images.errors:
      found.append(predictions.bad_record(index, images.errors[index]))
      continue
    example, answer = next(usable)
    said = {key: answer.pop(key) for key in ("prediction", "score")}
    line = predictions.record(index, example, answer_key, **said)
    found.append(line | answer)
  return found


def embed_texts(
  model: nn.Module,
  params: Mapping[str, Any],
  tok: SiglipTokenizer,
  texts: Sequence[str],
  *,
  batch_size: int = 256,
  mesh: Mesh | None = None,
) -> Float32[np.ndarray, "N E"]:
  """Embeds canonical texts; those that are cut are named in the log.

  Args:
    model, params, tok, texts: as of api.embed_texts.
    batch_size: texts at a time.
    mesh: as of `in_batches`.

  Raises:
    ValueError: a token is beyond the table of embeddings.
  """
  length, rows = model.txt.text_len, model.txt.vocab_size
  tokens, is_cut = tok.encode(texts, length)
  if is_cut.any():
    _log.warning(
      "%d of %d texts are longer than the %d tokens of the text tower and cut, "
      'the first is "%s"',
      is_cut.sum(),
      len(texts),
      length,
      messages.shown(texts[is_cut.argmax()]),
    )
  if (found := np.argwhere(tokens >= rows)).size:
    row, column = found[0]
    raise ValueError(
      f'text {row}, "{messages.shown(texts[row])}", has token '
      f"{tokens[row, column]}, beyond the {rows:,} rows of the text tower"
    )
  return in_batches(
    model,
    params,
    lambda i: (None, tokens[i]),
    count=len(texts),
    batch_size=batch_size,
    mesh=mesh,
  )


def in_batches(
  model: nn.Module,
  params: Mapping[str, Any],
  example: Callable[[int], tuple[Any, Any]],
  *,
  count: int,
  batch_size: int,
  mesh: Mesh | None = None,
) -> Float32[np.ndarray, "N E"]:
  """Embeds examples in batches of one shape, the same ones in every process.

  Args:
    model, params: of a SigLIP.
    example: index -> (image, text), one of which is None.
    count: of the examples.
    batch_size: of them at a time.
    mesh: over which batches are split. Default: that of the parameters.

  Raises:
    ValueError: batch_size is below 1.
  """
  if not isinstance(batch_size, numbers.Integral) or batch_size < 1:
    raise ValueError(f"batch_size is {batch_size}, expected 1 or more")
  if mesh is None:
    found = getattr(jax.tree.leaves(params)[0], "sharding", None)
    mesh = getattr(found, "mesh", None)
  size = min(int(batch_size), count)
  if mesh is not None:  # as many examples on every device
    devices = mesh.shape["data"]
    size = -(-size // devices) * devices

  def put(*examples):
    batch = np.stack(examples + examples[:1] * (size - len(examples)))
    if mesh is None:
      return batch
    return jax.make_array_from_callback(
      batch.shape, sharding.batch_sharding(mesh), batch.__getitem__
    )

  embedded = [np.zeros((0, model.txt.num_classes or model.txt.width), "f4")]
  for start in range(0, count, size or 1):
    chosen = [example(i) for i in range(start, min(start + size, count))]
    batch = jax.tree.map(put, *chosen)
    with jax.set_mesh(mesh) if mesh else contextlib.nullcontext():
      z = _embed(model, params, *batch)
    embedded.append(sharding.fetch(z)[: len(chosen)])
  return np.concatenate(embedded)


@functools.partial(jax.jit, static_argnames="model")
def _embed(model, params, image, text):
  zimg, ztxt, _ = model.apply({"params": params}, image, text)
  return ztxt if image is None else zimg


class Ranks(NamedTuple):
  """What is near to each query.

  Attributes:
    rank: how many are nearer than the first that belongs.
    nearest: index of what is the nearest.
    similarity: of the nearest, float32.
  """

  rank: Int[np.ndarray, " Q"]
  nearest: Int[np.ndarray, " Q"]
  similarity: Float32[np.ndarray, " Q"]


def ranks(
  queries: Float32[np.ndarray, "Q E"],
  searched: Float32[np.ndarray, "G E"],
  belong: Sequence[Sequence[int]],
) -> Ranks:
  """Ranks all that is searched by how near it is to each query.

  Of equally near ones the first comes first; what is not a number, last.

  Args:
    queries, searched: embeddings of L2 norm 1.
    belong: of each query the indices of those that belong to it, at least one.
  """
  found = []
  size = max(_BLOCK // len(searched), 1)
  for start in range(0, len(queries), size):
    near = queries[start : start + size] @ searched.T
    for row, own in zip(near, belong[start : start + size], strict=True):
      own = np.sort(own)
      best = own[row[own].argmax()]
      ahead = ~(row <= row[best])
      ahead[:best] |= row[:best] == row[best]
      nearest = np.nan_to_num(row, nan=-np.inf).argmax()
      found.append((ahead.sum(), nearest, row[nearest]))
  rank, nearest, similarity = zip(*found, strict=True)
  return Ranks(np.array(rank), np.array(nearest), np.array(similarity))
