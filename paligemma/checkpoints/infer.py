"""Sizes and layout of both towers, read off the shapes of their arrays.

Axes: L layers, D width, F mlp hidden, N heads, K kv heads, H head dim, V
vocabulary, P positions, C colours.
"""

import math
from collections.abc import Mapping
from typing import Any

from paligemma import registry
from paligemma.checkpoints import layouts, quantized_leaves

_VIT = "img/Transformer/encoderblock"
_GEMMA = "llm/layers"


def sizes(flat: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
  """Reads the sizes of a PaliGemma off its arrays.

  Args:
    flat: Name -> shape, or name -> anything with a `shape`; layers stacked or
      apart, attention as `q_einsum` and `kv_einsum` or as one `qkv_einsum`.

  Returns:
    {"img": width, depth, mlp_dim, num_heads, patch_size, res (pixels; None
    without a learned position embedding), scan (True: layers are stacked),
    "llm": width, depth, mlp_dim, num_heads, num_kv_heads, head_dim, vocab_size,
    post_norms (True in Gemma 2), scan}. A tower of which there is nothing is
    left out.

  Raises:
    ValueError: There is no tower, or arrays of one are missing (all are listed)
      or of another rank or empty, a patch or the grid of positions is not
      square, or layers differ in their arrays.
  """
  shapes = {name: tuple(getattr(x, "shape", x)) for name, x in flat.items()}
  towers = {name.partition("/")[0] for name in shapes}
  apart = {n.partition("/")[0] for n in shapes if layouts.split_layer(n)}
  shapes = layouts.stack(shapes, layouts.stack_shapes)
  shapes = quantized_leaves.full_shapes(shapes)
  found = {
    tower: {**read(shapes), "scan": tower not in apart}
    for tower, read in (("img", _image_tower), ("llm", _decoder))
    if tower in towers
  }
  if not found:
    raise ValueError(
      'no parameters under "img/" or "llm/", found: '
      f"{', '.join(sorted(towers)) or 'nothing'}"
    )
  return found


def _image_tower(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
  patch, query, hidden = _shapes(
    shapes,
    ("img/embedding/kernel", "patch, patch, C, D"),
    (f"{_VIT}/MultiHeadDotProductAttention_0/query/kernel", "L, D, N, H"),
    (f"{_VIT}/MlpBlock_0/Dense_0/kernel", "L, D, F"),
  )
  if patch[0] != patch[1]:
    raise ValueError(
      f"img/embedding/kernel: shape {patch}, expected a square patch"
    )
  return {
    "width": patch[3],
    "depth": query[0],
    "mlp_dim": hidden[2],
    "num_heads": query[2],
    "patch_size": patch[0],
    "res": _resolution(shapes, patch_size=patch[0]),
  }


def _resolution(shapes, patch_size):
  name = "img/pos_embedding"
  if name not in shapes:
    return None
  ((_, positions, _),) = _shapes(shapes, (name, "1, P, D"))
  side = math.isqrt(positions)
  if side**2 != positions:
    raise ValueError(f"{name}: {positions} positions, expected a square grid")
  return side * patch_size


def _decoder(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
  embedding = ("llm/embedder/input_embedding", "V, D")
  linear = (f"{_GEMMA}/mlp/linear", "L, F, D")
  if f"{_GEMMA}/attn/qkv_einsum/w" in shapes:
    qkv = (f"{_GEMMA}/attn/qkv_einsum/w", "L, 3, N, D, H")
    embedding, linear, qkv = _shapes(shapes, embedding, linear, qkv)
    depth, _, num_heads, _, head_dim = qkv
    num_kv_heads = num_heads
  else:
    q = (f"{_GEMMA}/attn/q_einsum/w", "L, N, D, H")
    kv = (f"{_GEMMA}/attn/kv_einsum/w", "L, 2, K, D, H")
    embedding, linear, q, kv = _shapes(shapes, embedding, linear, q, kv)
    depth, num_heads, _, head_dim = q
    num_kv_heads = kv[2]
  return {
    "width": embedding[1],
    "depth": depth,
    "mlp_dim": linear[1],
    "num_heads": num_heads,
    "num_kv_heads": num_kv_heads,
    "head_dim": head_dim,
    "vocab_size": embedding[0],
    "post_norms": f"{_GEMMA}/post_attention_norm/scale" in shapes,
  }


def _shapes(shapes, *wanted: tuple[str, str]) -> list[tuple[int, ...]]:
  """Looks up (name, axes) pairs; one error lists all that is missing."""
  if missing := [name for name, _ in wanted if name not in shapes]:
    raise ValueError(
      f"cannot tell the sizes of the model, missing: {', '.join(missing)}."
      + registry.did_you_mean(missing[0], shapes)
    )
  for name, axes in wanted:
    if len(shapes[name]) != len(axes.split(", ")):
      raise ValueError(f"{name}: shape {shapes[name]}, expected ({axes})")
    if not all(0 < size < 2**31 for size in shapes[name]):
      raise ValueError(
        f"{name}: shape {shapes[name]}, expected sizes from 1 to 2**31 - 1"
      )
  return [shapes[name] for name, _ in wanted]
