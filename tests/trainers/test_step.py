"""One step: what it moves, what it leaves alone, what it must not notice."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paligemma import tree
from paligemma.checkpoints import npz
from paligemma.models import paligemma as paligemma_model
from paligemma.training import losses, optimizers
from trainers import step as step_lib
from trainers.state import TrainState
from trainers.tasks import next_token

ROWS, LENGTH = 6, 11
LEARNING_RATE = 0.5


@pytest.fixture(scope="module")
def config(tiny):
  return tiny.config()


@pytest.fixture(scope="module")
def model(config):
  return paligemma_model.make(**config.model.to_dict())


@pytest.fixture(scope="module")
def params(tiny, config):
  """Two flat dicts: the attention leaves of the decoder, and the rest."""
  flat = npz.load(config.init)
  return tree.partition(flat, tree.match_any(config.trainable, flat))


@pytest.fixture(scope="module")
def batch():
  """Six rows of random pixels and tokens with answers of several lengths."""
  rng = np.random.default_rng(2)
  position = np.arange(LENGTH)
  prompt = rng.integers(2, 5, (ROWS, 1))
  end = prompt + rng.integers(1, 6, (ROWS, 1))
  text = rng.integers(3, 1792, (ROWS, LENGTH)) * (position < end)
  return {
    "image": rng.uniform(-1, 1, (ROWS, 28, 28, 3)).astype(np.float32),
    "text": text.astype(np.int32),
    "mask_ar": (position >= prompt).astype(np.int32),
    "mask_input": position < end,
    "mask_loss": ((position >= prompt) & (position < end)).astype(np.int32),
    "_mask": np.ones(ROWS, bool),
  }


def make_optimizer(names):
  """Plain SGD."""
  schedule = ((".*", {"decay": "constant"}),)
  optimizer, _ = optimizers.make(
    list(names), total_steps=10, learning_rate=LEARNING_RATE, schedule=schedule
  )
  return optimizer


@functools.cache
def compiled(model, names, seed=3, **arguments):
  """The jitted step for trainable leaves of these names."""
  smoothing = arguments.pop("label_smoothing", 0.0)
  loss = next_token.make_loss(model, label_smoothing=smoothing)
  optimizer = make_optimizer(names)
  return jax.jit(step_lib.make_step(loss, optimizer, seed=seed, **arguments))


def new_state(trainable, *, step=0, ema=None):
  optimizer = make_optimizer(trainable)
  trainable = jax.tree.map(jnp.asarray, trainable)
  return TrainState(jnp.int32(step), trainable, optimizer.init(trainable), ema)


def assert_close(found, expected, atol=1e-6):
  assert found.keys() == expected.keys()
  for name, leaf in expected.items():
    np.testing.assert_allclose(
      found[name], leaf, rtol=0, atol=atol, err_msg=name
    )


def assert_equal(found, expected):
  assert_close(found, expected, atol=0)


@pytest.fixture(scope="module")
def after(model, params, batch):
  """State and measurements after one step of plain SGD."""
  trainable, frozen = params
  step = compiled(model, tuple(trainable))
  return step(new_state(trainable), frozen, batch)


@pytest.fixture(scope="module")
def logits(model, params, batch):
  """What the model says before the step."""

  def forward(params, batch):
    return model.apply(
      {"params": params},
      batch["image"],
      batch["text"][:, :-1],
      batch["mask_ar"][:, :-1],
      input_mask=batch["mask_input"][:, :-1],
    )[0]

  both = tree.unflatten({**params[0], **params[1]})
  return jax.jit(forward)(both, batch)


def test_loss_is_the_mean_per_example_then_over_examples(logits, batch, after):
  log_probs = np.asarray(jax.nn.log_softmax(logits))
  means = []
  for row in range(ROWS):
    at = np.flatnonzero(batch["mask_loss"][row, 1:])
    targets = batch["text"][row, 1:][at]
    means.append(-np.mean(log_probs[row, at, targets]))
  _, measured = after
  np.testing.assert_allclose(measured["loss"], np.mean(means), rtol=1e-5)
  assert measured["num_examples"] == ROWS
  assert measured["num_tokens"] == batch["mask_loss"][:, 1:].sum()


def test_exactly_the_attention_leaves_train(params, after):
  trainable, _ = params
  state, _ = after
  assert sorted(trainable) == [
    "llm/layers/attn/attn_vec_einsum/w",
    "llm/layers/attn/kv_einsum/w",
    "llm/layers/attn/q_einsum/w",
  ]
  assert state.trainable.keys() == trainable.keys()
  for name, before in trainable.items():
    layers = np.abs(state.trainable[name] - before).reshape(len(before), -1)
    assert (layers.max(axis=1) > 1e-4).all(), name
    assert state.trainable[name].dtype == jnp.float32
  assert jax.tree.leaves(state.opt_state) == [1]  # the count of plain SGD


def test_measurements_are_those_of_the_gradient(params, after):
  trainable, _ = params
  state, measured = after
  change = {n: state.trainable[n] - x for n, x in trainable.items()}
  norm = np.sqrt(sum(np.square(x).sum() for x in change.values()))
  np.testing.assert_allclose(measured["update_norm"], norm, rtol=1e-4)
  np.testing.assert_allclose(
    measured["grad_norm"], norm / LEARNING_RATE, rtol=1e-4
  )
  total = np.sqrt(sum(np.square(x).sum() for x in state.trainable.values()))
  np.testing.assert_allclose(measured["param_norm"], total, rtol=1e-5)
  assert int(state.step) == 1


def test_accumulated_is_at_once(model, params, batch, after):
  trainable, frozen = params
  # One row less, so that the micro batches count unequally many examples.
  batch = {**batch, "_mask": np.arange(ROWS) != 4}
  at_once = compiled(model, tuple(trainable))
  in_parts = compiled(model, tuple(trainable), accumulate_steps=3)
  expected, expected_measured = at_once(new_state(trainable), frozen, batch)
  found, measured = in_parts(new_state(trainable), frozen, batch)
  assert_close(found.trainable, expected.trainable)
  assert_close(measured, expected_measured, atol=1e-5)


def test_micro_batches_must_divide_the_batch(model, params, batch):
  trainable, frozen = params
  step = compiled(model, tuple(trainable), accumulate_steps=4)
  with pytest.raises(ValueError, match="batch_size 6 does not divide into acc"):
    step(new_state(trainable), frozen, batch)


def test_rows_that_only_fill_the_batch_count_for_nothing(
  model, params, batch, after
):
  trainable, frozen = params
  step = compiled(model, tuple(trainable))
  kept = np.arange(ROWS) < 4
  results = []
  for seed in range(2):
    rng = np.random.default_rng(seed)
    filled = {"_mask": kept}
    for key in ("image", "text", "mask_ar", "mask_input", "mask_loss"):
      other = rng.permutation(batch[key][kept])[:2]
      filled[key] = np.concatenate([batch[key][kept], other])
    results.append(step(new_state(trainable), frozen, filled))
  (found, measured), (other, _) = results
  assert_equal(found.trainable, other.trainable)
  assert measured["num_examples"] == 4

  alone = {key: value[kept] for key, value in batch.items()}
  expected, expected_measured = step(new_state(trainable), frozen, alone)
  assert_close(found.trainable, expected.trainable)
  np.testing.assert_allclose(
    measured["loss"], expected_measured["loss"], rtol=1e-6
  )


@pytest.mark.parametrize("accumulate_steps", [1, 3])
def test_a_batch_without_an_example_is_no_step(
  model, params, batch, accumulate_steps
):
  trainable, frozen = params
  optimizer, _ = optimizers.make(
    list(trainable),
    total_steps=10,
    optimizer="adamw",
    weight_decay=0.1,
    schedule=((".*", {"decay": "cosine", "warmup_steps": 1}),),
  )
  step = jax.jit(
    step_lib.make_step(
      next_token.make_loss(model),
      optimizer,
      seed=3,
      accumulate_steps=accumulate_steps,
      ema_decay=0.75,
    )
  )
  start = {name: jnp.asarray(x) for name, x in trainable.items()}
  state = TrainState(jnp.int32(0), start, optimizer.init(start), start)
  # Moments, counts and averages that a step of length zero would change.
  for _ in range(2):
    state, _ = step(state, frozen, batch)
  padding = {name: np.zeros_like(x) for name, x in batch.items()}
  # Skipped rows are zeros; that they count for nothing is decided by _mask.
  none_real = {**batch, "_mask": np.zeros(ROWS, bool)}
  for empty in (padding, none_real):
    after, measured = step(state, frozen, empty)
    assert int(after.step) == int(state.step) + 1
    unchanged = after.replace(step=state.step)
    for found, expected in zip(
      jax.tree.leaves(unchanged), jax.tree.leaves(state), strict=True
    ):
      np.testing.assert_array_equal(found, expected)
    assert all(np.isfinite(x) for x in measured.values())
    names = ("loss", "grad_norm", "update_norm", "num_examples")
    assert [measured[name] for name in names] == [0, 0, 0, 0]
    assert measured["param_norm"] > 0
  # The next batch is the step that it would have been.
  found, _ = step(after, frozen, batch)
  expected, _ = step(state, frozen, batch)
  assert_equal(found.trainable, expected.trainable)
  assert_equal(found.ema, expected.ema)
  assert step._cache_size() == 1


def test_padding_may_be_anywhere_and_of_any_length(model, params, batch, after):
  trainable, frozen = params
  longer = dict(batch)
  for key, filling in (
    ("text", 0),
    ("mask_ar", 1),
    ("mask_input", False),
    ("mask_loss", 0),
  ):
    padded = np.pad(batch[key], [(0, 0), (0, 3)], constant_values=filling)
    # And inside the prompt, where only mask_input tells it from a token.
    inside = np.zeros((ROWS, 2), padded.dtype)
    longer[key] = np.insert(padded, [1], inside, axis=1)
  step = compiled(model, tuple(trainable))
  found, measured = step(new_state(trainable), frozen, longer)
  expected, expected_measured = after
  assert_close(found.trainable, expected.trainable)
  assert_close(measured, expected_measured, atol=1e-5)


def test_label_smoothing_and_moving_average(model, params, batch, logits):
  trainable, frozen = params
  step = compiled(model, tuple(trainable), label_smoothing=0.3, ema_decay=0.75)
  start = {name: jnp.asarray(x) + 1 for name, x in trainable.items()}
  state, measured = step(new_state(trainable, ema=start), frozen, batch)
  for name, average in state.ema.items():
    expected = 0.75 * start[name] + 0.25 * state.trainable[name]
    np.testing.assert_allclose(average, expected, atol=1e-6, err_msg=name)

  smoothed = losses.next_token(
    logits,
    batch["text"][:, 1:],
    batch["mask_loss"][:, 1:],
    label_smoothing=0.3,
  )
  np.testing.assert_allclose(measured["loss"], smoothed.mean(), rtol=1e-5)


@pytest.fixture(scope="module")
def dropping(config):
  """The model with dropout in both towers."""
  fields = config.model.to_dict()
  fields["llm"]["dropout"] = fields["img"]["dropout"] = 0.3
  return paligemma_model.make(**fields)


def test_dropout_depends_on_seed_and_step_alone(dropping, params, batch):
  trainable, frozen = params

  def loss(step, seed):
    run = compiled(dropping, tuple(trainable), seed=seed, accumulate_steps=3)
    _, measured = run(new_state(trainable, step=step), frozen, batch)
    return float(measured["loss"])

  assert loss(step=0, seed=3) == loss(step=0, seed=3)
  assert loss(step=0, seed=3) != loss(step=1, seed=3)
  assert loss(step=0, seed=3) != loss(step=0, seed=4)


def test_each_micro_batch_drops_other_units(dropping, params, batch):
  trainable, frozen = params
  run = compiled(dropping, tuple(trainable), seed=3, accumulate_steps=3)
  # Row i goes to micro batch i % 3: all three get the same two examples, of
  # which only one micro batch counts at a time.
  copies = {
    key: np.repeat(value[:2], 3, axis=0) for key, value in batch.items()
  }
  losses_of_parts = []
  for part in range(3):
    copies["_mask"] = np.arange(ROWS) % 3 == part
    _, measured = run(new_state(trainable), frozen, copies)
    losses_of_parts.append(float(measured["loss"]))
  assert len(set(losses_of_parts)) == 3


def test_frozen_weights_may_be_stored_in_bfloat16(model, params, batch):
  trainable, frozen = params
  step = compiled(model, tuple(trainable))
  stored = {name: jnp.asarray(x, jnp.bfloat16) for name, x in frozen.items()}
  rounded = {name: x.astype(jnp.float32) for name, x in stored.items()}
  found, measured = step(new_state(trainable), stored, batch)
  expected, _ = step(new_state(trainable), rounded, batch)
  assert_close(found.trainable, expected.trainable)
  for leaf in (*found.trainable.values(), *measured.values()):
    assert leaf.dtype == jnp.float32
