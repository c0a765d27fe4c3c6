"""Weight matrices in 8 or 4 bits, two arrays in the place of one.

    llm/layers/mlp/linear            float[L, F, D]

    llm/layers/mlp/linear/int8       int8[L, F, D]
    llm/layers/mlp/linear/scale      float32[L, 1, D]

    llm/layers/mlp/linear/int4       uint8[L, F, D/2]
    llm/layers/mlp/linear/scale      float32[L, F/64, D]

In "int8" every output has a scale of its own. In "int4" and "nf4" (the 16
quantiles of a normal distribution, arXiv:2305.14314) so have each TILE inputs
of an output, and a byte holds two numbers: element i of the last axis in its
lower half, element i + n/2 in the upper. The vocabulary table is "int8" beside
them.

The rounding is qwix's. Norms, biases, patch and position embeddings stay as
they are.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from paligemma import parameters, registry, tree

KINDS = ("int8", "int4", "nf4")
SCALE = "scale"
# Inputs of an output that share a scale in 4 bits: at most so many, and a
# divisor of their number.
TILE = 64

_QTYPES = {"int8": jnp.int8, "int4": jnp.int4, "nf4": "nf4"}


def summed_axes(name: str) -> tuple[int, ...] | None:
  """The axes, from the last, over which products with a matrix sum.

  Args:
    name: of a parameter, e.g. "llm/layers/mlp/linear".

  Returns:
    Negative numbers; None if the parameter is not quantized.
  """
  row = parameters.find(name)
  is_matrix = row is not None and row.kind in (
    parameters.MATRIX,
    parameters.TABLE,
  )
  return row.summed_axes if is_matrix else None


def kind_for(name: str, kind: str) -> str | None:
  """The kind that a parameter gets in a model of a kind; None: it stays.

  The vocabulary table has 8 bits beside matrices of 4: every logit is a product
  with it. On the embedded model's pictures that lowers the mean error of the
  logits in int4 from 0.33 to 0.23.
  """
  if summed_axes(name) is None:
    return None
  return "int8" if name == parameters.EMBEDDING else kind


def check_kind(kind: str) -> None:
  """Raises ValueError for what is not one of KINDS, with the nearest."""
  registry.lookup(dict.fromkeys(KINDS), kind, "quantization")


def shapes(
  name: str, shape: tuple[int, ...], kind: str
) -> dict[str, jax.ShapeDtypeStruct]:
  """The two arrays that stand for a matrix, by their last names.

  Raises:
    ValueError: unknown kind, or a last axis of odd length for 4 bits.
  """
  check_kind(kind)
  scale = list(shape)
  for axis in (axes := summed_axes(name)):
    scale[axis] = 1
  if kind == "int8":
    values = jax.ShapeDtypeStruct(shape, jnp.int8)
  else:
    if shape[-1] % 2:
      raise ValueError(
        f"{name}: shape {shape}, {kind} needs a last axis of even length"
      )
    *others, tiled = axes
    for axis in others:
      scale[axis] = shape[axis]
    scale[tiled] = shape[tiled] // _tile(shape[tiled])
    values = jax.ShapeDtypeStruct((*shape[:-1], shape[-1] // 2), jnp.uint8)
  return {kind: values, SCALE: jax.ShapeDtypeStruct(tuple(scale), jnp.float32)}


def quantize(name: str, x: jax.typing.ArrayLike, kind: str) -> tree.Flat:
  """Rounds a matrix: {kind: values, "scale": float32}, see `shapes`.

  Args:
    name: of the parameter, which tells the axes.
    x: float[...], in any float dtype; rounded from float32.
    kind: one of KINDS.

  Raises:
    ValueError: as `shapes`.
  """
  scale_shape = shapes(name, x.shape, kind)[SCALE].shape
  values, scale = _rounded(x, kind, scale_shape)
  return {kind: values, SCALE: scale}


@functools.partial(jax.jit, static_argnums=(1, 2))
def _rounded(x, kind, scale_shape):
  import qwix  # takes half as long as all the rest

  tiles = {
    axis: size // parts
    for axis, (size, parts) in enumerate(zip(x.shape, scale_shape, strict=True))
  }
  found = qwix.quantize(
    x.astype(jnp.float32),
    _QTYPES[kind],
    channelwise_axes=[axis for axis, tile in tiles.items() if tile == 1],
    tiled_axes={axis: tile for axis, tile in tiles.items() if tile > 1},
  )
  values = found.qvalue if kind == "int8" else _pack(found.qvalue)
  return values, found.scale


def dequantize(matrix: Mapping[str, jax.Array], dtype: Any) -> jax.Array:
  """The matrix float[...] in `dtype` that {kind: values, "scale": ...} is."""
  import qwix

  kind = kind_of(matrix)
  values = matrix[kind]
  if kind != "int8":
    values = _unpack(values, kind)
  array = qwix.QArray(values, matrix[SCALE], qtype=_QTYPES[kind])
  return qwix.dequantize(array).astype(dtype)


def is_quantized(matrix: Any) -> bool:
  """Whether a parameter is a pair of arrays."""
  return isinstance(matrix, Mapping)


def kind_of(matrix: Mapping[str, Any]) -> str:
  """Which of KINDS {kind: values, "scale": ...} is."""
  (kind,) = matrix.keys() - {SCALE}
  return kind


def split(name: str) -> tuple[str, str] | None:
  """'llm/.../linear/int8' -> ('llm/.../linear', 'int8'), else None.

  The scale of a quantized matrix is told from that of a norm by the name of
  what it is the scale of.
  """
  matrix, _, last = name.rpartition("/")
  if last in (*KINDS, SCALE) and summed_axes(matrix) is not None:
    return matrix, last
  return None


def full_shape(kind: str, values: Any) -> tuple[int, ...]:
  """The shape of the matrix whose values, or their shape, are given."""
  *rest, last = getattr(values, "shape", values)
  return (*rest, last if kind == "int8" else 2 * last)


def _tile(size):
  return max(n for n in range(1, min(TILE, size) + 1) if size % n == 0)


def _pack(values):
  low, high = jnp.split(values.astype(jnp.uint8) & 15, 2, axis=-1)
  return low | (high << 4)


def _unpack(values, kind):
  both = jnp.concatenate([values & 15, values >> 4], axis=-1)
  if kind == "nf4":
    return both.astype(jnp.uint4)
  both = both.astype(jnp.int8)
  return jnp.where(both > 7, both - 16, both)
