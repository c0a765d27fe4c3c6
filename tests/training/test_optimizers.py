import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from paligemma.training import optimizers
from tests import typecheck

SHAPES = {
  "img/embedding/kernel": (3, 3, 3, 7),
  "img/pos_embedding": (1, 5, 7),
  "img/Transformer/encoderblock/LayerNorm_0/scale": (2, 7),
  "img/Transformer/encoderblock/LayerNorm_0/bias": (2, 7),
  "img/head/kernel": (7, 11),
  "img/head/bias": (11,),
  "llm/embedder/input_embedding": (13, 11),
  "llm/final_norm/scale": (11,),
  "llm/layers/attn/q_einsum/w": (2, 3, 11, 5),
  "llm/layers/attn/kv_einsum/w": (2, 2, 1, 11, 5),
  "llm/layers/mlp/gating_einsum": (2, 2, 11, 17),
  "llm/layers/mlp/linear": (2, 17, 11),
}
MATRICES = {
  "img/embedding/kernel",
  "img/head/kernel",
  "llm/embedder/input_embedding",
  "llm/layers/attn/q_einsum/w",
  "llm/layers/attn/kv_einsum/w",
  "llm/layers/mlp/gating_einsum",
  "llm/layers/mlp/linear",
}
CONSTANT = [(".*", {"decay": "constant"})]


def random(seed, dtype=jnp.float32):
  rng = np.random.default_rng(seed)
  return {
    name: jnp.asarray(rng.normal(size=shape), dtype)
    for name, shape in SHAPES.items()
  }


def zeros():
  return {name: jnp.zeros(shape) for name, shape in SHAPES.items()}


def step(tx, grads, params):
  """One jitted step from the initial state: updates and the new state."""
  return jax.jit(lambda g, p: tx.update(g, tx.init(p), p))(grads, params)


@functools.partial(jax.jit, static_argnums=0)
def run(tx, params, grads):
  state = tx.init(params)
  for grad in grads:
    updates, state = tx.update(grad, state, params)
    params = optax.apply_updates(params, updates)
  return params


def assert_close(actual, expected, rtol=1e-5):
  assert actual.keys() == expected.keys()
  for name, leaf in expected.items():
    np.testing.assert_allclose(
      actual[name], leaf, rtol=rtol, atol=1e-6, err_msg=name
    )


def test_sgd_step_is_its_formula():
  params, grads = random(0), random(1)
  tx, rates = optimizers.make(
    SHAPES, total_steps=7, learning_rate=0.5, schedule=CONSTANT
  )
  updates, state = step(tx, grads, params)
  assert_close(updates, {name: -0.5 * g for name, g in grads.items()})
  assert int(state.count) == 1
  assert float(rates[".*"](3)) == 0.5


def test_plain_sgd_keeps_no_state():
  tx, _ = optimizers.make(SHAPES, total_steps=7)
  assert [x.shape for x in jax.tree.leaves(tx.init(random(0)))] == [()]


@pytest.mark.parametrize(
  ("optimizer", "arguments", "expected"),
  [
    ("sgd", {}, optax.sgd(0.1)),
    ("sgd", {"momentum": 0.9}, optax.sgd(0.1, 0.9)),
    (
      "sgd",
      {"momentum": 0.8, "nesterov": True},
      optax.sgd(0.1, 0.8, nesterov=True),
    ),
    ("adam", {"b2": 0.95}, optax.adam(0.1, b2=0.95)),
    ("lion", {}, optax.lion(0.1, weight_decay=0.0)),
  ],
)
def test_agrees_with_optax(optimizer, arguments, expected):
  tx, _ = optimizers.make(
    SHAPES,
    total_steps=7,
    optimizer=optimizer,
    optimizer_args=arguments,
    learning_rate=0.1,
    schedule=CONSTANT,
  )
  grads = [random(1), random(2), random(3)]
  assert_close(run(tx, random(0), grads), run(expected, random(0), grads))


def test_adamw_is_optax_with_decay_over_learning_rate():
  schedule = [(".*", {"decay": "cosine", "warmup_steps": 2})]
  tx, rates = optimizers.make(
    SHAPES,
    total_steps=7,
    optimizer="adamw",
    learning_rate=0.1,
    schedule=schedule,
    weight_decay=0.02,
  )
  expected = optax.adamw(
    rates[".*"],
    weight_decay=0.02 / 0.1,
    mask={name: name in MATRICES for name in SHAPES},
  )
  grads = [random(seed) for seed in range(1, 6)]
  assert_close(run(tx, random(0), grads), run(expected, random(0), grads))


def test_adafactor_agrees_with_optax_where_they_are_the_same():
  # beta2 of the first steps is far below the cap: only the cap differs.
  name = "llm/layers/mlp/linear"
  rng = np.random.default_rng(0)
  params, *grads = [
    {name: jnp.asarray(rng.normal(size=(2, 67, 71)), jnp.float32)}
    for _ in range(4)
  ]
  tx, _ = optimizers.make(
    [name],
    total_steps=7,
    optimizer="adafactor",
    optimizer_args={"momentum": None},
    learning_rate=0.1,
    schedule=CONSTANT,
  )
  expected = optax.adafactor(
    0.1,
    min_dim_size_to_factor=64,
    clipping_threshold=None,
    multiply_by_parameter_scale=False,
  )
  assert_close(run(tx, params, grads), run(expected, params, grads))
  # Two vectors per layer in place of a matrix: the layers are not averaged.
  state = jax.eval_shape(tx.init, params)
  sizes = {x.shape for x in jax.tree.leaves(state) if x.size > 1}
  assert sizes == {(2, 67), (2, 71)}


@pytest.mark.parametrize("optimizer", sorted(optimizers.OPTIMIZERS))
def test_every_optimizer_steps_downhill(optimizer):
  name = "llm/layers/mlp/linear"
  params = {name: random(0)[name]}
  tx, _ = optimizers.make(
    [name], total_steps=7, optimizer=optimizer, learning_rate=0.01
  )
  updates, _ = step(tx, params, params)
  cosine = jnp.vdot(updates[name], params[name]) / (
    jnp.linalg.norm(updates[name]) * jnp.linalg.norm(params[name])
  )
  assert cosine < -0.5


def test_decay_reaches_every_matrix_and_nothing_else():
  params = random(0)
  tx, _ = optimizers.make(
    SHAPES,
    total_steps=7,
    learning_rate=1e-5,
    schedule=CONSTANT,
    weight_decay=0.25,
  )
  updates, _ = step(tx, zeros(), params)
  expected = {
    name: -0.25 * p if name in MATRICES else jnp.zeros_like(p)
    for name, p in params.items()
  }
  assert_close(updates, expected)


def test_decay_mults_first_match_and_schedule():
  params = random(0)
  tx, _ = optimizers.make(
    SHAPES,
    total_steps=8,
    schedule=[
      ("llm/.*", {"decay": "linear", "mult": 0.5}),
      (".*", {"decay": "constant"}),
    ],
    weight_decay=0.1,
    weight_decay_mults=[(".*/scale", 0.0), ("img/.*", 2.0), ("llm/.*", 1.0)],
  )
  state = jax.jit(tx.init)(params)._replace(count=jnp.int32(2))
  updates, _ = jax.jit(tx.update)(zeros(), state, params)
  expected = {}
  for name, p in params.items():
    mult = 0.0 if name.endswith("scale") else 2.0
    scale = 1.0
    if name.startswith("llm/"):
      mult, scale = mult / 2, 0.5 * 6 / 8
    expected[name] = -scale * 0.1 * mult * p
  assert_close(updates, expected)


def test_a_rule_of_none_leaves_alone():
  params, grads = random(0), random(1)
  tx, rates = optimizers.make(
    SHAPES,
    total_steps=7,
    optimizer="adam",
    schedule=[("img/.*", None), ("llm/.*", {"decay": "constant"})],
    weight_decay=0.1,
    clip_norm=0.5,
  )
  updates, state = step(tx, grads, params)
  assert list(rates) == ["llm/.*"]
  for name in SHAPES:
    assert bool(jnp.any(updates[name] != 0)) == name.startswith("llm/"), name
  llm = sum(p.size for name, p in params.items() if name.startswith("llm/"))
  assert sum(x.size for x in jax.tree.leaves(state)) == 2 * llm + 2  # counts


def test_clip_sees_only_what_moves():
  params, grads = random(0), random(1)
  tx, _ = optimizers.make(
    SHAPES,
    total_steps=7,
    learning_rate=1.0,
    schedule=[("img/.*", None), (".*", {"decay": "constant"})],
    clip_norm=0.5,
  )
  updates, _ = step(tx, grads, params)
  norm = np.linalg.norm([np.linalg.norm(np.ravel(u)) for u in updates.values()])
  np.testing.assert_allclose(norm, 0.5, rtol=1e-6)
  small = {name: np.asarray(g) * np.float32(1e-3) for name, g in grads.items()}
  updates, _ = step(tx, small, params)
  name = "llm/final_norm/scale"
  np.testing.assert_allclose(updates[name], -small[name], rtol=1e-6)


@pytest.mark.parametrize("optimizer", sorted(optimizers.OPTIMIZERS))
def test_bfloat16_parameters_have_float32_moments(optimizer):
  params = random(0, jnp.bfloat16)
  arguments = {"momentum": 0.9} if optimizer == "sgd" else {}
  tx, _ = optimizers.make(
    SHAPES,
    total_steps=7,
    optimizer=optimizer,
    optimizer_args=arguments,
    schedule=CONSTANT,
  )
  state = jax.eval_shape(tx.init, params)
  updates, new_state = jax.eval_shape(tx.update, params, state, params)
  assert new_state == state
  for leaf in jax.tree.leaves(state):
    assert leaf.dtype == (jnp.float32 if leaf.ndim else jnp.int32)
  assert {x.dtype for x in updates.values()} == {jnp.dtype("float32")}
  moved = jax.eval_shape(optax.apply_updates, params, updates)
  assert {x.dtype for x in moved.values()} == {jnp.dtype("bfloat16")}


@pytest.mark.parametrize(
  ("arguments", "expected"),
  [
    # step                           0    5    10    60    110   150
    ({"decay": "constant"}, [0, 0.5, 1, 1, 1, 1]),
    ({"decay": "linear"}, [0, 0.5, 1, 0.5, 0, 0]),
    ({"decay": "cosine"}, [0, 0.5, 1, 0.5, 0, 0]),
    ({"decay": "cosine", "mult": 3.0}, [0, 1.5, 3, 1.5, 0, 0]),
    ({"decay": "exponential"}, [0, 0.5, 1, 0.1, 0.01, 0.01]),
    ({"decay": "exponential", "end": 4, "mult": 3}, [0, 1.5, 3, 6, 12, 12]),
    (
      {"decay": "rsqrt", "timescale": 50},
      [0, 0.5, 1, 2**-0.5, 3**-0.5, 3**-0.5],
    ),
  ],
)
def test_schedule_values(arguments, expected):
  scale = optimizers.make_schedule(110, warmup_steps=10, **arguments)
  actual = [scale(t) for t in (0, 5, 10, 60, 110, 150)]
  np.testing.assert_allclose(actual, expected, atol=1e-7)
  assert jax.jit(scale)(7).dtype == jnp.float32


def by_hand(t, n, decay, w=0, c=0, base=1.0, **kw):
  """NumPy, float64: one step of create_learning_rate_schedule of big_vision."""
  progress = np.clip((t - w) / (n - w), 0, 1)
  if decay in ("linear", "polynomial"):
    end = kw.get("end", 0)
    rate = end + (base - end) * (1 - progress) ** kw.get("power", 1)
  elif decay == "cosine":
    rate = base * 0.5 * (1 + np.cos(np.pi * progress))
  elif decay == "rsqrt":
    timescale, shift = kw.get("timescale", 10_000), kw.get("shift", 0)
    behind = t + shift - w if w <= t else shift
    rate = base / np.sqrt(1 + behind / timescale)
  elif decay == "stair":
    place = np.searchsorted(np.array(kw.get("steps", [])), t + 1)
    rate = base * np.array([1.0, *kw.get("mults", [])])[place]
  else:
    rate = base
  if w:
    rate *= min(1.0, t / w)
  if c:
    rate *= min(1.0, (n - t) / c)
  return rate


@pytest.mark.parametrize(
  ("decay", "options"),
  [
    ("constant", {}),
    ("cosine", {}),
    ("linear", {}),
    ("linear", {"end": 0.1}),
    ("linear", {"end": 3.0, "power": 0.5}),
    ("polynomial", {"power": 2}),
    ("polynomial", {"end": 0.25, "power": 3}),
    ("rsqrt", {}),
    ("rsqrt", {"timescale": 13}),
    ("rsqrt", {"timescale": 7.5, "shift": 11}),
    ("stair", {}),
    ("stair", {"steps": (5, 11, 47), "mults": (0.5, 2.0, 0.1)}),
    ("stair", {"steps": (1,), "mults": (0.0,)}),
  ],
)
@pytest.mark.parametrize("base", [1.0, 0.3])
@pytest.mark.parametrize(
  ("warmup", "cooldown"), [(0, 0), (7, 0), (0, 9), (5, 60)]
)
def test_schedules_are_those_of_big_vision_at_every_step(
  decay, options, base, warmup, cooldown
):
  n = 61
  schedule = optimizers.make_schedule(
    n,
    decay=decay,
    warmup_steps=warmup,
    cooldown_steps=cooldown,
    mult=base,
    **options,
  )
  expected = [
    by_hand(t, n, decay, warmup, cooldown, base, **options)
    for t in range(n + 1)
  ]
  found = jax.vmap(schedule)(jnp.arange(n + 4))
  assert found.dtype == jnp.float32
  np.testing.assert_allclose(found[: n + 1], expected, rtol=2e-6, atol=1e-7)
  np.testing.assert_array_equal(found[n + 1 :], np.repeat(found[n], 3))


def test_learning_rate_mults_reach_the_rate_and_not_the_decay():
  params, grads = random(0), random(1)
  tx, _ = optimizers.make(
    SHAPES,
    total_steps=7,
    learning_rate=0.5,
    learning_rate_mults=[("img/head/.*", 3.0), ("img/.*", 0.1)],
    schedule=CONSTANT,
    weight_decay=0.01,
  )
  updates, _ = step(tx, grads, params)
  expected = {}
  for name, grad in grads.items():
    mult = 0.1 if name.startswith("img/") else 1.0
    mult = 3.0 if name.startswith("img/head/") else mult
    expected[name] = -0.5 * mult * grad
    if name in MATRICES:
      expected[name] -= 0.01 * params[name]
  assert_close(updates, expected)


def test_adafactor_of_big_vision_is_at_hand():
  """Its defaults, and every setting, over steps of a stack of layers."""
  name = "llm/layers/mlp/linear"
  rng = np.random.default_rng(0)
  params, *grads = [
    {name: jnp.asarray(rng.normal(size=(33, 37, 5)), jnp.float32)}
    for _ in range(4)
  ]

  def beta2(i, exponent, cap):
    return jnp.minimum(cap, 1.0 - (i + 1.0) ** -exponent)

  for cap, threshold, dtype, momentum in [
    (0.999, None, "bfloat16", 0.9),
    (0.3, 0.5, "float32", 0.7),
    (0.999, 0.2, "float32", None),
  ]:
    tx, _ = optimizers.make(
      [name],
      total_steps=7,
      optimizer="adafactor",
      optimizer_args={
        "momentum": momentum,
        "momentum_dtype": dtype,
        "beta2_cap": cap,
        "decay_rate": 0.6,
        "decay_offset": 0,
        "min_dim_size_to_factor": 32,
        "clipping_threshold": threshold,
        "eps": 1e-20,
      },
      learning_rate=0.1,
      schedule=CONSTANT,
    )
    expected = optax.chain(
      optax.scale_by_factored_rms(
        decay_rate=0.6,
        min_dim_size_to_factor=32,
        epsilon=1e-20,
        decay_rate_fn=functools.partial(beta2, cap=cap),
      ),
      optax.clip_by_block_rms(threshold) if threshold else optax.identity(),
      optax.ema(momentum, False, dtype) if momentum else optax.identity(),
      optax.scale(-0.1),
    )
    assert_close(run(tx, params, grads), run(expected, params, grads))
    kept = {x.dtype.name for x in jax.tree.leaves(tx.init(params))}
    assert ("bfloat16" in kept) == (dtype == "bfloat16")
  # Over the two longest axes, of 33 layers too, which ours of 64 leaves alone.
  shapes = {x.shape for x in jax.tree.leaves(tx.init(params))}
  assert (33, 5) in shapes and (33, 37, 5) not in shapes


def test_momentum_in_half_precision():
  tx, _ = optimizers.make(
    SHAPES,
    total_steps=7,
    optimizer_args={
      "momentum": 0.9,
      "nesterov": True,
      "momentum_dtype": "bfloat16",
    },
    learning_rate=0.1,
    schedule=CONSTANT,
  )
  expected = optax.chain(
    optax.trace(0.9, True, jnp.bfloat16), optax.scale(-0.1)
  )
  grads = [random(1), random(2), random(3)]
  assert_close(run(tx, random(0), grads), run(expected, random(0), grads))
  assert {x.dtype.name for x in jax.tree.leaves(tx.init(random(0)))} == {
    "bfloat16",
    "int32",
  }


def test_cosine_schedule_agrees_with_optax():
  actual = optimizers.make_schedule(23, warmup_steps=5)
  expected = optax.warmup_cosine_decay_schedule(0.0, 1.0, 5, 23)
  t = jnp.arange(24)
  np.testing.assert_allclose(actual(t), expected(t), atol=1e-6)


def test_schedule_without_warmup_starts_at_its_peak():
  assert optimizers.make_schedule(10)(0) == 1
  assert optimizers.make_schedule(1, warmup_steps=1)(1) == 1  # a debug run
  assert np.isfinite(optimizers.make_schedule(0)(0))


def test_learning_rates_per_regex():
  _, rates = optimizers.make(
    SHAPES,
    total_steps=10,
    learning_rate=0.2,
    schedule=[
      ("img/.*", {"decay": "constant", "mult": 0.1}),
      (".*", {"decay": "linear"}),
    ],
  )
  np.testing.assert_allclose(rates["img/.*"](5), 0.02, rtol=1e-6)
  np.testing.assert_allclose(rates[".*"](5), 0.1, rtol=1e-6)


def test_ema():
  average = {"a": jnp.array([1.0, 2.0]), "b": jnp.array(3.0)}
  params = {"a": jnp.array([5.0, 0.0], jnp.bfloat16), "b": jnp.array(1.0)}
  actual = optimizers.ema(params, average, 0.75)
  np.testing.assert_array_equal(actual["a"], [2.0, 1.5])
  np.testing.assert_array_equal(actual["b"], 2.5)
  assert actual["a"].dtype == jnp.float32
  kept = optimizers.ema(params, average, 0.0)
  np.testing.assert_array_equal(kept["a"], [5.0, 0.0])


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ({"optimizer": "addam"}, 'unknown optimizer "addam".*mean "adam'),
    (
      {"optimizer_args": {"momentun": 0.9}},
      'optimizer "sgd" has no argument "momentun".*mean "momentum"',
    ),
    ({"optimizer_args": {"nesterov": True}}, "nesterov=True needs a momen"),
    (
      {"schedule": [(".*", {"decay": "cosin"})]},
      'unknown decay "cosin".*mean "cosine"',
    ),
    (
      {"schedule": [(".*", {"warmup_step": 5})]},
      r'schedule of "\.\*": decay "cosine" has no argument "warmup_step".*'
      'mean "warmup_steps"',
    ),
    (
      {"schedule": [(".*", {"decay": "cosine", "power": 2})]},
      'decay "cosine" has no argument "power", expected some of: decay, warm',
    ),
    (
      {"schedule": [(".*", {"decay": "rsqrt", "timescales": 5})]},
      'has no argument "timescales".*shift. Did you mean "timescale"',
    ),
    (
      {"schedule": [(".*", {"total_steps": 5})]},
      'has no argument "total_steps"',
    ),
    (
      {
        "schedule": [
          (".*", {"decay": "stair", "steps": (3, 2), "mults": (1, 2)})
        ]
      },
      r'"stair" has steps=\(3, 2\) and mults=\(1, 2\), expected ascending',
    ),
    (
      {"schedule": [(".*", {"decay": "stair", "steps": (3,)})]},
      r"steps=\(3,\) and mults=\(\), expected ascending steps and as many",
    ),
    (
      {"learning_rate_mults": [("img/.*", 0.0)]},
      'learning_rate_mults of "img/.*" is 0.0, expected more than 0; to leave',
    ),
    (
      {"learning_rate_mults": [("image/.*", 2.0)]},
      'rule "image/.*" matches none of 12 names',
    ),
    (
      {"schedule": [(".*", {"warmup_steps": 7})]},
      "warmup_steps is 7, expected fewer than the 7 steps",
    ),
    (
      {"schedule": [("llm/.*", {})]},
      'no rule matches "img/',
    ),
    (
      {"schedule": [("llm/layer/.*", {}), (".*", {})]},
      'rule "llm/layer/.*" matches none of 12 names',
    ),
    (
      {"weight_decay": 0.1, "weight_decay_mults": [(".*/weights", 1.0)]},
      'rule ".*/weights" matches none of 12 names',
    ),
  ],
)
def test_messages(arguments, message):
  with pytest.raises(ValueError, match=message):
    optimizers.make(SHAPES, total_steps=7, **arguments)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    (dict(warmup_steps=-1), "warmup_steps is -1, expected a number from 0"),
    (dict(warmup_steps=None), "warmup_steps is None, expected a number"),
    (dict(cooldown_steps=-1), "cooldown_steps is -1, expected a number from 0"),
    (
      dict(cooldown_steps=8),
      "cooldown_steps is 8, expected no more than the 7",
    ),
    (dict(mult="x"), "mult is 'x', expected a number from 0"),
    (dict(mult=math.nan), "mult is nan, expected a number from 0"),
    (dict(decay="linear", end=-0.1), "end is -0.1, expected a number from 0"),
    (dict(decay="linear", end=True), "end is True, expected a number from 0"),
    (
      dict(decay="polynomial", power=0),
      "power is 0, expected a number above 0",
    ),
    (
      dict(decay="polynomial", power=-1),
      "power is -1, expected a number above",
    ),
    (
      dict(decay="rsqrt", timescale=0),
      "timescale is 0, expected a number abov",
    ),
    (dict(decay="rsqrt", shift=math.inf), "shift is inf, expected a number fr"),
    (dict(decay="stair", steps=["1"], mults=[0.1]), "one of steps is '1', ex"),
    (dict(decay="stair", steps=[1], mults=[-1]), "one of mults is -1, expec"),
  ],
)
@typecheck.off()
def test_numbers_of_a_schedule_are_checked(options, message):
  with pytest.raises(ValueError, match=f"^{message}"):
    optimizers.make_schedule(7, **options)


def test_decay_that_reaches_nothing_is_an_error():
  names = ["llm/final_norm/scale", "img/head/bias"]
  optimizers.make(names, total_steps=7)
  with pytest.raises(ValueError, match="matches none of 2 names"):
    optimizers.make(names, total_steps=7, weight_decay=0.1)
