"""The image tower: position embedding, poolings, layouts, errors."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paligemma import tree
from paligemma.models import vit
from paligemma.models.stack import Call

SIZES = {
  "patch_size": 2,
  "width": 12,
  "depth": 3,
  "mlp_dim": 17,
  "num_heads": 3,
  "remat_policy": "none",
}
IMAGE = np.random.default_rng(0).uniform(-1, 1, (2, 6, 10, 3)).astype("float32")
PATCHES = 15


def build(**overrides):
  return vit.Model(**{**SIZES, **overrides})


def init(model):
  """Random parameters, none of them at its neutral start."""
  shapes = jax.eval_shape(model.init, jax.random.key(0), IMAGE)["params"]
  rng = np.random.default_rng(0)
  flat = {}
  for name, leaf in tree.flatten(shapes).items():
    offset = 1.0 if name.endswith("scale") else 0.0
    flat[name] = (offset + 0.3 * rng.standard_normal(leaf.shape)).astype(
      np.float32
    )
  return tree.unflatten(flat)


def apply(model, params, image=IMAGE):
  return jax.jit(model.apply)({"params": params}, image)


def unstack(params, depth):
  """The parameters of the loop layout, made of those of the scan layout."""
  flat = {}
  for name, value in tree.flatten(params).items():
    if "encoderblock/" in name:
      for i in range(depth):
        flat[name.replace("encoderblock", f"encoderblock_{i}")] = value[i]
    else:
      flat[name] = value
  return tree.unflatten(flat)


def test_sincos2d_golden():
  # Two rows of three patches; 8 features, hence waves of 1 and 1 / 100.
  s, c = np.sin, np.cos
  golden = [
    [s(x), s(x / 100), c(x), c(x / 100), s(y), s(y / 100), c(y), c(y / 100)]
    for y in range(2)
    for x in range(3)
  ]
  table = vit.sincos2d(2, 3, 8, max_wavelength=100)
  assert table.dtype == jnp.float32
  np.testing.assert_allclose(table, [golden], rtol=1e-6, atol=1e-7)


def test_sincos2d_needs_a_multiple_of_four():
  with pytest.raises(ValueError, match="divisible by 4, got 14"):
    vit.sincos2d(2, 3, 14)


def test_posemb_sincos2d_has_no_parameter_and_takes_any_resolution():
  model = build(posemb="sincos2d")
  params = init(model)
  assert "pos_embedding" not in params
  _, out = apply(model, params, IMAGE[:, :4])
  np.testing.assert_allclose(
    out["with_posemb"] - out["stem"].reshape(2, 10, 12),
    np.tile(vit.sincos2d(2, 5, 12), (2, 1, 1)),
    atol=1e-6,
  )


@pytest.fixture(scope="module")
def unpooled():
  """Parameters without a head, and the intermediates they lead to."""
  params = init(build())
  return params, apply(build(), params)[1]


def test_posemb_learn_is_added_per_patch(unpooled):
  params, out = unpooled
  np.testing.assert_allclose(
    out["with_posemb"] - out["stem"].reshape(2, PATCHES, 12),
    np.tile(params["pos_embedding"], (2, 1, 1)),
    atol=1e-6,
  )


def test_stem_is_one_matrix_per_patch_row_by_row(unpooled):
  params, out = unpooled
  kernel, bias = params["embedding"]["kernel"], params["embedding"]["bias"]
  third_of_second_row = IMAGE[:, 2:4, 4:6].astype(np.float64)
  expected = np.einsum("BhwC,hwCD->BD", third_of_second_row, kernel)
  np.testing.assert_allclose(
    out["stem"][:, 1, 2], expected + bias[None], atol=1e-5
  )


def test_pool_none_keeps_patches(unpooled):
  _, out = unpooled
  assert out["encoded"].shape == (2, PATCHES, 12)
  np.testing.assert_array_equal(out["pre_logits"], out["encoded"])


@pytest.mark.parametrize(
  ("pool_type", "reduce"),
  [("gap", lambda x: x.mean(axis=1)), ("0", lambda x: x[:, 0])],
)
def test_pools_without_parameters(unpooled, pool_type, reduce):
  params, out = unpooled
  x, _ = apply(build(pool_type=pool_type), params)
  np.testing.assert_allclose(x, reduce(np.asarray(out["encoded"])), atol=1e-5)


def test_pool_tok_prepends_a_token_without_position():
  model = build(pool_type="tok")
  params = init(model)
  assert params["cls"].shape == (1, 1, 12)
  x, out = apply(model, params)
  assert x.shape == (2, 12)
  assert out["encoded"].shape == (2, 1 + PATCHES, 12)
  # The same sequence built by hand, through the encoder alone.
  cls = jnp.broadcast_to(params["cls"], (2, 1, 12))
  encoder = vit.Encoder(build())
  encoded, _ = jax.jit(encoder.apply)(
    {"params": params["Transformer"]},
    jnp.concatenate([cls, out["with_posemb"]], axis=1),
  )
  np.testing.assert_allclose(x, encoded[:, 0], atol=1e-5)
  np.testing.assert_allclose(out["encoded"], encoded, atol=1e-5)


def test_pool_map_attends_from_a_probe():
  model = build(pool_type="map")
  params = init(model)
  x, out = apply(model, params)
  assert x.shape == (2, 12)
  head = jax.tree.map(np.float64, params["MAPHead_0"])
  attn = head["MultiHeadDotProductAttention_0"]

  def project(name, x):
    w = attn[name]
    return np.einsum("...D,DNH->...NH", x, w["kernel"]) + w["bias"]

  encoded = np.float64(out["encoded"])
  q = project("query", head["probe"][0, 0])
  k, v = project("key", encoded), project("value", encoded)
  weights = np.exp(np.einsum("NH,BSNH->BNS", q, k) / 2)  # head_dim is 4
  weights /= weights.sum(axis=-1, keepdims=True)
  mixed = np.einsum("BNS,BSNH->BNH", weights, v)
  pooled = np.einsum("BNH,NHD->BD", mixed, attn["out"]["kernel"])
  pooled += attn["out"]["bias"]
  mean = pooled.mean(axis=-1, keepdims=True)
  y = (pooled - mean) / np.sqrt(pooled.var(axis=-1, keepdims=True) + 1e-6)
  y = y * head["LayerNorm_0"]["scale"] + head["LayerNorm_0"]["bias"]
  first, second = head["MlpBlock_0"]["Dense_0"], head["MlpBlock_0"]["Dense_1"]
  y = y @ first["kernel"] + first["bias"]
  y *= (1 + np.tanh(np.sqrt(2 / np.pi) * (y + 0.044715 * y**3))) / 2
  y = y @ second["kernel"] + second["bias"]
  np.testing.assert_allclose(x, pooled + y, rtol=1e-4, atol=1e-4)


def test_rep_size_and_head():
  model = build(pool_type="gap", rep_size=7, num_classes=5)
  params = init(model)
  x, out = apply(model, params)
  rep, head = params["pre_logits"], params["head"]
  pooled = np.asarray(out["head_input"])
  pre_logits = np.tanh(pooled @ rep["kernel"] + rep["bias"])
  np.testing.assert_allclose(out["pre_logits"], pre_logits, atol=1e-5)
  expected = pre_logits @ head["kernel"] + head["bias"]
  np.testing.assert_allclose(x, expected, atol=1e-5)


@pytest.mark.parametrize("pool_type", vit.POOLINGS)
def test_features_of_every_patch(pool_type):
  """Head and tanh layer, shared with what is pooled, over the class token."""
  model = build(pool_type=pool_type, rep_size=True, num_classes=5)
  params = init(model)
  x, out = apply(model, params)
  np.testing.assert_array_equal(out["logits"], x)
  rep, head = params["pre_logits"], params["head"]
  assert rep["kernel"].shape == (12, 12)
  encoded = np.asarray(out["encoded"])
  assert encoded.shape[1] == PATCHES + (pool_type == "tok")
  patches = encoded[:, -PATCHES:].reshape(2, 3, 5, 12)
  expected = np.tanh(patches @ rep["kernel"] + rep["bias"])
  np.testing.assert_allclose(out["pre_logits_2d"], expected, atol=1e-5)
  expected = expected @ head["kernel"] + head["bias"]
  np.testing.assert_allclose(out["logits_2d"], expected, atol=1e-5)
  if pool_type == "none":
    np.testing.assert_allclose(out["logits_2d"].reshape(x.shape), x, atol=1e-6)


@pytest.mark.parametrize("rep_size", [None, False])
def test_without_a_rep_size_what_is_pooled_stays(rep_size):
  model = build(pool_type="gap", rep_size=rep_size)
  params = init(model)
  assert "pre_logits" not in params
  x, out = apply(model, params)
  np.testing.assert_array_equal(out["pre_logits"], out["head_input"])
  np.testing.assert_array_equal(out["pre_logits"], x)
  assert "logits" not in out and "logits_2d" not in out
  assert out["pre_logits_2d"].shape == (2, 3, 5, 12)


@pytest.mark.parametrize(
  ("policy", "scan"),
  [("none", True), ("none", False), ("block_inputs", True)],
)
def test_every_block_gives_out_what_it_adds(unpooled, policy, scan):
  params, _ = unpooled
  params = params if scan else unstack(params, 3)
  model = build(remat_policy=policy, scan=scan)
  _, out = apply(model, params)
  encoder, x = out["encoder"], out["with_posemb"]
  assert encoder.keys() == {"block00", "block01", "block02", "pre_ln"}
  stack = unstack(params, 3) if scan else params
  for i in range(3):
    block = vit.Block(build())
    own = {"params": stack["Transformer"][f"encoderblock_{i}"]}
    after, expected = block.apply(own, x, Call())
    found = encoder[f"block{i:02d}"]
    assert list(found) == sorted(expected) == ["+mlp", "+sa", "mlp", "sa"]
    for name, value in expected.items():
      np.testing.assert_allclose(found[name], value, atol=1e-5, err_msg=name)
    np.testing.assert_allclose(found["+sa"], x + found["sa"], atol=1e-5)
    np.testing.assert_allclose(
      found["+mlp"], found["+sa"] + found["mlp"], atol=1e-5
    )
    x = after
  np.testing.assert_allclose(encoder["pre_ln"], x, atol=1e-5)


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("policy", ["none", "block_inputs"])
def test_what_is_not_asked_for_costs_no_memory(policy, train):
  """In tokens of one layer: of twelve layers none is kept beyond its block."""
  sizes = {"depth": 12, "mlp_dim": 12, "remat_policy": policy}
  model = build(**sizes)
  params = init(model)

  def temporary(function):
    compiled = jax.jit(function).lower(params).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  image = np.tile(IMAGE, (16, 1, 1, 1))
  layer = 32 * PATCHES * 12 * 4  # bytes
  run = functools.partial(model.apply, train=train)
  alone = temporary(lambda p: run({"params": p}, image)[0])
  assert alone < 12 * layer
  if not train:
    everything = jax.jit(run).lower({"params": params}, image).compile()
    output = everything.memory_analysis().output_size_in_bytes
    assert output > 4 * 12 * layer


def test_head_zeroinit():
  model = build(num_classes=5, head_zeroinit=True)
  init_head = jax.jit(lambda key: model.init(key, IMAGE)["params"]["head"])
  head = init_head(jax.random.key(0))
  np.testing.assert_array_equal(head["kernel"], np.zeros((12, 5)))


def test_scan_equals_loop(unpooled):
  params, out = unpooled
  loop = build(scan=False)
  looped = unstack(params, 3)
  assert jax.tree.map(np.shape, looped) == jax.tree.map(np.shape, init(loop))
  x, _ = apply(loop, looped)
  np.testing.assert_allclose(x, out["encoded"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
  ("policy", "scan"),
  [("none", True), ("none", False), ("block_inputs", True)],
)
def test_dropout_needs_an_rng_in_training_only(unpooled, policy, scan):
  params = {"params": unpooled[0] if scan else unstack(unpooled[0], 3)}
  model, without = (
    build(dropout=rate, scan=scan, remat_policy=policy) for rate in (0.5, 0.0)
  )
  train = jax.jit(functools.partial(model.apply, train=True))

  def run(seed):
    return train(params, IMAGE, rngs={"dropout": jax.random.key(seed)})[0]

  one, again, other = run(1), run(1), run(2)
  np.testing.assert_array_equal(one, again)
  assert jnp.abs(one - other).max() > 0.1

  evaluation = jax.make_jaxpr(model.apply)(params, IMAGE)
  assert str(evaluation) == str(jax.make_jaxpr(without.apply)(params, IMAGE))


def test_dropout_differs_by_layer():
  # Every layer adds 0 or 2 to each of the 12 features of a token, which makes
  # up to four different sums; were the masks the same, there would be two.
  encoder = vit.Encoder(build(dropout=0.5))
  x = np.zeros((1, 7, 12), np.float32)
  shapes = jax.eval_shape(encoder.init, jax.random.key(0), x)["params"]
  flat = {
    name: np.full(leaf.shape, "out/bias" in name, np.float32)
    for name, leaf in tree.flatten(shapes).items()
  }
  flat["encoder_norm/scale"] += 1
  x, _ = jax.jit(functools.partial(encoder.apply, train=True))(
    {"params": tree.unflatten(flat)}, x, rngs={"dropout": jax.random.key(0)}
  )
  sums = max(len(np.unique(token.round(3))) for token in np.asarray(x[0]))
  assert sums > 2


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_near_float32(unpooled, dtype):
  params, exact = unpooled
  x, out = apply(build(dtype=dtype), params)
  assert x.dtype == jnp.float32
  # The stem is float32 whatever the compute dtype is.
  np.testing.assert_allclose(
    out["with_posemb"], exact["with_posemb"], rtol=1e-5, atol=1e-5
  )
  # About eight roundings in each of three layers, of values of order one.
  difference = np.sqrt(np.mean((x - exact["encoded"]) ** 2))
  step = float(jnp.finfo(dtype).eps)
  assert 0.1 * step < difference < 4 * step


def test_residual_sums_are_float32():
  # Next to 1e4 a bfloat16 step is 64: the 1 that attention adds would vanish.
  block = vit.Block(build(dtype="bfloat16"))
  x = np.full((1, 5, 12), 1e4, np.float32)
  apply_block = functools.partial(block.apply, call=Call())
  init_block = functools.partial(block.init, call=Call())
  shapes = jax.eval_shape(init_block, jax.random.key(0), x)["params"]
  params = tree.unflatten(
    {
      name: np.full(leaf.shape, "out/bias" in name, np.float32)
      for name, leaf in tree.flatten(shapes).items()
    }
  )
  y, _ = jax.jit(apply_block)({"params": params}, x)
  np.testing.assert_array_equal(y, x + 1)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_parameters_may_be_bfloat16(unpooled, dtype):
  params, _ = unpooled
  rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
  exact = jax.tree.map(lambda x: x.astype(jnp.float32), rounded)
  expected, _ = apply(build(), exact)
  x, _ = apply(build(dtype=dtype), rounded)
  assert x.dtype == jnp.float32
  step = float(jnp.finfo(dtype).eps)
  assert np.sqrt(np.mean((x - expected) ** 2)) < 8 * step


@pytest.mark.parametrize("scan", [True, False])
def test_recomputing_changes_neither_value_nor_gradient(scan):
  def value_and_grad(policy):
    model = build(remat_policy=policy, scan=scan, depth=2)

    def loss(params):
      return jnp.sum(jnp.sin(model.apply({"params": params}, IMAGE)[0]))

    return jax.jit(jax.value_and_grad(loss))(init(model))

  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
    value_and_grad("block_inputs"),
    value_and_grad("none"),
  )


def test_image_must_divide_into_patches():
  message = "image of 6x9 pixels does not divide into patches of 2x2"
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(build().init, jax.random.key(0), IMAGE[:, :, :9])


@pytest.mark.parametrize(
  ("overrides", "message"),
  [
    (
      {"pool_type": "avg"},
      'unknown pool_type "avg", expected one of: 0, gap, map, none, tok.',
    ),
    (
      {"posemb": "rope"},
      'unknown posemb "rope", expected one of: learn, sincos2d.',
    ),
    (
      {"remat_policy": "all"},
      'unknown remat_policy "all", expected one of: auto, block_inputs, none, ',
    ),
    ({"num_heads": 5}, "width 12 is not divisible by 5 heads"),
  ],
)
def test_unknown_options(overrides, message):
  with pytest.raises(ValueError, match=re.escape(message)):
    jax.eval_shape(build(**overrides).init, jax.random.key(0), IMAGE)


def test_make_reads_name_and_patch():
  model = vit.make("So400m/14", dtype="bfloat16", num_classes=2048, depth=5)
  assert model == vit.Model(
    patch_size=14,
    width=1152,
    depth=5,
    mlp_dim=4304,
    num_heads=16,
    num_classes=2048,
    dtype="bfloat16",
  )


@pytest.mark.parametrize("variant", ["So400m", "So400m/", "So400m/x", "B/0"])
def test_make_needs_a_patch_size(variant):
  with pytest.raises(ValueError, match=f'"{variant}" names no patch size'):
    vit.make(variant)


def test_make_knows_its_names():
  with pytest.raises(
    ValueError, match=r'unknown image tower "so400m".*mean "So400m"\?'
  ):
    vit.make("so400m/14")


def test_make_knows_its_fields():
  with pytest.raises(
    ValueError, match=r'image tower field "drop_out".*mean "dropout"\?'
  ):
    vit.make("B/16", drop_out=0.1)
