"""Low-rank adapters of a model: added and merged.

Axes: I inputs, R rank, O outputs, N heads, D width, H head dim.
"""

import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from paligemma import init, parameters, quantization, tree
from paligemma.lora import config as lora_lib


def enable_lora(
  model: nn.Module,
  params: Mapping[str, Any],
  *,
  rank: int = lora_lib.Lora.rank,
  alpha: float = lora_lib.Lora.alpha,
  rslora: bool = lora_lib.Lora.rslora,
  dropout: float = lora_lib.Lora.dropout,
  targets: Sequence[str] = lora_lib.Lora.targets,
  seed: int = 0,
) -> tuple[nn.Module, dict[str, Any]]:
  """Puts adapters beside the matrices of a model, which answers as before.

  Args:
    params: {"img": ..., "llm": ...}, quantized or not; they are shared with
      the result. On several devices each gets all of the adapters.
    rank, alpha, rslora, dropout, targets: see lora.config.Lora.
    seed: A is drawn as peft draws it, B is zero.

  Returns:
    Tuple of the Model and its parameters, adapters in float32 included.

  Raises:
    ValueError: a value that Lora refuses, targets that this model lacks, or
      the model has adapters.
  """
  if lora_of(model) is not None:
    raise ValueError(
      "the model has adapters already; merge_lora makes them part of its "
      "matrices, load_adapter exchanges them"
    )
  lora = lora_lib.Lora(rank, alpha, rslora, dropout, targets)
  model = with_lora(model, lora)
  sharding = sharding_of(params)
  wanted = {
    name: jax.ShapeDtypeStruct(x.shape, jnp.float32, sharding=sharding)
    for name, x in adapter_shapes(model).items()
  }
  drawn = init.random_params(model, None, wanted, seed=seed)
  return model, tree.unflatten(tree.merge(tree.flatten(params), drawn))


def merge_lora(
  model: nn.Module, params: Mapping[str, Any]
) -> tuple[nn.Module, dict[str, Any]]:
  """Adds the product of every adapter to its matrix.

  Returns:
    Tuple of the Model without adapters and its parameters, in the dtype that
    they had; a matrix that was quantized becomes one of the compute dtype.

  Raises:
    ValueError: the model has no adapters.
  """
  lora = lora_of(model)
  if lora is None:
    raise ValueError("the model has no adapters to merge")
  flat = tree.flatten(params)
  adapters, weights = tree.partition(flat, is_adapter(flat))
  merged = joined(weights)
  for name in merged:
    row = parameters.find(name)
    for part, target in enumerate(row.targets if row else ()):
      path = parameters.adapter(name, target)
      if f"{path}/a" not in adapters:
        continue
      w, a, b = merged[name], adapters[f"{path}/a"], adapters[f"{path}/b"]
      if quantization.is_quantized(w):
        w = quantization.dequantize(w, model.towers[row.tower].dtype)
      part = None if row.num_parts is None else part
      merged[name] = _add(w, a, b, lora.scale, part=part, order=row.order)
  return with_lora(model, None), tree.unflatten(merged)


def lora_of(model: nn.Module) -> lora_lib.Lora | None:
  """The Lora of a model, or None."""
  return next(reversed(model.towers.values())).lora


def with_lora(model: nn.Module, lora: lora_lib.Lora | None) -> nn.Module:
  """The model with other adapters, or None."""
  towers = {n: tower.clone(lora=lora) for n, tower in model.towers.items()}
  return model.clone(**towers)


def is_adapter(names: Iterable[str]) -> dict[str, bool]:
  """name -> whether the parameter belongs to an adapter."""
  return {x: re.fullmatch(parameters.ADAPTERS, x) is not None for x in names}


def adapter_shapes(model: nn.Module) -> dict[str, jax.ShapeDtypeStruct]:
  """name -> shape and dtype of the adapters of a model.

  Raises:
    ValueError: a regex of its Lora matches none of its targets.
  """
  has = [x for x in lora_lib.TARGETS if x.partition("/")[0] in model.towers]
  for regex in lora_of(model).targets:
    if not any(re.fullmatch(regex, target) for target in has):
      raise ValueError(
        f'LoRA target "{regex}": the model has no such tower, expected one '
        f"of: {', '.join(has)}"
      )
  shapes = init.shapes(model)
  return {n: shapes[n] for n, adapts in is_adapter(shapes).items() if adapts}


def sharding_of(params: Mapping[str, Any]) -> jax.sharding.Sharding:
  """Where adapters go: to every device that has a part of the parameters."""
  sharding = getattr(jax.tree.leaves(params)[0], "sharding", None)
  if isinstance(sharding, NamedSharding):
    return NamedSharding(sharding.mesh, PartitionSpec())
  return jnp.zeros(()).sharding


@functools.partial(jax.jit, static_argnames=("part", "order"))
def _add(w, a, b, scale, *, part, order):
  """w + scale * a b, a layer at a time if there are several.

  `order` are the axes of w (or its part) that a b has, one after the other.
  """

  def one(layer):
    w, a, b = layer
    old = w if part is None else w[part]
    delta = scale * jnp.matmul(a, b, precision="highest")
    delta = delta.reshape([old.shape[axis] for axis in order])
    new = (old + delta.transpose(np.argsort(order))).astype(w.dtype)
    return new if part is None else w.at[part].set(new)

  return one((w, a, b)) if a.ndim == 2 else jax.lax.map(one, (w, a, b))


def joined(flat: Mapping[str, Any]) -> dict[str, Any]:
  """Both arrays of a quantized matrix under its name."""
  found = {}
  for name, leaf in flat.items():
    if part := quantization.split(name):
      found.setdefault(part[0], {})[part[1]] = leaf
    else:
      found[name] = leaf
  return found
