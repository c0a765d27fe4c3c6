"""A tower of a checkpoint; a PaliGemma of two that never met."""

import math
import re

import numpy as np

from paligemma import parameters
from paligemma.checkpoints import infer, leaves, quantized_leaves
from paligemma.checkpoints.checkpoint import Checkpoint
from paligemma.variants import GEMMA_VOCAB_SIZE, VOCAB_SIZE

# What SigLIP has beside its image tower, and PaliGemma does not: the pooling
# head, the text tower, temperature and bias of the loss.
_LOSS_AND_TEXT = r"txt/.*|t|b"
_OF_SIGLIP_ALONE = rf"{parameters.POOLING}|{parameters.HEAD}|{_LOSS_AND_TEXT}"
_NEW_ROWS_STDDEV = 0.02  # big_vision's models/ppp/gemma.py


def alone(checkpoint: Checkpoint, tower: str) -> Checkpoint:
  """Takes one tower of a checkpoint, for a SigLIP whose other one is new.

  Args:
    checkpoint: SigLIP, or for "img" a PaliGemma or a bare Vision Transformer,
      of which the output layer is left out: it is of another space.
    tower: "img" or "txt".

  Raises:
    ValueError: There is no such tower.
  """
  found = _named(checkpoint, tower)
  is_siglip = any(re.fullmatch(_LOSS_AND_TEXT, name) for name in found)
  own = {
    name: leaf
    for name, leaf in found.items()
    if name.startswith(f"{tower}/")
    and (is_siglip or not re.fullmatch(parameters.HEAD, name))
  }
  return Checkpoint(
    path=checkpoint.path,
    format=checkpoint.format,
    leaves=own,
    ignored=(*checkpoint.ignored, *(n for n in found if n not in own)),
    metadata=checkpoint.metadata,
    **{tower: getattr(checkpoint, tower)},
  )


def combine(img: Checkpoint, llm: Checkpoint) -> Checkpoint:
  """Takes the image tower of one checkpoint and the decoder of another.

  The head between them, the projector, is that of `img` if that is of a
  PaliGemma and fits the decoder, else it is zero, as at the start of stage 1
  (arXiv:2407.07726, section 3.1). A decoder with Gemma's vocabulary, without
  <loc> and <seg>, gets embeddings for them, drawn from N(0, 0.02).

  Args:
    img: PaliGemma, SigLIP ("img/...", its text tower and pooling head are left
      out) or a bare Vision Transformer.
    llm: PaliGemma or Gemma.

  Returns:
    Checkpoint with `created` and `ignored` stating what was done.

  Raises:
    ValueError: One holds no image tower, the other no decoder.
  """
  image, ignored = _image_tower(img)
  decoder = {n: x for n, x in llm.leaves.items() if n.startswith("llm/")}
  if not decoder:
    raise ValueError(f'{llm.path}: holds no decoder, nothing under "llm/"')
  created = {}
  sizes = infer.sizes(decoder)["llm"]
  width, rows = sizes["width"], sizes["vocab_size"]
  heads = quantized_leaves.full_shapes(
    {n: x.shape for n, x in img.leaves.items()}
  )
  is_siglip = any(re.fullmatch(_LOSS_AND_TEXT, n) for n in img.leaves)
  if not is_siglip and heads.get(parameters.HEAD_KERNEL, ())[-1:] == (width,):
    of_head = [n for n in ignored if re.fullmatch(parameters.HEAD, n)]
    image |= {n: img.leaves[n] for n in of_head}
    ignored = [n for n in ignored if n not in of_head]
  else:
    features = infer.sizes(image)["img"]["width"]
    created[parameters.HEAD_KERNEL] = _zeros((features, width))
    created[parameters.HEAD_BIAS] = _zeros((width,))
  table = parameters.EMBEDDING
  names = list(created)
  if rows == GEMMA_VOCAB_SIZE:
    if table not in decoder:
      raise ValueError(
        f"{llm.path}: {table} is quantized and has {rows} rows, expected "
        f"{VOCAB_SIZE} or full precision; combine the towers, then quantize"
      )
    created[table] = leaves.Leaf.of(_with_new_rows(decoder.pop(table)))
    names.append(f"{table}[{rows}:]")
  return Checkpoint(
    path=f"{img.path} and {llm.path}",
    format=f"{img.format} and {llm.format}",
    leaves={**image, **decoder, **created},
    img=img.img,
    llm=llm.llm,
    ignored=(*img.ignored, *ignored, *llm.ignored),
    created=tuple(names),
  )


def _zeros(shape) -> leaves.Leaf:
  zeros = np.broadcast_to(np.float32(0), shape)
  return leaves.Leaf.of(
    leaves.Computed(shape, zeros.dtype, lambda index: zeros[index])
  )


def _normal(shape, stddev) -> leaves.Computed:
  """Random numbers; every reading gives the same ones."""

  def draw(index):
    rng = np.random.default_rng((0, math.prod(shape)))
    drawn = rng.standard_normal(shape, np.float32)
    return (drawn * np.float32(stddev))[index]

  return leaves.Computed(shape, np.dtype(np.float32), draw)


def _with_new_rows(table: leaves.Leaf) -> leaves.Computed:
  """A table with rows for <loc> and <seg> too, which are N(0, 0.02)."""
  length, width = table.shape
  new = _normal((VOCAB_SIZE - length, width), _NEW_ROWS_STDDEV)

  def read(index):
    if not isinstance(index, slice):
      return read(slice(None))[index]
    start, stop, _ = index.indices(VOCAB_SIZE)
    found = table.read(index=(slice(min(start, length), min(stop, length)),))
    if stop > length:
      drawn = new[max(start - length, 0) : stop - length]
      found = np.concatenate([found, drawn.astype(table.dtype)])
    return found

  return leaves.Computed((VOCAB_SIZE, width), table.dtype, read)


def _named(checkpoint, tower):
  """The leaves of a checkpoint; a bare tower gets its prefix."""
  found = checkpoint.leaves
  if not any(name.startswith(f"{tower}/") for name in found):
    if not any(parameters.find(f"{tower}/{name}") for name in found):
      what = {"img": "image", "txt": "text"}[tower]
      raise ValueError(
        f'{checkpoint.path}: holds no {what} tower, nothing under "{tower}/"'
      )
    found = {f"{tower}/{name}": leaf for name, leaf in found.items()}
  return found


def _image_tower(checkpoint):
  """The leaves of the tower itself, and the names of what is left out."""
  found = _named(checkpoint, "img")
  left_out = [
    n for n in found if re.fullmatch(rf"{_OF_SIGLIP_ALONE}|llm/.*", n)
  ]
  if len(getattr(found.get(parameters.PATCH_KERNEL), "shape", ())) == 2:
    raise ValueError(
      f"{checkpoint.path}: is a NaFlex image tower, expected one for images of "
      "one size"
    )
  return {n: x for n, x in found.items() if n not in left_out}, left_out
