"""Sizes and layout of both towers, read off the shapes of their arrays.

A checkpoint keeps the layers of a tower stacked along a leading axis ("scan":
`llm/layers/attn/...`) or apart ("loop": `llm/layers/3/attn/...`).

Axes: L layers, D width, F mlp hidden, N heads, K kv heads, H head dim, V
vocabulary, P positions, C colours.
"""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from paligemma import tree

# What stands before a layer's index in loop layout, and what joins the two.
_STEMS = (("Transformer/encoderblock", "_"), ("layers", "/"))

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
    post_norms (True in Gemma 2), scan}.

  Raises:
    ValueError: Arrays are missing (all are listed) or of another rank, a patch
      or the grid of positions is not square, or layers differ in their arrays.
  """
  shapes = {name: tuple(getattr(x, "shape", x)) for name, x in flat.items()}
  apart = {name.partition("/")[0] for name in shapes if _split(name)}
  shapes = _stack(shapes, _stack_shapes)
  return {
    "img": {**_image_tower(shapes), "scan": "img" not in apart},
    "llm": {**_decoder(shapes), "scan": "llm" not in apart},
  }


def stack_layers(flat: Mapping[str, np.ndarray]) -> tree.Flat:
  """Loop layout to scan layout; names that are no layer's pass through.

  Raises:
    ValueError: A layer lacks an array that another one has, or shapes differ.
  """
  return _stack(flat, _stack_arrays)


def unstack_layers(flat: Mapping[str, np.ndarray]) -> tree.Flat:
  """Scan layout to loop layout, the inverse of `stack_layers`."""
  loop = {}
  for name, leaf in flat.items():
    stem = _stem_of_stacked(name)
    if stem is None:
      loop[name] = leaf
      continue
    prefix, joint, rest = stem
    for index, layer in enumerate(leaf):
      loop[f"{prefix}{joint}{index}/{rest}"] = layer
  return dict(sorted(loop.items()))


def _split(name: str) -> tuple[str, str, int, str] | None:
  """'llm/layers/3/attn/w' -> ('llm/layers', '/', 3, 'attn/w'), else None."""
  for stem, joint in _STEMS:
    if m := re.fullmatch(rf"((?:.*/)?{stem}){joint}(\d+)/(.+)", name):
      return m[1], joint, int(m[2]), m[3]
  return None


def _stem_of_stacked(name: str) -> tuple[str, str, str] | None:
  """'llm/layers/attn/w' -> ('llm/layers', '/', 'attn/w'), else None."""
  for stem, joint in _STEMS:
    m = re.fullmatch(rf"((?:.*/)?{stem})/(.+)", name)
    if m and not _split(name):
      return m[1], joint, m[2]
  return None


def _stack(flat: Mapping[str, Any], combine: Callable) -> tree.Flat:
  stacked = {}
  layers = {}  # prefix, joint -> rest -> index -> leaf
  for name, leaf in flat.items():
    if parts := _split(name):
      prefix, joint, index, rest = parts
      tower = layers.setdefault((prefix, joint), {})
      tower.setdefault(rest, {})[index] = leaf
    else:
      stacked[name] = leaf
  for (prefix, joint), tower in layers.items():
    depth = 1 + max(max(by_index) for by_index in tower.values())
    for rest, by_index in tower.items():
      for index in range(depth):
        if index not in by_index:
          raise ValueError(
            f"{prefix}{joint}{index}/{rest}: missing, there are {depth} layers"
          )
      name = f"{prefix}/{rest}"
      stacked[name] = combine(name, [by_index[i] for i in range(depth)])
  return dict(sorted(stacked.items()))


def _stack_shapes(name: str, shapes: list[tuple[int, ...]]) -> tuple[int, ...]:
  if len(set(shapes)) > 1:
    raise ValueError(
      f"{name}: layers differ in shape: {sorted(set(shapes))}, expected one"
    )
  return len(shapes), *shapes[0]


def _stack_arrays(name: str, arrays: list[np.ndarray]) -> np.ndarray:
  _stack_shapes(name, [x.shape for x in arrays])
  return np.stack(arrays)


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
      + tree.did_you_mean(missing[0], shapes)
    )
  for name, axes in wanted:
    if len(shapes[name]) != len(axes.split(", ")):
      raise ValueError(f"{name}: shape {shapes[name]}, expected ({axes})")
  return [shapes[name] for name, _ in wanted]
