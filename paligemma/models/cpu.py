"""What only XLA on CPUs needs: four workarounds, each as of jax 0.10.2.

Gains are those of an answer of nine tokens by a decoder of 157 million
parameters in bfloat16 with PaliGemma's vocabulary, on two cores with AVX-512.
They were measured while other programs ran on the machine, so they are rough.
`tests/models/test_cpu.py` fails when XLA no longer needs one of them.
"""

import contextvars
import functools
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Num

# Up to so many rows, `matvec` is faster than a product.
_MOST_ROWS = {"bfloat16": 4, "int8": 16}

# Sums in any order, but nan and inf are respected, and divisions exact.
_FAST_MATH = {
  "xla_cpu_enable_fast_math": True,
  "xla_cpu_fast_math_honor_nans": True,
  "xla_cpu_fast_math_honor_infs": True,
  "xla_cpu_fast_math_honor_division": True,
  "xla_cpu_fast_math_honor_functions": True,
}

_is_fast_math = contextvars.ContextVar("is_fast_math", default=False)


def fast_math_jit(function: Callable, **options: Any) -> Callable:
  """jax.jit, whose program for CPUs may take sums in another order.

  LLVM adds numbers one by one unless it may reorder them; then it adds 16 at a
  time. Only `matvec` needs that (gain: 3.07 times for two rows), as XLA's own
  products and sums are fast either way. Within another jax.jit, whose options
  count, it is jax.jit.

  Returns:
    The compiled function; its `num_compiled()` says how often it was compiled.
  """

  @functools.wraps(function)
  def with_fast_math(*args, **kwargs):
    token = _is_fast_math.set(True)
    try:
      return function(*args, **kwargs)
    finally:
      _is_fast_math.reset(token)

  on_cpus = jax.jit(with_fast_math, compiler_options=_FAST_MATH, **options)
  otherwise = jax.jit(function, **options)

  @functools.wraps(function)
  def run(*args, **kwargs):
    if jax.default_backend() != "cpu":
      return otherwise(*args, **kwargs)
    is_nested = isinstance(jnp.zeros(()), jax.core.Tracer)
    return (otherwise if is_nested else on_cpus)(*args, **kwargs)

  run.num_compiled = lambda: on_cpus._cache_size() + otherwise._cache_size()
  return run


def is_matvec_faster(
  x: Float[Array, "X D"], table: Num[Array, "V D"] | None
) -> bool:
  """Returns whether `matvec` is faster: for few rows in `fast_math_jit`."""
  if table is None or not _is_fast_math.get():
    return False
  return 2 <= len(x) <= _MOST_ROWS.get(table.dtype.name, 0)


def matvec(
  x: Float[Array, "X D"], table: Num[Array, "V D"]
) -> Float[Array, "X V"]:
  """Returns x times the transpose of a bfloat16 or int8 table, in float32.

  The table is read once. XLA's own product packs a bfloat16 table anew every
  time, and converts one in int8: 4 rows and 257152 x 512 numbers take 21 and
  107 ms, here 15 and 25, and 120 ms where sums may not be reordered. Gain: 1.28
  times for two rows.
  """
  # Without a barrier, a loop over tokens would store the table in float32.
  x, table = jax.lax.optimization_barrier((x, table))
  x, table = x.astype(jnp.float32), _as_float32(table)
  sums = jax.lax.reduce(
    tuple(row[None] * table for row in x),
    len(x) * (jnp.float32(0),),
    lambda left, right: tuple(map(operator.add, left, right)),
    dimensions=(1,),
  )
  return jnp.stack(sums)


def _as_float32(table):
  """Converts bits, as XLA would call a library for bfloat16."""
  if table.dtype != jnp.bfloat16:
    return table.astype(jnp.float32)
  bits = jax.lax.bitcast_convert_type(table, jnp.uint16).astype(jnp.uint32)
  return jax.lax.bitcast_convert_type(bits << 16, jnp.float32)


def psum_scatter(x: Array, axis_name: str, axis: int) -> Array:
  """jax.lax.psum_scatter(tiled=True), by way of psum between CPU processes.

  The reduce-scatter of Gloo overwrites what it is still sending
  (github.com/jax-ml/jax/issues/40830): the end of a gradient was wrong on
  process 0 in 33 of 120 steps of the tiny model. There is no gain in speed, and
  no test can tell when it is fixed, as it is a race.
  """
  if jax.default_backend() != "cpu" or jax.process_count() == 1:
    return jax.lax.psum_scatter(
      x, axis_name, scatter_dimension=axis, tiled=True
    )
  size = x.shape[axis] // jax.lax.axis_size(axis_name)
  first = jax.lax.axis_index(axis_name) * size
  return jax.lax.dynamic_slice_in_dim(
    jax.lax.psum(x, axis_name), first, size, axis
  )


@jax.custom_jvp
def gather(
  array: Num[Array, "N ..."], index: Int[Array, "..."]
) -> Num[Array, "..."]:
  """Returns jnp.take(array, index, axis=0), on the bits of its elements.

  XLA has no bfloat16 gather or slice: it converts the whole array to float32
  first, if in a loop over tokens then before it. Gain: 1.79 times.
  """
  # Without a barrier, a loop over tokens would store a copy of the bits.
  array, index = jax.lax.optimization_barrier((array, index))
  bits = jnp.dtype(f"uint{8 * array.dtype.itemsize}")
  array, dtype = jax.lax.bitcast_convert_type(array, bits), array.dtype
  rows = jnp.take(array, index, axis=0)
  return jax.lax.bitcast_convert_type(rows, dtype)


@gather.defjvp
def _(primals, tangents):
  return gather(*primals), jnp.take(tangents[0], primals[1], axis=0)
