"""Reading rows of an array without converting all of it."""

import jax
import jax.numpy as jnp


@jax.custom_jvp
def take(array, index):
  """jnp.take(array, index, axis=0), on the bits of its elements.

  XLA on CPUs has no bfloat16 gather or slice: it would convert the whole array
  to float32 first, and in front of a loop at that (jax 0.10.2).

  Args:
    array: float[N, ...].
    index: int of any shape, in [0, N).

  Returns:
    float[*index.shape, ...], rows of the array in its dtype.
  """
  # Without it, a loop over tokens would keep a copy of the bits before itself.
  array, index = jax.lax.optimization_barrier((array, index))
  bits = jnp.dtype(f"uint{8 * array.dtype.itemsize}")
  array, dtype = jax.lax.bitcast_convert_type(array, bits), array.dtype
  rows = jnp.take(array, index, axis=0)
  return jax.lax.bitcast_convert_type(rows, dtype)


@take.defjvp
def _(primals, tangents):
  return take(*primals), jnp.take(tangents[0], primals[1], axis=0)
