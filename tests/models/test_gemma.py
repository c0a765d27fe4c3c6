"""The decoder: two paths, one answer; precision; what the fields mean."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paligemma import tree
from paligemma.models import gemma
from paligemma.models.attention import masks
from tests import typecheck

BATCH, LENGTH, WIDTH, VOCABULARY = 2, 13, 14, 29
PROMPT = 8  # positions of the prompt, padding included
SIZES = {
  "width": WIDTH,
  "depth": 3,
  "mlp_dim": 17,
  "num_heads": 3,
  "num_kv_heads": 1,
  "head_dim": 10,
  "vocab_size": VOCABULARY,
  "remat_policy": "none",
}
STYLES = {
  "gemma": {},
  "gemma_multi_head": {"num_kv_heads": 3},
  "gemma2": {
    "num_heads": 6,
    "num_kv_heads": 3,
    "query_scale": "width_per_head",
    "post_norms": True,
    "attn_logits_softcap": 2.0,
    "final_logits_softcap": 3.0,
    "sliding_window": 4,
  },
}
# Two float32 paths through three layers, logits of order one.
SAME = {"rtol": 1e-4, "atol": 2e-5}

# Two rows of different prompts: 5 and 7 tokens and a suffix of 5. In "middle"
# the suffix follows behind the padding, as when a ragged batch is extended; in
# "end" each row is as short as it can be.
LAYOUTS = {
  "middle": ["xxxxx...xxxxx", "xxxxxxx.xxxxx"],
  "end": ["xxxxxxxxxx...", "xxxxxxxxxxxx."],
  "none": ["xxxxxxxxxxxxx", "xxxxxxxxxxxxx"],
}
PREFIX = {"middle": (5, 7), "end": (5, 7), "none": (8, 8)}


def build(style, *, scan=True, **overrides):
  return gemma.Model(**{**SIZES, **STYLES[style], "scan": scan, **overrides})


def shapes_of(model):
  """name -> shape of the parameters, without computing them."""
  zeros = jnp.zeros((BATCH, LENGTH), jnp.int32)

  def everything(model):
    x = model.embed_tokens(zeros)
    return model.compute_logits(model(x, zeros == 0, zeros)[0])

  variables = jax.eval_shape(
    functools.partial(model.init, method=everything), jax.random.key(0)
  )
  return {k: v.shape for k, v in tree.flatten(variables["params"]).items()}


def random_params(model, seed=0):
  """Weights of standard fan-in size, norm scales and all away from zero."""
  rng = np.random.default_rng(seed)
  flat = {}
  for name, shape in shapes_of(model).items():
    fan_in = {"attn_vec_einsum": shape[-3:-1], "linear": shape[-2:-1]}
    axes = next((v for k, v in fan_in.items() if k in name), (WIDTH,))
    scale = 0.3 if name.endswith("scale") else 1.5 / np.prod(axes) ** 0.5
    flat[name] = (scale * rng.standard_normal(shape)).astype(np.float32)
  return tree.unflatten(flat)


def unstack(params, depth):
  """The loop layout of parameters in scan layout."""
  flat = {}
  for name, value in tree.flatten(params).items():
    if "layers/" in name:
      for i in range(depth):
        flat[name.replace("layers/", f"layers/{i}/")] = value[i]
    else:
      flat[name] = value
  return tree.unflatten(flat)


def random_inputs(layout, seed=1):
  """Embeddings, validity and prefix-LM mask of a ragged batch."""
  rng = np.random.default_rng(seed)
  x = rng.standard_normal((BATCH, LENGTH, WIDTH)).astype(np.float32)
  marks = [list(row) for row in LAYOUTS[layout]]
  prefix = np.array(PREFIX[layout])[:, None]
  mask_ar = (np.arange(LENGTH) >= prefix).astype(np.int32)
  return x, np.array(marks) == "x", mask_ar


def forward(model, params, x, input_mask, mask_ar, **kwargs):
  """Logits float[B, T, V] of the whole sequence at once."""
  pre_logits, _ = model.apply(
    {"params": params}, x, input_mask, mask_ar, **kwargs
  )
  return model.apply({"params": params}, pre_logits, method="compute_logits")


def decode(model, params, x, input_mask, mask_ar):
  """The logits after the prompt and each later token, one by one."""
  logits, cache = model.apply(
    {"params": params},
    x[:, :PROMPT],
    input_mask[:, :PROMPT],
    mask_ar[:, :PROMPT],
    cache_size=x.shape[1],
    mutable=["cache"],
    method="prefill_cache",
  )

  def step(cache, x):
    logits, cache = model.apply(
      {"params": params, **cache},
      x[:, None],
      mutable=["cache"],
      method="extend_cache",
    )
    return cache, logits[:, 0]

  _, rest = jax.lax.scan(step, cache, jnp.swapaxes(x[:, PROMPT:], 0, 1))
  return jnp.concatenate([logits, jnp.swapaxes(rest, 0, 1)], axis=1)


class Case:
  """One model with random weights and its compiled paths."""

  def __init__(self, style, scan):
    self.model = build(style, scan=scan)
    self.params = random_params(build(style))
    if not scan:
      self.params = unstack(self.params, SIZES["depth"])
    self.forward = jax.jit(functools.partial(forward, self.model))
    self.decode = jax.jit(functools.partial(decode, self.model))


@functools.lru_cache
def make_case(style, scan):
  return Case(style, scan)


@pytest.fixture(params=STYLES)
def case(request):
  """What holds of the scanned layers holds of the looped, which equal them."""
  return make_case(request.param, scan=True)


@pytest.mark.parametrize("style", STYLES)
def test_scan_equals_loop(style):
  inputs = random_inputs("middle")
  scanned, looped = (make_case(style, scan) for scan in (True, False))
  found = {k: v.shape for k, v in tree.flatten(looped.params).items()}
  assert found == shapes_of(looped.model)
  for path in ("forward", "decode"):
    np.testing.assert_allclose(
      getattr(looped, path)(looped.params, *inputs),
      getattr(scanned, path)(scanned.params, *inputs),
      **SAME,
    )


@pytest.mark.parametrize("layout", ["middle", "none"])
def test_prefill_and_extend_equal_forward(case, layout):
  x, input_mask, mask_ar = random_inputs(layout)
  full = np.asarray(case.forward(case.params, x, input_mask, mask_ar))
  stepwise = case.decode(case.params, x, input_mask, mask_ar)
  last = [np.flatnonzero(row[:PROMPT])[-1] for row in input_mask]
  np.testing.assert_allclose(
    stepwise[:, 0], full[np.arange(BATCH), last], **SAME
  )
  np.testing.assert_allclose(stepwise[:, 1:], full[:, PROMPT:], **SAME)


@pytest.mark.parametrize("layout", ["middle", "end"])
def test_ragged_batch_equals_its_rows_one_by_one(case, layout):
  x, input_mask, mask_ar = random_inputs(layout)
  together = np.asarray(case.forward(case.params, x, input_mask, mask_ar))
  stepwise = case.decode(case.params, x, input_mask, mask_ar)
  for row, valid in enumerate(input_mask):
    alone = case.forward(
      case.params,
      x[row : row + 1, valid],
      np.ones((1, valid.sum()), bool),
      mask_ar[row : row + 1, valid],
    )
    np.testing.assert_allclose(together[row, valid], alone[0], **SAME)
    if layout == "middle":  # else padding would be decoded too
      np.testing.assert_allclose(stepwise[row], alone[0, -6:], **SAME)


@pytest.mark.parametrize("layout", ["middle", "end"])
def test_content_of_padding_never_matters(case, layout):
  x, input_mask, mask_ar = random_inputs(layout)
  other = np.where(input_mask[:, :, None], x, 1e3 - x)
  for path in (case.forward, case.decode):
    one = np.asarray(path(case.params, x, input_mask, mask_ar))
    two = np.asarray(path(case.params, other, input_mask, mask_ar))
    if path is case.forward:
      one, two = one[input_mask], two[input_mask]
    elif layout == "end":  # behind these, padding is decoded
      one, two = one[:, :3], two[:, :3]
    np.testing.assert_array_equal(one, two)


def test_suffix_leaves_earlier_logits_alone(case):
  x, input_mask, mask_ar = random_inputs("none")
  other = x.copy()
  other[:, 11:] += 1.0
  one = case.forward(case.params, x, input_mask, mask_ar)
  two = case.forward(case.params, other, input_mask, mask_ar)
  np.testing.assert_array_equal(one[:, :11], two[:, :11])
  assert np.abs(one[:, 11:] - two[:, 11:]).max(axis=-1).min() > 1e-2


def test_prefix_is_read_in_both_directions(case):
  x, input_mask, mask_ar = random_inputs("none")
  other = x.copy()
  other[:, 7] += 1.0  # the last of it, beyond the window of position 0
  one = case.forward(case.params, x, input_mask, mask_ar)
  two = case.forward(case.params, other, input_mask, mask_ar)
  assert np.abs(one[:, 0] - two[:, 0]).max(axis=-1).min() > 1e-3


def test_prefill_needs_room():
  model, params = build("gemma"), make_case("gemma", scan=True).params
  with pytest.raises(
    ValueError, match="cache_size 12 is below the prompt length 13"
  ):
    model.apply(
      {"params": params},
      *random_inputs("none"),
      cache_size=12,
      mutable=["cache"],
      method="prefill_cache",
    )


def run(params=None, **overrides):
  """Logits of the Gemma 2 style, some fields or parameters exchanged."""
  case = make_case("gemma2", scan=True)
  path = case.forward
  if overrides:
    path = jax.jit(functools.partial(forward, build("gemma2", **overrides)))
  return np.asarray(path(params or case.params, *random_inputs("middle")))


def test_final_soft_cap_bounds_every_path_alike():
  case = make_case("gemma2", scan=True)
  inputs = random_inputs("none")
  raw = run(final_logits_softcap=None)
  assert np.abs(raw).max() > 3.0  # else the cap would have nothing to do
  np.testing.assert_allclose(run(), 3 * np.tanh(raw / 3), rtol=1e-5, atol=1e-5)
  assert np.abs(case.decode(case.params, *inputs)).max() < 3.0


@pytest.mark.parametrize(
  "overrides",
  [
    {"attn_logits_softcap": None},
    {"query_scale": "head_dim"},
    {"norm_eps": 1e-1},
    {"sliding_window": None},
    {"sliding_window": 3},
  ],
  ids=str,
)
def test_every_field_is_read(overrides):
  valid = random_inputs("middle")[1]
  assert np.abs(run(**overrides) - run())[valid].max() > 1e-2


def test_norm_eps_is_that_of_every_norm():
  x = np.random.default_rng(0).standard_normal((2, 3, 7)).astype(np.float32)
  scale = np.random.default_rng(1).standard_normal(7).astype(np.float32)
  for epsilon in (1e-6, 0.5):
    y = gemma.RMSNorm(epsilon).apply({"params": {"scale": scale}}, x)
    mean_square = np.mean(np.float64(x) ** 2, axis=-1, keepdims=True)
    expected = x / np.sqrt(mean_square + epsilon) * (1 + scale)
    np.testing.assert_allclose(y, expected, rtol=1e-5)


def test_window_is_on_even_layers_only():
  # One layer: the last token cannot see the first. Two: it can, by layer 1.
  x, input_mask, mask_ar = random_inputs("none")
  other = x.copy()
  other[:, 0] += 1.0
  for depth, sees in ((1, False), (2, True)):
    model = build("gemma2", depth=depth)
    path = jax.jit(functools.partial(forward, model, random_params(model)))
    one, two = (path(z, input_mask, mask_ar) for z in (x, other))
    assert (np.abs(one - two)[:, -1].max() > 1e-4) == sees


# One local layer with a window of 3: which rows of the input each output reads.
# Rows with a prefix of 4 and padding behind it, suffix or none.
PREFIX_IS_WHOLE = """
x x x x . . . .
x x x x . . . .
x x x x . . . .
x x x x . . . .
. . . . . . . .
. . x x . x . .
. . . x . x x .
. . . . . x x x"""
CAUSAL_IS_CUT = """
x . . . . . . .
x x . . . . . .
x x x . . . . .
. x x x . . . .
. . . . . . . .
. . x x . x . .
. . . x . x x .
. . . . . x x x"""


@pytest.mark.parametrize(
  ("prefix", "golden"),
  [(4, PREFIX_IS_WHOLE), (1, CAUSAL_IS_CUT)],
  ids=["prefix", "causal"],
)
def test_window_spares_the_prefix_and_counts_tokens(prefix, golden):
  model = build("gemma2", depth=1, sliding_window=3)
  params = random_params(model)
  x = random_inputs("none")[0][:1, :8]
  valid = np.arange(8)[None] != 4
  mask_ar = (np.arange(8)[None] >= prefix).astype(np.int32)

  @jax.jit
  def reads(x):
    path = functools.partial(forward, model, params)
    jacobian = jax.jacfwd(lambda x: path(x, valid, mask_ar))(x)
    return jnp.abs(jacobian[0, :, :, 0]).sum(axis=(1, 3)) > 1e-6

  found = np.where(valid[0][:, None], reads(x), False)
  expected = [
    [mark == "x" for mark in line.split()] for line in golden.split("\n")[1:]
  ]
  np.testing.assert_array_equal(found, expected)


def test_embeddings_are_scaled_by_the_root_of_the_width():
  model, params = build("gemma"), make_case("gemma", scan=True).params
  tokens = np.array([[3, 0, 28], [7, 7, 11]])
  x = model.apply({"params": params}, tokens, method="embed_tokens")
  table = params["embedder"]["input_embedding"]
  np.testing.assert_allclose(x, table[tokens] * WIDTH**0.5, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_near_float32(dtype):
  case = make_case("gemma2", scan=True)
  inputs = random_inputs("middle")
  expected = np.asarray(case.forward(case.params, *inputs))
  model = build("gemma2", dtype=dtype)
  path = jax.jit(lambda *args: (forward(model, *args), decode(model, *args)))
  logits, stepwise = path(case.params, *inputs)
  assert logits.dtype == jnp.float32
  # Attention is sharp with these weights (a standard deviation of 1.5 / sqrt of
  # fan-in): roundings of half a step grow to eight steps on average.
  step = float(jnp.finfo(dtype).eps)
  difference = (np.asarray(logits) - expected)[inputs[1]]
  assert 0.5 * step < np.sqrt(np.mean(difference**2)) < 12 * step
  np.testing.assert_allclose(
    stepwise[:, 1:], logits[:, PROMPT:], rtol=0, atol=4 * step
  )


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_row_alone_has_the_logits_that_it_has_among_others(dtype):
  model, params = (
    build("gemma", dtype=dtype),
    make_case("gemma", scan=True).params,
  )
  x = np.random.default_rng(0).standard_normal((3, 1, WIDTH))
  compute = functools.partial(
    model.apply, {"params": params}, method="compute_logits"
  )
  together = compute(jnp.asarray(x, dtype))
  alone = compute(jnp.asarray(x[1:2], dtype))
  assert alone.shape == (1, 1, together.shape[-1])
  np.testing.assert_allclose(alone, together[1:2], rtol=1e-6, atol=1e-6)


def test_residual_sums_are_float32():
  # Next to 1e4 a bfloat16 step is 64: all updates of that feature would vanish.
  x, input_mask, mask_ar = random_inputs("none")
  x[:, :, 0] = 1e4
  params = make_case("gemma", scan=True).params

  def updates(dtype):
    model = build("gemma", dtype=dtype)
    _, out = jax.jit(model.apply)({"params": params}, x, input_mask, mask_ar)
    return np.asarray(out["encoded"] - x)[:, :, 0]

  exact = updates("float32")
  assert np.abs(exact).max() > 1
  np.testing.assert_allclose(updates("bfloat16"), exact, atol=0.1)


def test_float16_survives_hidden_values_beyond_its_range():
  # The gate and the up projection of released checkpoints reach such values.
  model = build("gemma", dtype="float16")
  flat = tree.flatten(make_case("gemma", scan=True).params)
  gating = "layers/mlp/gating_einsum"
  flat[gating] = 300 * flat[gating]
  # Small enough that the residual stream keeps its order of magnitude.
  flat["layers/mlp/linear"] = flat["layers/mlp/linear"] / 300**2
  params = tree.unflatten(flat)
  x, input_mask, mask_ar = random_inputs("none")

  normed = gemma.RMSNorm(1e-6).apply(
    {"params": {"scale": flat["layers/pre_ffw_norm/scale"][0]}}, x
  )
  gate, up = (normed @ flat[gating][0, i] for i in range(2))
  assert jnp.abs(jax.nn.gelu(gate) * up).max() > 65504

  expected = make_case("gemma", scan=True).forward(
    params, x, input_mask, mask_ar
  )
  path = jax.jit(functools.partial(forward, model))
  logits = path(params, x, input_mask, mask_ar)
  # As near as without the large values, see the test above.
  step = float(jnp.finfo("float16").eps)
  assert np.sqrt(np.mean((logits - expected) ** 2)) < 20 * step


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_parameters_may_be_bfloat16(dtype):
  case = make_case("gemma2", scan=True)
  rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16), case.params)
  exact = jax.tree.map(lambda x: x.astype(jnp.float32), rounded)
  found = run(params=rounded, dtype=dtype)
  valid = random_inputs("middle")[1]
  tolerance = 16 * float(jnp.finfo(dtype).eps)
  difference = np.abs(found - run(params=exact))[valid]
  assert difference.max() < tolerance


@pytest.mark.parametrize(
  ("scan", "style"), [(False, "gemma"), (True, "gemma"), (True, "gemma2")]
)
def test_recomputing_changes_neither_value_nor_gradient(scan, style):
  inputs = random_inputs("middle")

  def value_and_grad(policy):
    model = build(style, scan=scan, depth=2, remat_policy=policy)

    def loss(params):
      return jnp.mean(jnp.sin(forward(model, params, *inputs)))

    return jax.jit(jax.value_and_grad(loss))(random_params(model))

  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
    value_and_grad("block_inputs"),
    value_and_grad("none"),
  )


@pytest.mark.parametrize(
  ("policy", "scan"),
  [("none", True), ("none", False), ("block_inputs", True)],
)
def test_dropout_needs_an_rng_in_training_only(policy, scan):
  case = make_case("gemma", scan)
  model, without = (
    build("gemma", scan=scan, dropout=rate, remat_policy=policy)
    for rate in (0.5, 0.0)
  )
  inputs = random_inputs("none")

  @jax.jit
  def train(key):
    return forward(
      model, case.params, *inputs, train=True, rngs={"dropout": key}
    )

  one, again, other = (train(jax.random.key(seed)) for seed in (1, 1, 2))
  np.testing.assert_array_equal(one, again)
  assert np.abs(one - other).max() > 0.1

  evaluation, expected = (
    jax.make_jaxpr(functools.partial(forward, m))(case.params, *inputs)
    for m in (model, without)
  )
  assert str(evaluation) == str(expected)


def test_dropout_differs_by_layer():
  # Every layer adds 0 or some value to each feature of a token: with a mask of
  # its own, up to eight sums over three layers; with one mask for all, two.
  model = build("gemma", dropout=0.5, width=22)
  flat = {
    name: np.zeros(shape, np.float32)
    for name, shape in shapes_of(model).items()
  }
  # Zero queries average the values, all 1, over the sequence.
  flat["layers/attn/kv_einsum/w"][:, 1, 0, 0, 0] = 1.0
  flat["layers/attn/attn_vec_einsum/w"][:, 0, 0, 1:] = 1.0
  x = np.zeros((1, 7, 22), np.float32)
  x[:, :, 0] = 1.0
  _, out = jax.jit(functools.partial(model.apply, train=True))(
    {"params": tree.unflatten(flat)},
    x,
    np.ones((1, 7), bool),
    np.zeros((1, 7), np.int32),
    rngs={"dropout": jax.random.key(0)},
  )
  added = np.asarray(out["encoded"])[0, :, 1:]
  assert max(len(np.unique(token.round(3))) for token in added) > 2


@pytest.mark.parametrize("policy", ["none", "block_inputs"])
def test_dropout_behind_attention_and_in_front_of_the_post_norm_of_the_mlp(
  policy,
):
  """What an MLP adds has a root mean square of 1 with features dropped."""
  model = build("gemma2", dropout=0.5, width=22, depth=1, remat_policy=policy)
  rng = np.random.default_rng(0)
  flat = {
    name: np.zeros(shape, np.float32)
    for name, shape in shapes_of(model).items()
  }
  x = rng.normal(size=(2, 7, 22)).astype(np.float32)

  def added(*filled):
    values = {
      name: rng.normal(size=leaf.shape).astype(np.float32)
      if name.startswith(filled) and not name.endswith("scale")
      else leaf
      for name, leaf in flat.items()
    }
    _, out = jax.jit(functools.partial(model.apply, train=True))(
      {"params": tree.unflatten(values)},
      x,
      np.ones((2, 7), bool),
      np.zeros((2, 7), np.int32),
      rngs={"dropout": jax.random.key(0)},
    )
    added = np.asarray(out["encoded"]) - x
    dropped = (added == 0).mean()
    assert 0.3 < dropped < 0.7
    return np.square(added).mean(axis=-1)

  # Of what is normed first, features are dropped and the rest is doubled.
  assert np.ptp(added("layers/attn")) > 0.5
  np.testing.assert_allclose(added("layers/mlp"), 1, rtol=1e-3)


def test_intermediates():
  case = make_case("gemma2", scan=True)
  x, input_mask, mask_ar = random_inputs("middle")
  pre_logits, out = jax.jit(case.model.apply)(
    {"params": case.params}, x, input_mask, mask_ar
  )
  np.testing.assert_array_equal(
    out["attn_mask"], masks.make_mask(input_mask, mask_ar).dense()
  )
  np.testing.assert_array_equal(out["pre_logits"], pre_logits)
  assert out["encoded"].shape == x.shape


def test_make():
  model = gemma.make("gemma2_27b", dtype="float16", depth=3)
  assert (model.width, model.depth, model.dtype) == (4608, 3, "float16")
  assert model.query_scale == "width_per_head"
  with pytest.raises(ValueError, match=r'decoder "gemma_2".*mean "gemma_2b"\?'):
    gemma.make("gemma_2")
  with pytest.raises(
    ValueError, match=r'decoder field "norm_epsilon".*mean "norm_eps"\?'
  ):
    gemma.make("gemma_2b", norm_epsilon=1e-5)


def test_query_scale_by_number():
  width_per_head = 14 / 6  # what the style says by name
  np.testing.assert_array_equal(run(query_scale=width_per_head), run())


@pytest.mark.parametrize(
  ("value", "message"),
  [
    ("head-dim", 'unknown query_scale "head-dim".*mean "head_dim"\\?'),
    (0, "query_scale is 0, expected a positive number.*width_per_head"),
    (-144.0, "query_scale is -144.0, expected a positive number"),
    (float("nan"), "query_scale is nan, expected a positive number"),
    (None, "query_scale is None, expected a positive number"),
  ],
)
@typecheck.off()
def test_bad_query_scale(value, message):
  with pytest.raises(ValueError, match=message):
    shapes_of(build("gemma", query_scale=value))
