"""Contrastive training: the step's loss and gradients, however it is split."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import common
from paligemma import init, tree
from paligemma.models import siglip
from paligemma.training import sharding
from tests.training import test_contrastive as plain
from trainers import inputs, tasks
from trainers.state import TrainState
from trainers.step import make_step
from trainers.tasks import contrastive

BATCH, RES = 16, 28
TINY = {"width": 12, "depth": 2, "mlp_dim": 20, "num_heads": 2}
REAL = np.ones(BATCH, bool)
REAL[[3, 11, 15]] = False


@pytest.fixture(scope="module")
def model():
  txt = {**TINY, "text_len": 5, "vocab_size": 31, "num_classes": 12}
  return siglip.make("siglip_tiny", img=TINY, txt=txt, bias_init=-2.71)


@pytest.fixture(scope="module")
def params(model):
  shapes = init.shapes(model, RES)
  rng = np.random.default_rng(1)
  return {
    name: rng.normal(0.5 * (len(leaf.shape) == 1), 0.3, leaf.shape).astype(
      np.float32
    )
    for name, leaf in shapes.items()
  }


@pytest.fixture(scope="module")
def batch():
  rng = np.random.default_rng(2)
  return {
    "image": rng.uniform(-1, 1, (BATCH, RES, RES, 3)).astype(np.float32),
    "text": rng.integers(0, 31, (BATCH, 5)).astype(np.int32),
    "_mask": REAL,
  }


def run(model, params, batch, *, devices=1, kind="sigmoid", microbatches=1):
  """State and measurements after one step of SGD at rate 1, all training."""
  mesh = sharding.make_mesh(devices=jax.devices()[:devices])
  loss = contrastive.make_loss(model, loss=kind, num_microbatches=microbatches)
  optimizer = optax.sgd(1.0)
  step = make_step(loss, optimizer, seed=0)
  shardings = sharding.infer(params, mesh)
  params = {n: jax.device_put(x, shardings[n]) for n, x in params.items()}
  state = TrainState(jnp.int32(0), params, optimizer.init(params), None)
  with jax.set_mesh(mesh):
    return jax.jit(step)(state, {}, sharding.put_batch(batch, mesh))


def expected_step(model, params, batch, kind):
  """Loss and gradients of the real examples alone, with all logits at once."""

  def loss(params):
    image, text = (batch[name][REAL] for name in ("image", "text"))
    zimg, ztxt, out = model.apply(
      {"params": tree.unflatten(params)}, image, text
    )
    t, b = out["t"][0], out["b"][0]
    return plain.PLAIN[kind](zimg, ztxt, t, b) / REAL.sum()

  return jax.jit(jax.value_and_grad(loss))(params)


@pytest.mark.parametrize("kind", ["sigmoid", "softmax"])
@pytest.mark.parametrize(("devices", "microbatches"), [(1, 1), (8, 1), (2, 4)])
def test_a_step_is_that_of_the_whole_batch(
  model, params, batch, kind, devices, microbatches
):
  expected, grads = expected_step(model, params, batch, kind)
  state, measured = run(
    model,
    params,
    batch,
    devices=devices,
    kind=kind,
    microbatches=microbatches,
  )
  np.testing.assert_allclose(measured["loss"], expected, rtol=1e-6)
  assert measured["num_examples"] == REAL.sum()
  np.testing.assert_allclose(
    measured["temperature"], np.exp(params["t"][0]), rtol=1e-6
  )
  assert measured["bias"] == params["b"][0]
  for name, grad in grads.items():
    found = params[name] - state.trainable[name]
    np.testing.assert_allclose(found, grad, rtol=1e-6, atol=1e-6, err_msg=name)


def test_a_batch_without_examples_is_no_step(model, params, batch):
  empty = {**batch, "_mask": np.zeros(BATCH, bool)}
  for kind in ("sigmoid", "softmax"):
    state, measured = run(model, params, empty, kind=kind)
    for name, before in params.items():
      np.testing.assert_array_equal(state.trainable[name], before)
    assert all(np.isfinite(x) for x in measured.values())
    assert measured["accuracy"] == measured["loss"] == 0


def test_equal_texts_are_noted(model, params, batch):
  text = batch["text"].copy()
  text[[1, 3, 7]] = text[0]  # one of them is not real
  _, measured = run(model, params, {**batch, "text": text})
  assert measured["equal_texts"] == 2
  assert 0 <= measured["accuracy"] <= 1


def config_of(**values):
  config = common.defaults("contrastive")
  config.model.variant = "siglip_tiny"
  config.update(values)
  return config


def test_batches_that_hold_no_two_pairs_or_do_not_divide(model, params, batch):
  with pytest.raises(ValueError, match=r"^batch_size is 1, but a contrastive"):
    inputs.abstract_batch(config_of(batch_size=1), sharding.make_mesh())
  with pytest.raises(ValueError, match=r"16 does not divide into acc.* 3\n"):
    run(model, params, batch, microbatches=3)
  with pytest.raises(ValueError, match='Did you mean "sigmoid"'):
    contrastive.make_loss(model, loss="sigmod")
  with pytest.raises(ValueError, match='task "contrastive" decodes nothing'):
    tasks.of(config_of()).batch_shapes(config_of(), decodes=True)


def test_keys_of_the_other_task_are_unknown():
  config = config_of()
  assert "llm" not in config.model and "text_len" not in config
  config.model.llm = {"width": 3}
  with pytest.raises(ValueError, match=r"^config\.model\.llm is unknown"):
    common.complete(config)


def test_a_naflex_has_patches_for_images():
  config = config_of(max_patches=9, batch_size=4)
  config.model.variant = "siglip2_b16_naflex"
  shapes = tasks.of(config).batch_shapes(config)
  assert {name: leaf.shape for name, leaf in shapes.items()} == {
    "patches": (4, 9, 768),
    "type": (4, 9),
    "yidx": (4, 9),
    "xidx": (4, 9),
    "text": (4, 64),
    "_mask": (4,),
  }
