"""What only CPUs need: right, and needed still."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paligemma import quantization
from paligemma.models import cpu, linear

SHAPE = 701, 67
TABLE = jax.random.normal(jax.random.key(0), SHAPE)
INT8 = quantization.quantize("llm/embedder/input_embedding", TABLE, "int8")
TABLES = {"bfloat16": TABLE.astype(jnp.bfloat16), "int8": INT8["int8"]}
INDEX = jnp.array([[4, 0, 4], [2, 6, 1]])


def compiled(function, *args):
  return jax.jit(function).lower(*args).compile().as_text()


def rows(number):
  return jax.random.normal(jax.random.key(1), (number, SHAPE[1]), jnp.bfloat16)


def observing():
  """A program that doubles, and a list of what it saw when it was traced."""
  found = []

  def double(x):
    found.append(cpu.is_matvec_faster(rows(2), TABLES["bfloat16"]))
    return 2 * x

  return cpu.fast_math_jit(double), found


class TestFastMathJit:
  def test_it_is_known_while_a_program_is_traced_and_never_after(self):
    program, found = observing()
    assert program(3) == 6
    assert program(5) == 10
    assert found == [True]
    assert not cpu.is_matvec_faster(rows(2), TABLES["bfloat16"])
    assert program.num_compiled() == 1

  def test_an_error_ends_it(self):
    def fail():
      raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
      cpu.fast_math_jit(fail)()
    assert not cpu.is_matvec_faster(rows(2), TABLES["bfloat16"])

  def test_another_jit_says_how_it_is_compiled(self):
    program, found = observing()
    assert jax.jit(lambda x: program(x) + program(3))(5) == 16
    assert jax.jit(lambda: program(7))() == 14
    assert jax.eval_shape(program, 1).shape == ()
    assert found and not any(found)

  def test_arguments_of_jit_are_passed_on(self):
    program = cpu.fast_math_jit(lambda x, n: x * n, static_argnames="n")
    for n in (2, 3, 2):
      assert program(5, n=n) == 5 * n
    assert program.num_compiled() == 2

  def test_nan_and_inf_stay_what_they_are(self):
    x = jnp.array([[1.0, jnp.nan, 2.0], [1.0, -jnp.inf, 2.0]])

    def look(x):
      return jnp.isnan(x), jnp.max(x, 1), jnp.sum(x, 1), jnp.exp(x)

    found, expected = cpu.fast_math_jit(look)(x), jax.jit(look)(x)
    for ours, theirs in zip(found, expected, strict=True):
      np.testing.assert_array_equal(ours, theirs)

  def test_without_it_sums_are_taken_one_by_one(self):
    x, table = rows(2), TABLES["bfloat16"]
    one_by_one = np.zeros((2, len(table)), np.float32)
    for i in range(SHAPE[1]):  # products of two bfloat16 are exact
      one_by_one += np.float32(x)[:, None, i] * np.float32(table)[:, i]
    options = {
      "xla_backend_optimization_level": 3,
      "xla_llvm_disable_expensive_passes": False,
    }
    plain = jax.jit(cpu.matvec, compiler_options=options)
    np.testing.assert_array_equal(plain(x, table), one_by_one)


class TestMatvec:
  @pytest.mark.parametrize("jit", [cpu.fast_math_jit, jax.jit])
  @pytest.mark.parametrize("kind", TABLES)
  @pytest.mark.parametrize("number", [2, 3])
  def test_the_product(self, number, kind, jit):
    x, table = rows(number), TABLES[kind]
    out = jit(cpu.matvec)(x, table)
    assert out.dtype == jnp.float32
    expected = np.asarray(x, np.float64) @ np.asarray(table, np.float64).T
    np.testing.assert_allclose(out, expected, rtol=1e-6, atol=1e-4)

  def test_a_loop_keeps_no_float32_table(self):
    def run(x, table):
      def step(_, x):
        total = cpu.matvec(x, table).sum(1, keepdims=True)
        return x + total.astype(x.dtype)

      return jax.lax.fori_loop(0, 5, step, x)

    program = jax.jit(run).lower(rows(2), TABLES["bfloat16"]).compile()
    assert program.memory_analysis().temp_size_in_bytes < TABLE.size

  @pytest.mark.parametrize(
    ("number", "table", "faster"),
    [
      (1, TABLES["bfloat16"], False),
      (2, TABLES["bfloat16"], True),
      (5, TABLES["bfloat16"], False),
      (5, TABLES["int8"], True),
      (17, TABLES["int8"], False),
      (2, TABLE, False),
      (2, None, False),  # of 4 bits
    ],
  )
  def test_when_it_is_faster(self, number, table, faster):
    found = []
    cpu.fast_math_jit(
      lambda: found.append(cpu.is_matvec_faster(rows(number), table))
    )()
    assert found == [faster]

  def test_a_product_still_converts_or_packs_the_table(self):
    def multiply(x, table):
      return linear.product("XD,VD->XV", x, table)

    int8 = compiled(multiply, rows(4), INT8)
    assert "bf16[701,67]{1,0} convert" in int8
    # Of YNNPACK, which packs it at every call.
    assert "ynn_fusion" in compiled(multiply, rows(4), TABLES["bfloat16"])
    for table in TABLES.values():
      ours = compiled(cpu.matvec, rows(4), table)
      assert "ynn_fusion" not in ours
      assert "bf16[701,67]{1,0} convert" not in ours


class TestGather:
  @pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
  def test_rows_and_gradients_are_those_of_jnp(self, dtype):
    table = jax.random.normal(jax.random.key(0), (7, 5)).astype(dtype)
    expected = jnp.take(table, INDEX, axis=0)
    assert cpu.gather(table, INDEX).dtype == dtype
    np.testing.assert_array_equal(cpu.gather(table, INDEX), expected)

    def total(take, table):
      return jnp.sum(jnp.sin(take(table, INDEX).astype(jnp.float32)))

    plain = jax.grad(lambda t: total(lambda t, i: jnp.take(t, i, axis=0), t))
    np.testing.assert_allclose(
      jax.grad(lambda t: total(cpu.gather, t))(table).astype(np.float32),
      plain(table).astype(np.float32),
      rtol=1e-6,
    )

  def test_the_table_is_not_converted_as_xla_still_does(self):
    def plain(table, index):
      return jnp.take(table, index, axis=0)

    args = (
      jax.ShapeDtypeStruct((701, 5), jnp.bfloat16),
      jax.ShapeDtypeStruct((3,), jnp.int32),
    )
    assert "f32[701,5]" in compiled(plain, *args)
    assert "f32[701,5]" not in compiled(cpu.gather, *args)
