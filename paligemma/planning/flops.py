"""Floating-point operations of a train step and of decoding, from shapes.

XLA's own cost analysis counts the body of a scan once, whatever its length.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax

from paligemma import parameters
from paligemma.planning import chips


def train_step(
  model: nn.Module,
  shapes: Mapping[str, Any],
  trainable: Mapping[str, bool],
  *,
  batch_size: int,
  res: int,
  text_len: int,
  frames: int = 0,
  supervised: int | None = None,
) -> int:
  """Counts the multiplications and additions that the step needs.

  A matrix with n entries costs 2n per token forward, 2n more where a gradient
  flows through to a trainable parameter, and 2n more if it is trained itself.
  The output layer only counts supervised tokens. Recomputation (remat) does not
  count, as usual for model FLOP utilisation (PaLM, arXiv:2204.02311, appendix
  B).

  Args:
    model: Of models/paligemma.py, with or without an image tower.
    shapes: Name -> leaf with a shape, of all parameters.
    trainable: The names that are trained.
    batch_size: Number of examples over all devices, as the result.
    res: Side of an image in pixels.
    text_len: Number of text tokens of an example.
    frames: Number of images of an example; 0 is one.
    supervised: Number of supervised tokens in the batch, default all of the
      text.
  """
  image_tokens = _image_tokens(model, res)
  frames = frames or 1
  length = frames * image_tokens + text_len
  if supervised is None:
    supervised = batch_size * text_len
  # A gradient flows through the image tower if more than its head trains.
  tower_trains = any(
    name.startswith("img/") and not re.fullmatch(parameters.HEAD, name)
    for name in trainable
  )

  total = 0
  for name, leaf in _matrices(shapes):
    tokens = frames * image_tokens if name.startswith("img/") else length
    tokens *= batch_size
    if name == parameters.EMBEDDING:
      tokens = supervised  # as the output layer; reading a row is no product
    flows = name.startswith("llm/") or tower_trains
    passes = 1 + flows + (name in trainable)
    total += 2 * math.prod(leaf.shape) * int(tokens) * passes

  mixed = model.llm.num_heads * model.llm.head_dim
  towers = [(model.llm, mixed, length, 1, True)]
  if model.img is not None:
    sizes = model.img.width, image_tokens, frames, tower_trains
    towers.append((model.img, *sizes))
  for tower, width, tokens, times, flows in towers:
    # Queries times keys, and weights times values.
    attention = 4 * tower.depth * tokens**2 * width * times * (1 + 2 * flows)
    total += attention * batch_size
  return total


def contrastive_step(
  model: nn.Module,
  shapes: Mapping[str, Any],
  trainable: Mapping[str, bool],
  *,
  batch_size: int,
  patches: int,
) -> int:
  """Counts the multiplications and additions of a step over image-text pairs.

  As `train_step`; the logits are those of all pairs of the batch. A decoder
  beside the towers counts with three texts of full length. What distillation
  adds at the end of a training does not count.

  Args:
    model: Of models/siglip.py.
    shapes, trainable, batch_size: As of `train_step`.
    patches: Of an image.
  """
  tokens = {"img": patches, "txt": model.txt.text_len}
  if model.dec is not None:
    tokens["dec"] = model.dec.num_tokens
  # A gradient flows through a tower if more than its head trains.
  flows = {
    tower: any(re.match(f"{tower}/(?!head/)", name) for name in trainable)
    for tower in tokens
  }
  trained = {name.partition("/")[0] for name in trainable} & tokens.keys()
  total = 0
  for name, leaf in _matrices(shapes):
    if name in (parameters.TEXT_EMBEDDING, parameters.DECODER_EMBEDDING):
      continue  # reading a row is no product
    tower = name.partition("/")[0]
    if tower not in tokens:
      continue
    passes = 1 + flows[tower] + (name in trainable)
    count = 1 if re.fullmatch(parameters.POOLED, name) else tokens[tower]
    if re.fullmatch(parameters.CROSS_KEYS, name):
      count = patches
    total += 2 * math.prod(leaf.shape) * count * passes
  for name, tower in (model.towers | {"dec": model.dec}).items():
    if tower is None:
      continue
    keys = tokens[name] + patches * (name == "dec")
    attention = 4 * tower.depth * tokens[name] * keys * tower.width
    total += attention * (1 + 2 * flows[name])
  width = model.txt.num_classes or model.txt.width
  return batch_size * (total + 2 * batch_size * width * (1 + len(trained)))


def decode(
  model: nn.Module,
  shapes: Mapping[str, Any],
  *,
  batch_size: int,
  res: int,
  text_len: int,
  max_decode_len: int,
) -> int:
  """Counts the multiplications and additions of decoding to the full length.

  Arguments as of `train_step`. The first token comes from the prompt's logits
  at its end, and each later one attends to all tokens before it and itself.
  Every example decodes `max_decode_len` tokens.
  """
  image_tokens = _image_tokens(model, res)
  length = image_tokens + text_len
  steps = range(1, max_decode_len)

  total = 0
  for name, leaf in _matrices(shapes):
    tokens = image_tokens if name.startswith("img/") else length + len(steps)
    if name == parameters.EMBEDDING:
      tokens = max_decode_len
    total += 2 * math.prod(leaf.shape) * tokens

  if model.img is not None:
    total += 4 * model.img.depth * image_tokens**2 * model.img.width
  pairs = length**2 + sum(length + step for step in steps)
  width = model.llm.num_heads * model.llm.head_dim
  total += 4 * model.llm.depth * pairs * width
  return total * batch_size


def _image_tokens(model, res):
  return 0 if model.img is None else (res // model.img.patch_size) ** 2


def _matrices(shapes):
  """Returns the parameters of matrix products; others act once per token."""
  return [
    (name, leaf)
    for name, leaf in shapes.items()
    if (row := parameters.find(name)) and row.summed
  ]


def peak_per_second() -> float | None:
  """Returns the FLOP/s of all devices, None for an unknown kind (a CPU)."""
  chip = chips.of_kind(jax.devices()[0].device_kind)
  return chip and chip.flops * jax.device_count()
