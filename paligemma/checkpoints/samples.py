"""A few numbers of every parameter, which identify the base of an adapter.

They are the same in every format, layout and sharding, and up to rounding in
every dtype. The vocabulary table and the position embedding are left out, as
they come in several sizes; of quantized matrices only scales are compared.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from paligemma import parameters, quantization
from paligemma.checkpoints import layouts

_COUNT = 8
_OF_ANY_SIZE = (parameters.EMBEDDING, parameters.POSITIONS)
# Largest difference of two, as a share of the largest sample of a parameter.
_ROUNDING = {
  name: 2 * float(jnp.finfo(name).eps)
  for name in ("float32", "float16", "bfloat16")
}

Samples = dict[str, list[Any]]


def take(flat: Mapping[str, Any], place: jax.sharding.Sharding) -> Samples:
  """Reads samples of parameters; all processes must call it.

  Args:
    flat: Name -> array, of a model without adapters.
    place: A sharding of numbers that every process can read.

  Returns:
    Name in scan layout -> [dtype, number, ...], as JSON holds it.
  """
  flat = {
    name: x
    for name, x in flat.items()
    if str(x.dtype) in _ROUNDING and not name.startswith(_OF_ANY_SIZE)
  }
  first = layouts.stack(flat, lambda _, layers: layers[0])
  found = jax.jit(_gather, out_shardings=place)(flat)
  return {
    name: [str(first[name].dtype), *np.asarray(x).tolist()]
    for name, x in found.items()
  }


def _gather(flat):
  """Name in scan layout -> float32[n]: elements from the first to the last."""
  stacked = layouts.stack(flat, lambda _, layers: layers)
  return {name: _elements(x).astype(jnp.float32) for name, x in stacked.items()}


def _elements(x):
  apart = isinstance(x, list)
  shape = (len(x), *x[0].shape) if apart else x.shape
  size = math.prod(shape)
  positions = np.linspace(0, size - 1, min(_COUNT, size)).astype(np.int64)
  indices = np.unravel_index(positions, shape)
  if not apart:
    return x[indices]
  return jnp.stack([x[i][tuple(at)] for i, *at in zip(*indices, strict=True)])


def differing(found: Samples, expected: Samples) -> list[str]:
  """Names in both whose numbers differ by more than their dtypes round."""
  names = []
  for name in sorted(found.keys() & expected.keys()):
    (dtype, *numbers), (other, *others) = found[name], expected[name]
    rounding = max(_ROUNDING[dtype], _ROUNDING[other])
    if quantization.split(name):  # the matrix may have been rounded before
      rounding = _ROUNDING["bfloat16"]
    if len(numbers) != len(others):
      names.append(name)
      continue
    apart = np.abs(np.subtract(numbers, others))
    if not (apart <= rounding * np.abs(others).max()).all():
      names.append(name)
  return names


def are(value: Any) -> bool:
  """Whether a value that JSON held is what `take` returned."""
  return isinstance(value, dict) and all(
    isinstance(x, list)
    and len(x) > 1
    and x[0] in _ROUNDING
    and all(type(number) is float and math.isfinite(number) for number in x[1:])
    for x in value.values()
  )
