"""The product of a few rows with a table, beside the plain product."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paligemma import quantization, reordered
from paligemma.models import few_rows

SHAPE = 701, 67
TABLE = jax.random.normal(jax.random.key(0), SHAPE)
TABLES = {
  "bfloat16": TABLE.astype(jnp.bfloat16),
  "int8": quantization.quantize("llm/embedder/input_embedding", TABLE, "int8"),
}


def exact(table):
  if quantization.is_quantized(table):
    return np.asarray(table["int8"], np.float64) * table["scale"]
  return np.asarray(table, np.float64)


@pytest.mark.parametrize("wrap", [reordered.Program, jax.jit])
@pytest.mark.parametrize("kind", TABLES)
@pytest.mark.parametrize("rows", [2, 3])
def test_the_product(rows, kind, wrap):
  x = jax.random.normal(jax.random.key(1), (rows, SHAPE[1]), jnp.bfloat16)
  out = wrap(few_rows.multiply)(x, TABLES[kind])
  assert out.dtype == jnp.float32
  expected = np.asarray(x, np.float64) @ exact(TABLES[kind]).T
  np.testing.assert_allclose(out, expected, atol=1e-4)


def test_a_loop_keeps_no_float32_table():
  def run(x, table):
    def step(_, x):
      total = few_rows.multiply(x, table).sum(1, keepdims=True)
      return x + total.astype(x.dtype)

    return jax.lax.fori_loop(0, 5, step, x)

  x = jax.ShapeDtypeStruct((2, SHAPE[1]), jnp.bfloat16)
  compiled = jax.jit(run).lower(x, TABLES["bfloat16"]).compile()
  assert compiled.memory_analysis().temp_size_in_bytes < TABLE.size


@pytest.mark.parametrize(
  ("rows", "table", "faster"),
  [
    (1, TABLES["bfloat16"], False),
    (2, TABLES["bfloat16"], True),
    (5, TABLES["bfloat16"], False),
    (5, TABLES["int8"], True),
    (17, TABLES["int8"], False),
    (2, TABLE, False),
    (2, {"nf4": jnp.zeros((701, 34), jnp.uint8), "scale": TABLE}, False),
  ],
)
def test_when_it_is_faster(rows, table, faster):
  x = jnp.zeros((rows, SHAPE[1]), jnp.bfloat16)
  found = []
  reordered.Program(lambda: found.append(few_rows.is_faster(x, table)))()
  assert found == [faster]
  assert not few_rows.is_faster(x, table)
