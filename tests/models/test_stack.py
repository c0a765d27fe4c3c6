"""The layers of a scan: plain values and gradients, and little that is kept."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paligemma.models.stack import scan_layers
from paligemma.training import sharding

L, B, T, D = 3, 6, 5, 7
RNG = np.random.default_rng(0)


def matrix():
  return 0.3 * RNG.standard_normal((L, D, D)).astype(np.float32)


PARAMS = {
  "trained": {"w": matrix()},
  "frozen": {"w": matrix()},
  "norm": {"scale": RNG.standard_normal((L, D)).astype(np.float32)},
}
X = RNG.standard_normal((B, T, D)).astype(np.float32)
LAYERS = {"shift": np.arange(L)}
ROWS = RNG.integers(0, 3, (B, T))


def block(params, x, layer, rows, part):
  del part
  dtype = params["trained"]["w"].dtype
  y = x * (1 + params["norm"]["scale"][None, None])
  y = jnp.tanh(y.astype(dtype) @ params["trained"]["w"])
  y = (y @ params["frozen"]["w"]).astype(jnp.float32)
  return x + y * (rows + layer["shift"])[:, :, None], {"y": y}


def plain(params, x):
  for i in range(L):
    here, layer = jax.tree.map(lambda p, i=i: p[i], (params, LAYERS))
    x, _ = block(here, x, layer, ROWS, 0)
  return x


def scanned(params, x, *, dtype="float32", num_parts=1):
  return scan_layers(
    block, params, x, LAYERS, ROWS, dtype=dtype, num_parts=num_parts
  )[0]


def gradients(run, names):
  """Value, gradients of some parameters, gradient of x."""

  def total(some, x):
    return jnp.sum(jnp.sin(run({**PARAMS, **some}, x)))

  some = {name: PARAMS[name] for name in names}
  return jax.jit(jax.value_and_grad(total, (0, 1)))(some, X)


@pytest.mark.parametrize("names", [["trained"], ["norm", "frozen"], []])
@pytest.mark.parametrize("num_parts", [1, 2, 3])
def test_values_and_gradients_are_those_of_the_layers(num_parts, names):
  run = functools.partial(scanned, num_parts=num_parts)
  np.testing.assert_allclose(run(PARAMS, X), plain(PARAMS, X), 1e-5, 1e-5)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
    gradients(run, names),
    gradients(plain, names),
  )


def test_over_devices():
  mesh = sharding.make_mesh(data=2, model=4)
  expected = gradients(plain, PARAMS)
  with jax.set_mesh(mesh):
    found = gradients(functools.partial(scanned, num_parts=3), PARAMS)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
    found,
    expected,
  )


def test_one_rounded_input_a_layer_is_kept():
  run = functools.partial(scanned, dtype="bfloat16")
  _, residuals = jax.eval_shape(
    lambda x: jax.vjp(functools.partial(run, PARAMS), x), X
  )
  kept = [x for x in jax.tree.leaves(residuals) if x.shape == (L, B, T, D)]
  assert [x.dtype.name for x in kept] == ["bfloat16"]


def test_bfloat16_gradients_are_near():
  run = functools.partial(scanned, dtype="bfloat16", num_parts=2)
  found, expected = gradients(run, PARAMS), gradients(plain, PARAMS)

  def compare(a, b):
    assert a.dtype == jnp.float32
    difference = np.linalg.norm(a - b) / np.linalg.norm(b)
    assert difference < 0.1

  jax.tree.map(compare, found[1], expected[1])


def test_a_frozen_matrix_costs_no_gradient():
  def total(some, x):
    return jnp.sum(scanned({**PARAMS, **some}, x))

  def products(names):
    some = {name: PARAMS[name] for name in names}
    jaxpr = jax.make_jaxpr(jax.grad(total))(some, X)
    return str(jaxpr).count("dot_general")

  assert products(["trained"]) < products(["trained", "frozen"])


def test_every_part_has_its_number():
  def number(params, x, layer, rows, part):
    return x + params["w"] * 0 + part, ()

  params = {"w": jnp.ones((L,))}
  out, _ = scan_layers(
    number, params, jnp.zeros((B, 1, 1)), (), (), dtype="float32", num_parts=3
  )
  np.testing.assert_array_equal(out[:, 0, 0], [0, 0, L, L, 2 * L, 2 * L])


@pytest.mark.parametrize("num_parts", [1, 3])
def test_what_the_blocks_give_out(num_parts):
  _, out = scan_layers(
    block, PARAMS, X, LAYERS, ROWS, dtype="float32", num_parts=num_parts
  )
  x = X
  for i in range(L):
    here, layer = jax.tree.map(lambda p, i=i: p[i], (PARAMS, LAYERS))
    x, expected = block(here, x, layer, ROWS, 0)
    np.testing.assert_allclose(out["y"][i], expected["y"], 1e-5, 1e-5)


def test_what_the_blocks_give_out_has_no_gradient():
  def total(params):
    x, out = scan_layers(
      block, params, X, LAYERS, ROWS, dtype="float32", num_parts=1
    )
    return jnp.sum(x) + jnp.sum(out["y"])

  with pytest.raises(
    ValueError, match=r"no gradient passes .*set remat_policy"
  ):
    jax.grad(total)(PARAMS)
