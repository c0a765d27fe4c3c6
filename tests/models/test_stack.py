"""The layers of a scan: plain values and gradients, and little that is kept."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import core

from paligemma.models import gemma, vit
from paligemma.models.stack import REMAT_POLICIES, scan_layers
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


def scanned(params, x, *, dtype="float32", num_microbatches=1):
  return scan_layers(
    block,
    params,
    x,
    LAYERS,
    ROWS,
    dtype=dtype,
    num_microbatches=num_microbatches,
  )[0]


def gradients(run, names):
  """Value, gradients of some parameters, gradient of x."""

  def total(some, x):
    return jnp.sum(jnp.sin(run({**PARAMS, **some}, x)))

  some = {name: PARAMS[name] for name in names}
  return jax.jit(jax.value_and_grad(total, (0, 1)))(some, X)


@pytest.mark.parametrize("names", [["trained"], ["norm", "frozen"], []])
@pytest.mark.parametrize("num_microbatches", [1, 2, 3])
def test_values_and_gradients_are_those_of_the_layers(num_microbatches, names):
  run = functools.partial(scanned, num_microbatches=num_microbatches)
  np.testing.assert_allclose(run(PARAMS, X), plain(PARAMS, X), 1e-5, 1e-5)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
    gradients(run, names),
    gradients(plain, names),
  )


@pytest.mark.parametrize("num_microbatches", [1, 3])
def test_what_layers_share_has_a_gradient(num_microbatches):
  def by_shared(run, shared):
    return jax.grad(lambda s: jnp.sum(jnp.sin(run(s))))(shared)

  def scan(shared):
    return scan_layers(
      lambda p, x, layer, shared, part: block(p, x, layer, shared[0], part),
      PARAMS,
      X,
      LAYERS,
      (shared, ROWS),
      dtype="float32",
      num_microbatches=num_microbatches,
    )[0]

  def layers(shared):
    x = X
    for i in range(L):
      here, layer = jax.tree.map(lambda p, i=i: p[i], (PARAMS, LAYERS))
      x, _ = block(here, x, layer, shared, 0)
    return x

  shared = ROWS.astype(np.float32)
  np.testing.assert_allclose(
    by_shared(scan, shared), by_shared(layers, shared), rtol=1e-4, atol=1e-4
  )


def test_over_devices():
  mesh = sharding.make_mesh(data=2, model=4)
  expected = gradients(plain, PARAMS)
  with jax.set_mesh(mesh):
    found = gradients(functools.partial(scanned, num_microbatches=3), PARAMS)
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
  run = functools.partial(scanned, dtype="bfloat16", num_microbatches=2)
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


def test_every_microbatch_has_its_number():
  def number(params, x, layer, rows, part):
    return x + params["w"] * 0 + part, ()

  params = {"w": jnp.ones((L,))}
  out, _ = scan_layers(
    number,
    params,
    jnp.zeros((B, 1, 1)),
    (),
    (),
    dtype="float32",
    num_microbatches=3,
  )
  np.testing.assert_array_equal(out[:, 0, 0], [0, 0, L, L, 2 * L, 2 * L])


@pytest.mark.parametrize("num_microbatches", [1, 3])
def test_what_the_blocks_give_out(num_microbatches):
  _, out = scan_layers(
    block,
    PARAMS,
    X,
    LAYERS,
    ROWS,
    dtype="float32",
    num_microbatches=num_microbatches,
  )
  x = X
  for i in range(L):
    here, layer = jax.tree.map(lambda p, i=i: p[i], (PARAMS, LAYERS))
    x, expected = block(here, x, layer, ROWS, 0)
    np.testing.assert_allclose(out["y"][i], expected["y"], 1e-5, 1e-5)


def test_what_the_blocks_give_out_has_no_gradient():
  def total(params):
    x, out = scan_layers(
      block, params, X, LAYERS, ROWS, dtype="float32", num_microbatches=1
    )
    return jnp.sum(x) + jnp.sum(out["y"])

  with pytest.raises(ValueError, match=r"have no gradient.*set remat_policy"):
    jax.grad(total)(PARAMS)


def make_tower(name, **fields):
  """A small tower, and what its __call__ takes."""
  rng = np.random.default_rng(0)
  sizes = {"width": 14, "depth": 3, "mlp_dim": 67, "num_heads": 2}
  if name == "vit":
    image = rng.uniform(-1, 1, (2, 6, 10, 3)).astype(np.float32)
    return vit.Model(patch_size=2, **{**sizes, **fields}), (image,)
  sizes |= {"num_kv_heads": 1, "head_dim": 10, "vocab_size": 3}
  x = rng.standard_normal((2, 13, 14)).astype(np.float32)
  mask = np.ones((2, 13), bool)
  return gemma.Model(**{**sizes, **fields}), (x, mask, mask.astype(np.int32))


def draw(model, *inputs):
  shapes = jax.eval_shape(model.init, jax.random.key(0), *inputs)["params"]
  rng = np.random.default_rng(1)
  return jax.tree.map(
    lambda x: (0.3 * rng.standard_normal(x.shape)).astype(np.float32), shapes
  )


@pytest.mark.parametrize("tower", ["vit", "gemma"])
def test_bytes_that_each_policy_keeps(tower):
  def kept(policy):
    model, inputs = make_tower(tower, dtype="bfloat16", remat_policy=policy)
    params = draw(model, *inputs)

    def run(params):
      return model.apply({"params": params}, *inputs)[0]

    _, residuals = jax.eval_shape(lambda p: jax.vjp(run, p), params)
    shapes = [x.shape for x in jax.tree.leaves(params)]
    return sum(
      x.size * x.dtype.itemsize
      for x in jax.tree.leaves(residuals)
      if x.shape not in shapes
    )

  found = {policy: kept(policy) for policy in REMAT_POLICIES}
  assert found["auto"] == found["block_inputs"]
  assert found["products"] > 2 * found["auto"]
  assert found["none"] > 1.5 * found["products"]


@pytest.mark.parametrize("tower", ["vit", "gemma"])
@pytest.mark.parametrize("policy", ["products", "products_unrolled"])
def test_with_products_none_is_computed_again(tower, policy):
  """The gradients are the same, and there are as many products as without."""

  def gradient(policy):
    model, inputs = make_tower(tower, remat_policy=policy)
    params = draw(model, *inputs)

    def run(params):
      return jnp.sum(model.apply({"params": params}, *inputs)[0] ** 2)

    found = jax.jit(jax.grad(run))
    return found(params), count_products(jax.make_jaxpr(found)(params).jaxpr)

  expected, least = gradient("none")
  found, count = gradient(policy)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, 1e-4, 1e-4), found, expected
  )
  _, most = gradient("block_inputs")
  scores = 3 * 2  # of queries and keys and of their softmax and values
  assert least <= count <= least + scores < most


def count_products(jaxpr):
  """Matrix products that a program runs."""
  total = 0
  for eqn in jaxpr.eqns:
    times = eqn.params["length"] if eqn.primitive.name == "scan" else 1
    total += eqn.primitive.name == "dot_general"
    for inner in core.jaxprs_in_params(eqn.params):
      total += times * count_products(inner)
  return total


@pytest.mark.parametrize("tower", ["vit", "gemma"])
def test_dropout_is_that_of_the_seed_whatever_is_kept(tower):
  def run(**fields):
    model, inputs = make_tower(tower, dropout=0.5, **fields)
    path = jax.jit(functools.partial(model.apply, train=True))
    rngs = {"dropout": jax.random.key(0)}
    return path({"params": draw(model, *inputs)}, *inputs, rngs=rngs)[0]

  np.testing.assert_allclose(
    run(remat_policy="block_inputs"), run(remat_policy="none"), 1e-4, 1e-4
  )


@pytest.mark.parametrize("policy", REMAT_POLICIES)
@pytest.mark.parametrize(
  ("tower", "scan", "last_layer"),
  [
    ("vit", True, lambda x: x["Transformer"]["encoderblock"]),
    ("vit", False, lambda x: x["Transformer"]["encoderblock_2"]),
    ("gemma", True, lambda x: x["layers"]),
    ("gemma", False, lambda x: x["layers"]["2"]),
  ],
)
def test_captured_intermediates_show_the_layers(
  tower, scan, last_layer, policy
):
  model, inputs = make_tower(tower, scan=scan, remat_policy=policy)
  variables = {"params": draw(model, *inputs)}
  (_, out), captured = model.apply(
    variables, *inputs, capture_intermediates=True
  )
  expected = out["encoder"]["pre_ln"] if tower == "vit" else out["encoded"]
  found = last_layer(captured["intermediates"])["__call__"][0][0]
  found = found[2] if scan else found
  np.testing.assert_allclose(found, expected, 1e-4, 1e-4)
