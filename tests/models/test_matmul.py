"""Products that accumulate in float32, forward and backward."""

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest

from paligemma.models.matmul import dot_general, einsum_float32

RNG = np.random.default_rng(0)
X = RNG.standard_normal((3, 5, 67)).astype(np.float32)
Y = RNG.standard_normal((67, 11)).astype(np.float32)
OUT = RNG.standard_normal((3, 5, 11)).astype(np.float32)


def value_and_grads(dtype):
  def total(x, y):
    out = einsum_float32("BTD,DF->BTF", x, y)
    assert out.dtype == jnp.float32
    return jnp.sum(out * OUT)

  factors = (jnp.asarray(X, dtype), jnp.asarray(Y, dtype))
  return jax.value_and_grad(total, (0, 1))(*factors)


@pytest.mark.parametrize(
  ("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 0.1)]
)
def test_gradients(dtype, tolerance):
  value, (by_x, by_y) = value_and_grads(dtype)
  assert (by_x.dtype, by_y.dtype) == (dtype, dtype)
  expected = {
    "value": np.sum((X @ Y) * OUT),
    "x": OUT @ Y.T,
    "y": np.einsum("BTD,BTF->DF", X, OUT),
  }
  found = {"value": value, "x": by_x, "y": by_y}
  for name, array in expected.items():
    scale = np.abs(array).max()
    np.testing.assert_allclose(
      np.asarray(found[name], np.float32) / scale,
      array / scale,
      rtol=0,
      atol=tolerance / 10,
      err_msg=name,
    )


def equations(jaxpr):
  for equation in jaxpr.eqns:
    yield equation
    for inner in jax.extend.core.jaxprs_in_params(equation.params):
      yield from equations(inner)


def test_bfloat16_goes_back_in_bfloat16():
  def total(x, y):
    return jnp.sum(einsum_float32("BTD,DF->BTF", x, y) * OUT)

  factors = (jnp.asarray(X, "bfloat16"), jnp.asarray(Y, "bfloat16"))
  jaxpr = jax.make_jaxpr(jax.grad(total, (0, 1)))(*factors)
  products = [
    equation
    for equation in equations(jaxpr.jaxpr)
    if equation.primitive.name == "dot_general"
  ]
  assert len(products) == 3
  dtypes = {v.aval.dtype.name for e in products for v in e.invars}
  assert dtypes == {"bfloat16"}


def test_small_gradients_of_float16_survive():
  def total(x, y):
    return jnp.sum(einsum_float32("BTD,DF->BTF", x, y)) * 1e-9

  large = jnp.full((1, 1, 2), 3e4, jnp.float16)
  grad = jax.grad(total)(jnp.ones_like(large), large[0].T)
  np.testing.assert_allclose(grad, 3e-5, rtol=1e-2)


def test_dot_general_accumulates_in_float32():
  ones = jnp.full((1, 1024), 1 + 2**-7, jnp.bfloat16)
  axes = (((1,), (1,)), ((), ()))
  jaxpr = str(jax.make_jaxpr(lambda x: dot_general(x, x, axes))(ones))
  assert "preferred_element_type=float32" in jaxpr
  assert dot_general(ones, ones, axes).dtype == jnp.bfloat16


@pytest.mark.parametrize(
  ("equation", "x", "y"),
  [
    ("BTD,CKDH->CBTKH", (1, 1, 67), (2, 3, 67, 11)),
    ("BTNH,NHD->BTD", (1, 1, 5, 7), (5, 7, 61)),
    ("XD,VD->XV", (1, 67), (701, 67)),
  ],
)
def test_a_single_row_leaves_the_matrix_in_bfloat16(equation, x, y):
  x, y = (
    jax.random.normal(jax.random.key(len(shape)), shape, jnp.bfloat16)
    for shape in (x, y)
  )
  multiply = jax.jit(einsum_float32, static_argnums=0)
  program = multiply.lower(equation, x, y).compile().as_text()
  assert f"f32[{','.join(map(str, y.shape))}]" not in program
  exact = np.einsum(equation, *(np.asarray(z, np.float64) for z in (x, y)))
  np.testing.assert_allclose(multiply(equation, x, y), exact, atol=1e-4)
