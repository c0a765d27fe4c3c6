"""Matrices and their products: in few bits, and as Flax has them."""

import functools
import re

import flax.linen as nn
import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from paligemma import quantization, tree
from paligemma.lora import config as lora_lib
from paligemma.models import device, gemma, linear, vit
from paligemma.planning import collectives
from paligemma.training import sharding

# Sizes of axes; a last one of a matrix must be even in 4 bits.
SIZES = dict(B=2, T=5, X=11, D=14, N=3, K=2, H=10, F=22, V=13)
SIZES |= dict(I=14, J=6, O=22, P=10) | {"2": 2, "3": 3}
_IMG = "img/Transformer/encoderblock_0"
_MHA = f"{_IMG}/MultiHeadDotProductAttention_0"
# Every equation, and the name of the matrix in it.
EQUATIONS = {
  "BTD,3NDH->3BTNH": "llm/layers/0/attn/qkv_einsum/w",
  "BTD,NDH->BTNH": "llm/layers/0/attn/q_einsum/w",
  "BTD,2KDH->2BTKH": "llm/layers/0/attn/kv_einsum/w",
  "BTNH,NHD->BTD": "llm/layers/0/attn/attn_vec_einsum/w",
  "BTD,DF->BTF": "llm/layers/0/mlp/gating_einsum",
  "BTD,2DF->2BTF": "llm/layers/0/mlp/gating_einsum",
  "BTF,FD->BTD": "llm/layers/0/mlp/linear",
  "XD,VD->XV": "llm/embedder/input_embedding",
  "BTI,IO->BTO": f"{_IMG}/MlpBlock_0/Dense_0/kernel",
  "BTI,IOP->BTOP": f"{_MHA}/query/kernel",
  "BTIJ,IJO->BTO": f"{_MHA}/out/kernel",
  "BI,IO->BO": "img/head/kernel",
}


def draw(axes, seed):
  rng = np.random.default_rng(seed)
  shape = [SIZES[axis] for axis in axes]
  return jnp.asarray(rng.standard_normal(shape), jnp.float32)


def factors(equation):
  left, right = equation.split("->")[0].split(",")
  return draw(left, 0), draw(right, 1)


@pytest.mark.parametrize("kind", quantization.KINDS)
@pytest.mark.parametrize("equation", EQUATIONS)
def test_product_of_a_quantized_matrix(equation, kind):
  x, w = factors(equation)
  few = quantization.quantize(EQUATIONS[equation], w, kind)
  full = quantization.dequantize(few, jnp.float32)
  assert 0 < jnp.abs(full - w).max() < 1.0
  expected = jnp.einsum(equation, x, full)
  found = linear.product(equation, x, few)
  assert found.dtype == jnp.float32
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("equation", EQUATIONS)
def test_product_of_a_plain_matrix(equation):
  x, w = factors(equation)
  np.testing.assert_array_equal(
    linear.product(equation, x, w), linear.einsum_float32(equation, x, w)
  )


@pytest.mark.parametrize("kind", [None, *quantization.KINDS])
@pytest.mark.parametrize("equation", [x for x in EQUATIONS if "BTD," in x])
@pytest.mark.parametrize("platform", ["cpu", "default"])
def test_product_of_one_token_is_that_of_several(
  equation, kind, platform, monkeypatch
):
  def choose(*args, **paths):
    return paths[platform](*args)

  monkeypatch.setattr(jax.lax, "platform_dependent", choose)
  x, w = factors(equation)
  if kind is not None:
    w = quantization.quantize(EQUATIONS[equation], w, kind)
  whole = linear.product(equation, x, w)
  found = linear.product(equation, x[:, 2:3], w)
  axis = equation.split("->")[1].index("T")
  expected = jax.lax.slice_in_dim(whole, 2, 3, axis=axis)
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", quantization.KINDS)
@pytest.mark.parametrize("equation", EQUATIONS)
def test_product_of_one_row_on_an_old_gpu(equation, kind, monkeypatch):
  taken = []

  def one_row(*args):
    taken.append(True)
    return by_sums(*args)

  by_sums = linear._one_row
  t4 = jax.sharding.AbstractDevice("Tesla T4", 1, "gpu")
  monkeypatch.setattr(device, "current", lambda: t4)
  monkeypatch.setattr(linear, "_one_row", one_row)
  x, w = factors(equation)
  x = jax.lax.slice(x, (0,) * x.ndim, (1,) * (x.ndim - 1) + x.shape[-1:])
  if equation.startswith(("BTNH", "BTIJ")):
    x = factors(equation)[0][:1, :1]
  few = quantization.quantize(EQUATIONS[equation], w, kind)
  found = linear.product(equation, x, few)
  full = quantization.dequantize(few, jnp.float32)
  np.testing.assert_allclose(
    found, linear.einsum_float32(equation, x, full), rtol=1e-5, atol=1e-5
  )
  # The vocabulary has an odd number of tokens here.
  assert bool(taken) == (equation != "XD,VD->XV")

  def total(multiply, weight):
    product = functools.partial(multiply, equation)
    return jax.grad(lambda x: jnp.sum(jnp.sin(product(x, weight))))

  np.testing.assert_allclose(
    total(linear.product, few)(x),
    total(linear.einsum_float32, full)(x),
    rtol=1e-4,
    atol=1e-5,
  )


def test_a_token_is_multiplied_by_a_weight_as_it_is_stored():
  # As XLA would else transpose or convert it, on GPUs: axis N is a batch axis,
  # and there are two rows.
  x, w = factors("BTD,NDH->BTNH")
  x, w = x[:1, :1].astype(jnp.bfloat16), w.astype(jnp.bfloat16)
  program = jax.jit(functools.partial(linear.product, "BTD,NDH->BTNH"))
  lowered = program.trace(x, w).lower(lowering_platforms=("cuda",))
  hlo = lowered.as_text()
  (product,) = re.findall(r"dot_general %\w+, %\w+, (.*)", hlo)
  assert "tensor<3x14x10xbf16>" in product
  assert "tensor<3x2x1x14xbf16>" in product
  assert "batching_dims = [0] x [0]" in product


@pytest.mark.parametrize("kind", quantization.KINDS)
def test_gradient_goes_through_a_quantized_matrix(kind):
  equation = "BTD,NDH->BTNH"
  x, w = factors(equation)
  few = quantization.quantize(EQUATIONS[equation], w, kind)
  full = quantization.dequantize(few, jnp.float32)

  def loss(x, w):
    return jnp.sum(jnp.sin(linear.product(equation, x, w)))

  expected = jax.grad(loss)(x, full)
  np.testing.assert_allclose(
    jax.grad(loss)(x, few), expected, rtol=1e-4, atol=1e-5
  )


def test_these_are_the_equations_of_both_towers(monkeypatch):
  seen = set()

  def product(equation, x, weight, **how):
    seen.add(equation)
    return weights_product(equation, x, weight, **how)

  weights_product = linear.product
  for module in (gemma, linear):
    monkeypatch.setattr(module, "product", product)
  sizes = {"width": 12, "depth": 1, "mlp_dim": 8, "num_heads": 2}
  for kv_heads in (1, 2):
    model = gemma.Model(
      **sizes, num_kv_heads=kv_heads, head_dim=4, vocab_size=8
    )
    apply = functools.partial(model.init_with_output, jax.random.key(0))
    for length in (1, 3):
      x, ones = jnp.zeros((1, length, 12)), jnp.ones((1, length), int)
      jax.eval_shape(apply, x, ones.astype(bool), ones)
    jax.eval_shape(functools.partial(apply, method="compute_logits"), x)
  for pooling in ("none", "gap"):
    model = vit.Model(**sizes, patch_size=2, num_classes=6, pool_type=pooling)
    jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 4, 4, 3)))
  assert seen == EQUATIONS.keys()


def compiled(function, *args):
  return jax.jit(function).lower(*args).compile().as_text()


class TestOneRow:
  @pytest.mark.parametrize(
    ("equation", "x", "y"),
    [
      ("BTD,CKDH->CBTKH", (1, 1, 67), (2, 3, 67, 11)),
      ("BTNH,NHD->BTD", (1, 1, 5, 7), (5, 7, 61)),
      ("XD,VD->XV", (1, 67), (701, 67)),
    ],
  )
  def test_the_matrix_stays_in_bfloat16(self, equation, x, y):
    x, y = (
      jax.random.normal(jax.random.key(len(shape)), shape, jnp.bfloat16)
      for shape in (x, y)
    )
    multiply = functools.partial(linear.einsum_float32, equation)
    assert f"f32[{','.join(map(str, y.shape))}]" not in compiled(multiply, x, y)
    exact = np.einsum(equation, *(np.asarray(z, np.float64) for z in (x, y)))
    np.testing.assert_allclose(jax.jit(multiply)(x, y), exact, atol=1e-4)

  def test_xla_still_converts_it(self):
    def plain(x, y):
      return jnp.einsum("XD,VD->XV", x, y, preferred_element_type=jnp.float32)

    row, table = (
      jnp.zeros((1, 67), "bfloat16"),
      jnp.zeros((701, 67), "bfloat16"),
    )
    assert "f32[701,67]" in compiled(plain, row, table)


# As Flax would write it -> the same here, and the shape of the input.
LINEARS = {
  "Dense": (
    functools.partial(nn.Dense, 7),
    functools.partial(linear.Linear, (7,)),
    (2, 5, 11),
  ),
  "Dense, one axis": (
    functools.partial(nn.Dense, 7),
    functools.partial(linear.Linear, (7,)),
    (2, 11),
  ),
  "DenseGeneral out of heads": (
    functools.partial(nn.DenseGeneral, 7, axis=(-2, -1)),
    functools.partial(linear.Linear, (7,), axes=2),
    (2, 5, 3, 11),
  ),
  "DenseGeneral into heads": (
    functools.partial(nn.DenseGeneral, (3, 7)),
    functools.partial(linear.Linear, (3, 7)),
    (2, 5, 11),
  ),
}


def dot_general(x, y, *args, **kwargs):
  """lax.dot_general by way of float32, for layers of Flax."""
  kwargs["preferred_element_type"] = jnp.float32
  return jax.lax.dot_general(x, y, *args, **kwargs).astype(x.dtype)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", LINEARS)
def test_linear_is_that_of_flax(case, dtype):
  theirs, ours, shape = LINEARS[case]
  inits = {
    "kernel_init": nn.initializers.xavier_uniform(),
    "bias_init": nn.initializers.normal(1.0),
    "dtype": dtype,
  }
  theirs = theirs(**inits, dot_general=dot_general)
  ours = ours(**inits)
  x = jnp.asarray(np.random.default_rng(0).standard_normal(shape), jnp.float32)
  expected, variables = theirs.init_with_output(jax.random.key(0), x)
  found, mine = ours.init_with_output(jax.random.key(0), x)
  jax.tree.map(np.testing.assert_array_equal, mine, variables)
  assert found.dtype == expected.dtype
  np.testing.assert_allclose(
    np.float32(found), np.float32(expected), rtol=1e-6, atol=1e-6
  )


@pytest.mark.parametrize("kind", quantization.KINDS)
def test_linear_with_a_quantized_kernel(kind):
  model = linear.Linear((6, 10), "float32", nn.initializers.xavier_uniform())
  x = draw("BTI", 0)
  params = model.init(jax.random.key(0), x)["params"]
  name = EQUATIONS["BTI,IOP->BTOP"]
  few = quantization.quantize(name, params["kernel"], kind)
  full = quantization.dequantize(few, jnp.float32)
  expected = model.apply({"params": params | {"kernel": full}}, x)
  found = model.apply({"params": params | {"kernel": few}}, x)
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


class Adapted(nn.Module):
  """A projection with an adapter and nothing else."""

  lora: lora_lib.Lora | None
  dtype: str = "float32"

  @nn.compact
  def __call__(self, x, train=False):
    args = (self.lora, "llm/attn/q", x, (3, 7), self.dtype, train)
    return linear.adapt(*args)


def init_adapted(lora, x, **kwargs):
  """A module and its parameters, B random as well."""
  module = Adapted(lora, **kwargs)
  params = module.init(jax.random.key(0), x)["params"]
  b = params["lora_q"]["b"]
  assert not b.any()
  params["lora_q"]["b"] = jax.random.normal(jax.random.key(1), b.shape)
  return module, params


X = jax.random.normal(jax.random.key(0), (2, 5, 4, 11))


@pytest.mark.parametrize("rslora", [False, True])
def test_adapter_is_the_formula(rslora):
  lora = lora_lib.Lora(rank=5, alpha=3.0, rslora=rslora)
  module, params = init_adapted(lora, X)
  shapes = {name: x.shape for name, x in tree.flatten(params).items()}
  assert shapes == {"lora_q/a": (44, 5), "lora_q/b": (5, 21)}
  a, b = params["lora_q"]["a"], params["lora_q"]["b"]
  scale = 3.0 / (5**0.5 if rslora else 5)
  expected = scale * (X.reshape(2, 5, 44) @ a @ b).reshape(2, 5, 3, 7)
  found = module.apply({"params": params}, X)
  assert found.dtype == jnp.float32
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_adapter_in_bfloat16_adds_in_float32():
  module, params = init_adapted(lora_lib.Lora(), X, dtype="bfloat16")
  found = module.apply({"params": params}, X)
  assert found.dtype == jnp.float32
  exact = Adapted(lora_lib.Lora()).apply({"params": params}, X)
  off = np.abs(found - exact).max() / np.abs(exact).max()
  assert 1e-5 < off < 1e-2


class AdaptedProduct(nn.Module):
  equation: str
  lora: lora_lib.Lora

  @nn.compact
  def __call__(self, x, weight, train=False):
    return linear.adapted_product(
      self.equation, x, weight, self.lora, "llm/attn/q", train, rounds=False
    )


@pytest.mark.parametrize("per_example", [False, True])
@pytest.mark.parametrize("kind", [None, "int8", "int4"])
@pytest.mark.parametrize("equation", ["BTD,NDH->BTNH", "BTNH,NHD->BTD"])
def test_joined_products_are_those_apart(
  equation, kind, per_example, monkeypatch
):
  x, w = factors(equation)
  if kind is not None:
    w = quantization.quantize(EQUATIONS[equation], w, kind)
  module = AdaptedProduct(equation, lora_lib.Lora(rank=3, rslora=True))

  def draw(p):
    shape = (len(x), *p.shape) if per_example else p.shape
    return 0.3 * jax.random.normal(jax.random.key(p.size), shape)

  params = module.init(jax.random.key(0), x, w)["params"]
  params = jax.tree.map(draw, params)

  def total(params, x, w):
    return jnp.sum(jnp.sin(module.apply({"params": params}, x, w)))

  # A matrix that is not quantized may be trained, too.
  trained = (0, 1, 2) if kind is None else (0, 1)

  def products(params, x, w):
    run = jax.value_and_grad(total, argnums=trained)
    jaxpr = jax.make_jaxpr(run)(params, x, w).jaxpr
    names = [each.primitive.name for each in equations(jaxpr)]
    return run(params, x, w), names.count("concatenate")

  expected, few = products(params, x, w)
  t4 = jax.sharding.AbstractDevice("Tesla T4", 1, "gpu")
  monkeypatch.setattr(device, "current", lambda: t4)
  found, more = products(params, x, w)
  assert (more > few) == (not per_example)
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4),
    found,
    expected,
  )


def test_devices_gather_adapters_alone(monkeypatch):
  h200 = jax.sharding.AbstractDevice("NVIDIA H200", 1, "gpu")
  monkeypatch.setattr(device, "current", lambda: h200)
  equation = "BTD,NDH->BTNH"
  x, w = factors(equation)
  x = jnp.tile(x, (4, 1, 1))
  module = AdaptedProduct(equation, lora_lib.Lora(rank=8))
  mesh = sharding.make_mesh(data=8)

  def total(params, x, w):
    return jnp.sum(jnp.sin(module.apply({"params": params}, x, w)))

  with jax.set_mesh(mesh):
    params = module.init(jax.random.key(0), x, w)["params"]
    ranks = {"a": (None, "data"), "b": ("data",)}
    params = jax.tree_util.tree_map_with_path(
      lambda path, p: jax.device_put(
        p, NamedSharding(mesh, PartitionSpec(*ranks[path[-1].key]))
      ),
      params,
    )
    x = jax.device_put(x, sharding.batch_sharding(mesh))
    w = jax.device_put(w, NamedSharding(mesh, PartitionSpec()))
    compiled = jax.jit(jax.grad(total)).lower(params, x, w).compile()
  found = collectives.bytes_by_kind(collectives.find(compiled.as_text()))
  adapters = sum(p.nbytes for p in jax.tree.leaves(params))
  assert found["all-gather"] == adapters


def test_a_starts_as_in_peft():
  # Uniform within the root of 1 / 44 inputs.
  _, params = init_adapted(lora_lib.Lora(rank=97), X)
  a = np.asarray(params["lora_q"]["a"])
  bound = 44**-0.5
  assert 0.99 * bound < np.abs(a).max() <= bound
  np.testing.assert_allclose(a.std(), bound / 3**0.5, rtol=0.05)


@pytest.mark.parametrize("lora", [None, lora_lib.Lora(targets=["img/.*"])])
def test_without_adapter(lora):
  found, variables = Adapted(lora).init_with_output(jax.random.key(0), X)
  assert found == 0.0
  assert not variables


def test_dropout_is_on_in_training_alone():
  module, params = init_adapted(lora_lib.Lora(dropout=0.5), X)
  apply = functools.partial(module.apply, {"params": params}, X)
  without = apply()
  keys = [jax.random.key(seed) for seed in (0, 0, 1)]
  one, same, other = (apply(True, rngs={"dropout": key}) for key in keys)
  np.testing.assert_array_equal(one, same)
  assert np.abs(one - other).max() > 0.1
  assert np.abs(one - without).max() > 0.1


def test_dropout_keeps_the_mean():
  # Half of the inputs of A, twice as large: of ones, A sums to 1 per input.
  lora = lora_lib.Lora(rank=1, alpha=1, dropout=0.5)
  module = Adapted(lora)
  ones = {"lora_q": {"a": np.ones((1000, 1)), "b": np.ones((1, 21))}}
  x = jnp.ones((1, 1, 1000))
  rngs = {"dropout": jax.random.key(0)}
  found = module.apply({"params": ones}, x, True, rngs=rngs)
  np.testing.assert_allclose(found, 1000, rtol=0.1)
  assert float(found[0, 0, 0, 0]) % 2 == 0


RNG = np.random.default_rng(0)
LEFT = RNG.standard_normal((3, 5, 67)).astype(np.float32)
RIGHT = RNG.standard_normal((67, 11)).astype(np.float32)
GRADIENT = RNG.standard_normal((3, 5, 11)).astype(np.float32)


def value_and_grads(dtype):
  def total(x, y):
    out = linear.einsum_float32("BTD,DF->BTF", x, y)
    assert out.dtype == jnp.float32
    return jnp.sum(out * GRADIENT)

  factors = (jnp.asarray(LEFT, dtype), jnp.asarray(RIGHT, dtype))
  return jax.value_and_grad(total, (0, 1))(*factors)


@pytest.mark.parametrize(
  ("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 0.1)]
)
def test_gradients_of_a_product(dtype, tolerance):
  value, (by_x, by_y) = value_and_grads(dtype)
  assert (by_x.dtype, by_y.dtype) == (dtype, dtype)
  expected = {
    "value": np.sum((LEFT @ RIGHT) * GRADIENT),
    "x": GRADIENT @ RIGHT.T,
    "y": np.einsum("BTD,BTF->DF", LEFT, GRADIENT),
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


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_16_bits_go_back_in_16_bits(dtype):
  def total(x, y):
    return jnp.sum(linear.einsum_float32("BTD,DF->BTF", x, y) * GRADIENT)

  factors = (jnp.asarray(LEFT, dtype), jnp.asarray(RIGHT, dtype))
  jaxpr = jax.make_jaxpr(jax.grad(total, (0, 1)))(*factors)
  products = [
    equation
    for equation in equations(jaxpr.jaxpr)
    if equation.primitive.name == "dot_general"
  ]
  assert len(products) == 3
  dtypes = {v.aval.dtype.name for e in products for v in e.invars}
  assert dtypes == {dtype}


@pytest.mark.parametrize("lora", [None, lora_lib.Lora(rank=3)])
@pytest.mark.parametrize("equation", ["BTD,NDH->BTNH", "BTNH,NHD->BTD"])
def test_gradients_of_weights_are_float32_until_devices_have_added_them(
  equation, lora, monkeypatch
):
  h200 = jax.sharding.AbstractDevice("NVIDIA H200", 1, "gpu")
  monkeypatch.setattr(device, "current", lambda: h200)
  x, w = (each.astype(jnp.bfloat16) for each in factors(equation))
  module = AdaptedProduct(equation, lora)
  params = module.init(jax.random.key(0), x, w)

  def total(params, w):
    return jnp.sum(module.apply(params, x, w))

  jaxpr = jax.make_jaxpr(jax.grad(total, (0, 1)))(params, w)
  dtypes = [
    each.outvars[0].aval.dtype.name
    for each in equations(jaxpr.jaxpr)
    if each.primitive.name == "dot_general"
    and SIZES["T"] not in each.outvars[0].aval.shape
  ]
  assert dtypes == ["float32"] * (1 if lora is None else 3)


def test_small_gradients_of_float16_need_a_scaled_loss():
  def total(x, y, scale):
    return jnp.sum(linear.einsum_float32("BTD,DF->BTF", x, y)) * 1e-9 * scale

  large = jnp.full((1, 1, 2), 3e4, jnp.float16)
  factors = jnp.ones_like(large), large[0].T
  scaled = jax.grad(total)(*factors, 2.0**15)
  np.testing.assert_allclose(scaled, 3e-5 * 2**15, rtol=1e-2)
  assert not jax.grad(total)(*factors, 1.0).any()
