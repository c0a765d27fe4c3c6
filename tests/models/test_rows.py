"""Rows by their bits: the rows, and their gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paligemma.models.rows import take

INDEX = np.array([[4, 0, 4], [2, 6, 1]])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_rows_are_those_of_jnp(dtype):
  table = jax.random.normal(jax.random.key(0), (7, 5)).astype(dtype)
  expected = jnp.take(table, INDEX, axis=0)
  assert take(table, INDEX).dtype == dtype
  np.testing.assert_array_equal(take(table, INDEX), expected)

  def total(take, table):
    return jnp.sum(jnp.sin(take(table, INDEX).astype(jnp.float32)))

  plain = jax.grad(lambda t: total(lambda t, i: jnp.take(t, i, axis=0), t))
  np.testing.assert_allclose(
    jax.grad(lambda t: total(take, t))(table).astype(np.float32),
    plain(table).astype(np.float32),
    rtol=1e-6,
  )


def test_a_bfloat16_table_is_not_converted():
  table = jax.ShapeDtypeStruct((701, 5), jnp.bfloat16)
  index = jax.ShapeDtypeStruct((3,), jnp.int32)
  program = jax.jit(take).lower(table, index).compile().as_text()
  assert "f32[701,5]" not in program
