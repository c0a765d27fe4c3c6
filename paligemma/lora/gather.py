"""Several adapters beside one base: each example of a batch has its own.

    y[b] = x[b] W + (x[b] A[adapter[b]]) B[adapter[b]]

Matrices of all adapters are stacked: A float[..., n, I, R], B float[..., n, R,
O]. R is the largest rank, the others are padded with zeros, and so is what an
adapter does not adapt; the scale of each is a factor of its B.

Axes: n adapters, B examples, I inputs, R rank, O outputs.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Int

from paligemma import tree
from paligemma.lora import apply
from paligemma.lora import config as lora_lib

Adapted = tuple[nn.Module, Mapping[str, Any]]


def stack(adapted: Sequence[Adapted]) -> tuple[nn.Module, dict[str, Any]]:
  """Returns one model with the adapters of several, for `take`.

  Args:
    adapted: Models and parameters, as `load_adapter` returns them, that differ
      in adapters alone; one may have none. The result has the towers and the
      parameters of the first.
  """
  model, params = adapted[0]
  loras = [apply.lora_of(x) for x, _ in adapted]
  targets = [
    target
    for target in lora_lib.TARGETS
    if target.partition("/")[0] in model.towers
    and any(lora is not None and lora.adapts(target) for lora in loras)
  ]
  if not targets:
    return apply.with_lora(model, None), dict(params)
  rank = max(lora.rank for lora in loras if lora is not None)
  lora = lora_lib.Lora(rank, alpha=rank, targets=targets)  # its scale is 1
  flats = [tree.flatten(params) for _, params in adapted]
  stacked = {}
  for name in sorted(set().union(*map(_adapters, flats))):
    if name.partition("/")[0] not in model.towers:
      continue
    found = [
      _padded(name, flat[name], of, rank) if name in flat else None
      for flat, of in zip(flats, loras, strict=True)
    ]
    zeros = jnp.zeros_like(next(x for x in found if x is not None))
    found = [zeros if x is None else x for x in found]
    stacked[name] = jnp.stack(found, axis=-3)
  params = tree.unflatten({**flats[0], **stacked})
  return apply.with_lora(model, lora), params


def take(
  params: Mapping[str, Any], adapter: Int[Array, " B"]
) -> dict[str, Any]:
  """Returns parameters in which each example has the matrices of its adapter.

  Args:
    params: Of `stack`.
    adapter: Indices into its argument, one for each example.
  """
  flat = tree.flatten(params)
  for name in _adapters(flat):
    flat[name] = jnp.take(flat[name], adapter, axis=-3)
  return tree.unflatten(flat)


def _adapters(flat):
  return [name for name, adapts in apply.is_adapter(flat).items() if adapts]


def _padded(name, array, lora, rank):
  """A or B with the largest rank; B times the scale."""
  axis = -1 if name.endswith("/a") else -2
  widths = [(0, 0)] * array.ndim
  widths[axis] = (0, rank - array.shape[axis])
  factor = 1.0 if axis == -1 else lora.scale
  return jnp.pad(jnp.asarray(array) * factor, widths)
