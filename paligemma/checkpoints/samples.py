"""A few numbers of every parameter, by which one base is told from another.

They are the same in every format, layout and sharding, and but for rounding in
every dtype. The vocabulary table and the position embedding are left out, as
they come in other sizes; of quantized matrices only scales are looked at.
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
# How far two may be apart, as a share of the largest sample of a parameter.
_ROUNDING = {
  name: 2 * float(jnp.finfo(name).eps)
  for name in ("float32", "float16", "bfloat16")
}

Samples = dict[str, list[Any]]


def take(flat: Mapping[str, Any], place: jax.sharding.Sharding) -> Samples:
  """Reads samples off parameters; all processes must call it.

  Args:
    flat: Name -> array, of a model without adapters.
    place: Where to put numbers that every process can read.

  Returns:
    Name in scan layout -> [dtype, number, ...], as JSON holds it.
  """
  flat = {
    name: x
    for name, x in flat.items()
    if str(x.dtype) in _ROUNDING and not name.startswith(_OF_ANY_SIZE)
  }
  shapes = {name: x.shape for name, x in flat.items()}
  where = []  # name, the parameter that holds it or one layer of it, index
  for name, shape in layouts.stack(shapes, layouts.stack_shapes).items():
    size = math.prod(shape)
    for i in np.linspace(0, size - 1, min(_COUNT, size)).astype(np.int64):
      at, holder = np.unravel_index(i, shape), name
      if name not in flat:
        layer, *at = at
        holder = layouts.layer_name(name, layer)
      where.append((name, holder, at))
  indices = {}
  for _, holder, at in where:
    indices.setdefault(holder, []).append(at)
  indices = {
    holder: tuple(np.array(found, np.int32).T)
    for holder, found in indices.items()
  }
  gather = jax.jit(_gather, out_shardings=place)
  found = gather({holder: flat[holder] for holder in indices}, indices)
  numbers = {name: iter(np.asarray(x).tolist()) for name, x in found.items()}
  samples = {}
  for name, holder, _ in where:
    start = [str(flat[holder].dtype)]
    samples.setdefault(name, start).append(next(numbers[holder]))
  return samples


def differing(found: Samples, expected: Samples) -> list[str]:
  """Names in both whose numbers differ by more than their dtypes round."""
  names = []
  for name in sorted(found.keys() & expected.keys()):
    (dtype, *numbers), (other, *others) = found[name], expected[name]
    rounding = max(_ROUNDING[dtype], _ROUNDING[other])
    if quantization.split(name):  # of what may have been rounded before
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


def _gather(flat, indices):
  return {
    name: flat[name][at].astype(jnp.float32) for name, at in indices.items()
  }
