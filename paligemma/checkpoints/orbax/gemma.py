"""Gemma 1 and 2 as released for JAX: Orbax, with google-deepmind/gemma's names.

    transformer/embedder            input_embedding (V, D)
    transformer/final_norm          scale (D)
    transformer/layer_3/attn/q_einsum         w (N, D, H)
    transformer/layer_3/attn/kv_einsum        w (2, K, D, H)
    transformer/layer_3/attn/qkv_einsum       w (3, N, D, H), if K = N
    transformer/layer_3/attn/attn_vec_einsum  w (N, H, D)
    transformer/layer_3/mlp/gating_einsum     w (2, D, F) or (2, F, D)
    transformer/layer_3/mlp/linear            w (F, D)
    transformer/layer_3/pre_attention_norm    scale (D), and the other norms

The keys of the tree are these, or nested, or joined; "transformer" may lack, or
stand in "params"; the "w" of the mlp may lack. In the stacked variant
`stacked_layers/attention_type_1` holds layers 1, 1 + P, 1 + 2 P, ... of P types
(google-deepmind/gemma: gemma/gm/ckpts).
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from paligemma import parameters, tree, variants
from paligemma.checkpoints import infer
from paligemma.checkpoints.checkpoint import Checkpoint
from paligemma.checkpoints.leaves import (
  Computed,
  Leaf,
  Piece,
  Tensor,
  common_dtype,
  row_of,
  stack_layers,
)
from paligemma.checkpoints.orbax import folder as orbax

# Rows of the vocabulary, and with those that only pad it to a multiple of 256.
_ROWS_KEPT, _PADDED_ROWS = 256_000, 256_128

_TABLE, _GATING = "embedder/input_embedding", "mlp/gating_einsum"
_Q, _KV, _QKV = (f"attn/{x}_einsum/w" for x in ("q", "kv", "qkv"))

# Their names are ours, but for the numbers of layers.
_LAYERS = f"{parameters.LAYERS['llm'][0]}/"
_ROWS = parameters.has("llm", when=("grouped", "fused", "post_norms"))
_OF_LAYER = {
  name.removeprefix(_LAYERS): row
  for name, row in _ROWS.items()
  if name.startswith(_LAYERS)
}
_TOP = [n.removeprefix("llm/") for n in _ROWS if not n.startswith(_LAYERS)]
_NAMES = re.compile(
  rf"(?P<top>{'|'.join(_TOP)})"
  r"|(layer_(?P<layer>\d+)|stacked_layers/attention_type_(?P<type>\d+))/"
  rf"(?P<rest>{'|'.join(_OF_LAYER)})(/w)?"
)


def holds(path: epath.PathLike) -> bool:
  """Whether a folder is an Orbax checkpoint with Gemma's names."""
  folder = orbax.find(path)
  return folder is not None and any(
    name.endswith(_TABLE) and not name.startswith("llm/")
    for name in _stripped(orbax.tensors(folder))
  )


def open(path: epath.PathLike) -> Checkpoint:
  """Opens a released Gemma as the text decoder it is: leaves "llm/...".

  Args:
    path: Folder of the checkpoint, see orbax.find.

  Returns:
    Checkpoint with 256,000 rows of vocabulary (towers.py adds loc and seg),
    layers stacked, and the soft caps and window that this size of Gemma was
    trained with; an unknown size gets those of Gemma 2 if it has post norms.

  Raises:
    ValueError: Unreadable, or no Gemma 1 or 2: lists gaps and leftovers.
  """
  folder = orbax.find(path)
  if folder is None:
    raise ValueError(f"{path}: holds no Orbax checkpoint")
  found = orbax.tensors(folder)
  arrays = _stripped(found)
  used = {array.where for array in arrays.values()}
  try:
    leaves = _leaves(arrays)
  except ValueError as e:
    raise ValueError(f"{folder}: {e}") from None
  orbax.check_names(folder, leaves)
  return Checkpoint(
    path=str(path),
    format="Gemma Orbax",
    leaves=leaves,
    llm=_settings(leaves),
    ignored=tuple(n for n, array in found.items() if array.where not in used),
  )


def _stripped(arrays: Mapping[str, Any]) -> dict[str, Any]:
  """The parameters, without the keys that all their names have in front."""
  arrays = tree.under("params/", arrays) or arrays
  short = {n.removeprefix("transformer/"): x for n, x in arrays.items()}
  return short if len(short) == len(arrays) else dict(arrays)


def _leaves(arrays: Mapping[str, Tensor]) -> dict[str, Leaf]:
  matches = {name: _NAMES.fullmatch(name) for name in arrays}
  if foreign := [name for name, match in matches.items() if not match]:
    raise ValueError(f"no parameters of Gemma 1 or 2: {orbax.listed(foreign)}")
  top = {m["top"]: arrays[n] for n, m in matches.items() if m["top"]}
  for name in _TOP:
    if name not in top:
      raise ValueError(f"transformer/{name}: missing")
  table = top[_TABLE]
  if len(table.shape) != 2:
    raise ValueError(f"{_TABLE}: shape {tuple(table.shape)}, expected (V, D)")
  if table.shape[0] == _PADDED_ROWS:
    top[_TABLE] = _first_rows(table, _ROWS_KEPT)
  leaves = {f"llm/{name}": Leaf.of(tensor) for name, tensor in top.items()}
  layers = _layers(arrays, matches)
  if not layers:
    raise ValueError("transformer/layer_0: missing")
  for index, layer in layers.items():
    for rest, leaf in _layer(index, layer, table.shape[1]).items():
      leaves[f"{_LAYERS}{index}/{rest}"] = leaf
  return stack_layers(leaves)


def _first_rows(tensor: Tensor, count: int) -> Tensor:
  def read(index):
    rows = slice(None) if index is ... else index
    return tensor[slice(*rows.indices(count))]

  return Computed((count, *tensor.shape[1:]), tensor.dtype, read)


def _layers(arrays, matches) -> dict[int, dict[str, Tensor]]:
  """Layer -> name of a tensor in it -> tensor."""
  found = [(m, arrays[name]) for name, m in matches.items() if m["rest"]]
  types = 1 + max((int(m["type"]) for m, _ in found if m["type"]), default=0)
  layers = {}
  for match, tensor in found:
    rest = match["rest"]
    if match["layer"]:
      parts = {int(match["layer"]): tensor}
    else:
      if not tensor.shape:
        raise ValueError(f"{match[0]}: shape (), expected layers stacked")
      parts = {
        int(match["type"]) + i * types: row_of(tensor, i)
        for i in range(tensor.shape[0])
      }
    for index, part in parts.items():
      if rest in layers.setdefault(index, {}):
        raise ValueError(f"{match[0]}: layer {index} stands there twice")
      layers[index][rest] = part
  return layers


def _layer(
  index: int, tensors: dict[str, Tensor], width: int
) -> dict[str, Leaf]:
  """big_vision's names of one layer."""
  gating = tensors.pop(_GATING, None)
  q, kv = tensors.get(_Q), tensors.get(_KV)
  leaves = {rest: Leaf.of(tensor) for rest, tensor in tensors.items()}
  if gating is not None:
    leaves[_GATING] = _gating(index, gating, width)
  if q is not None and kv is not None and kv.shape == (2, *q.shape):
    del leaves[_Q], leaves[_KV]
    parts = (q, row_of(kv, 0), row_of(kv, 1))
    pieces = tuple(Piece((i,), part) for i, part in enumerate(parts))
    leaves[_QKV] = Leaf((3, *q.shape), common_dtype((q, kv)), pieces)
  when = ("", "fused" if _QKV in leaves else "grouped")
  required = {rest for rest, row in _OF_LAYER.items() if row.when in when}
  if missing := required - leaves.keys():
    raise ValueError(f"layer {index} lacks {orbax.listed(missing)}")
  return leaves


def _gating(index: int, tensor: Tensor, width: int) -> Leaf:
  """(2, D, F) from that or from (2, F, D)."""
  shape = tuple(tensor.shape)
  if len(shape) != 3 or shape[0] != 2 or width not in shape[1:]:
    raise ValueError(
      f"layer {index}: {_GATING}: shape {shape}, expected (2, D, F) or "
      f"(2, F, D) with D = {width}"
    )
  if shape[1] == width:
    return Leaf.of(tensor)
  pieces = tuple(Piece((i,), row_of(tensor, i), np.transpose) for i in (0, 1))
  return Leaf((2, width, shape[1]), np.dtype(tensor.dtype), pieces)


def _settings(leaves: Mapping[str, Leaf]) -> dict[str, Any]:
  variant = variants.GEMMA[variants.nearest(infer.sizes(leaves)["llm"])]
  return {field: getattr(variant, field) for field in parameters.STATED}
