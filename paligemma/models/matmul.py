"""Matrix products that accumulate in float32, forward and backward."""

import functools
import re

import jax
import jax.numpy as jnp


def einsum_float32(equation, x, y):
  """jnp.einsum of two arrays in float32, whatever their dtype.

  In the backward pass of bfloat16 the gradient of the result is rounded to it
  first, so that all three products are those of bfloat16: JAX itself would
  convert the other factor, a matrix of weights, to float32. The small
  gradients of float16 (5.96e-8 is its smallest number) stay float32.

  On CPUs, too, a bfloat16 product is twice as fast if its output is float32
  (jax 0.10.2, AVX-512): ask for it and round.

  Args:
    equation: str, of two factors; a letter that stands in one alone also
      stands in the result.
    x, y: float arrays of one dtype.

  Returns:
    float32 array.
  """
  if x.dtype == jnp.bfloat16:
    return _einsum_bfloat16(equation, x, y)
  return jnp.einsum(equation, x, y, preferred_element_type=jnp.float32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _einsum_bfloat16(equation, x, y):
  plain = functools.partial(
    jnp.einsum, equation, preferred_element_type=jnp.float32
  )
  left, right, out = re.split(",|->", equation)
  rows = [i for i, axis in enumerate(left) if axis not in right]
  if not rows or any(x.shape[i] > 1 for i in rows):
    return plain(x, y)

  def twice(x, y):
    """The product of a row alone, which is taken twice.

    For one row, XLA on CPUs converts all of y to float32, or keeps a copy of
    it so in front of a loop over tokens (jax 0.10.2).
    """
    axis = rows[0]
    both = plain(jnp.repeat(x, 2, axis), y)
    return jax.lax.slice_in_dim(both, 0, 1, axis=out.index(left[axis]))

  return jax.lax.platform_dependent(x, y, cpu=twice, default=plain)


def _fwd(equation, x, y):
  return _einsum_bfloat16(equation, x, y), (x, y)


def _bwd(equation, factors, gradient):
  x, y = factors
  left, right, out = re.split(",|->", equation)
  gradient = gradient.astype(jnp.bfloat16)
  by_x = _einsum_bfloat16(f"{out},{right}->{left}", gradient, y)
  by_y = _einsum_bfloat16(f"{left},{out}->{right}", x, gradient)
  return by_x.astype(x.dtype), by_y.astype(y.dtype)


_einsum_bfloat16.defvjp(_fwd, _bwd)


def dot_general(x, y, *args, **kwargs):
  """lax.dot_general by way of float32, for layers of Flax."""
  kwargs["preferred_element_type"] = jnp.float32
  return jax.lax.dot_general(x, y, *args, **kwargs).astype(x.dtype)
