"""Training in float16: the scale of the loss, from the rule to the run."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paligemma.checkpoints.training.steps import StepCheckpoints
from paligemma.training import optimizers
from trainers import loop, start
from trainers import step as step_lib
from trainers.plan import Plan
from trainers.state import TrainState

FIRST = 2**15
ROWS = 8


def scale(value, good_steps=0, skipped_steps=0):
  return optimizers.LossScale(
    jnp.float32(value), jnp.int32(good_steps), jnp.int32(skipped_steps)
  )


@pytest.mark.parametrize(
  ("before", "is_finite", "after"),
  [
    ((8, 0, 3), True, (8, 1, 3)),
    ((8, 1998, 3), True, (8, 1999, 3)),
    ((8, 1999, 3), True, (16, 0, 3)),
    ((8, 1999, 3), False, (4, 0, 4)),
    ((8, 0, 3), False, (4, 0, 4)),
    ((1, 5, 3), False, (1, 0, 4)),
  ],
)
def test_growth_and_back_off(before, is_finite, after):
  found = optimizers.next_loss_scale(scale(*before), jnp.bool(is_finite))
  assert tuple(map(float, found)) == after


def one_weight(slope):
  """A step whose loss is `slope` times the only weight, and its state."""

  def loss(params, batch, rng):
    del rng
    return slope * params["w"] * batch["_weight"][0], {}

  optimizer, _ = optimizers.make(
    ["w"],
    total_steps=9,
    learning_rate=0.5,
    schedule=((".*", {"decay": "constant"}),),
    scales_loss=True,
  )
  trainable = {"w": jnp.float32(7.0)}
  state = TrainState(
    jnp.int32(0), trainable, optimizer.init(trainable), {"w": jnp.float32(3)}
  )
  return jax.jit(step_lib.make_step(loss, optimizer, seed=0, ema_decay=0.5)), (
    state
  )


BATCH = {"_mask": np.ones(1, bool)}


def test_a_step_that_overflows_is_none():
  slope = 1e35  # times 2**15 it exceeds float32, times 2**11 it does not
  step, state = one_weight(slope)
  for skipped in range(1, 5):
    state, measured = step(state, {}, BATCH)
    assert state.trainable["w"] == 7 and state.ema["w"] == 3
    assert int(state.step) == skipped and int(state.opt_state.count) == 0
    found = {name: float(value) for name, value in measured.items()}
    assert found["skipped_steps"] == skipped
    assert found["loss_scale"] == 2 * FIRST / 2**skipped
    assert found["grad_norm"] == found["update_norm"] == 0
  state, measured = step(state, {}, BATCH)
  assert measured["loss_scale"] == 2**11
  assert tuple(map(float, state.opt_state.loss_scale)) == (2**11, 1, 4)
  np.testing.assert_allclose(measured["grad_norm"], slope, rtol=1e-6)
  np.testing.assert_allclose(state.trainable["w"], -slope / 2, rtol=1e-6)
  assert int(state.opt_state.count) == 1


def test_a_gradient_that_no_scale_makes_finite_is_shown():
  step, state = one_weight(np.inf)
  for _ in range(15):
    state, measured = step(state, {}, BATCH)
    assert measured["grad_norm"] == 0
  _, measured = step(state, {}, BATCH)
  assert measured["loss_scale"] == 1 and np.isinf(measured["grad_norm"])


def test_a_skipped_step_is_reported_once():
  said = []
  report = types.SimpleNamespace(say=said.append)
  run = types.SimpleNamespace(skipped_steps=2, report=report)
  measured = dict(num_examples=8, loss=1.0, grad_norm=0.0, param_norm=1.0)
  measured |= dict(loss_scale=2.0**15, skipped_steps=3)
  for _ in range(2):
    loop.Loop.check(run, 7, measured)
  assert said == [
    "step 7: a gradient exceeds float16 at loss scale 32768, which is halved; "
    "the weights stay as they are"
  ]


def test_a_batch_without_an_example_leaves_the_scale():
  step, state = one_weight(1.0)
  state, _ = step(state, {}, {"_mask": np.zeros(1, bool)})
  assert tuple(map(float, state.opt_state.loss_scale)) == (FIRST, 0, 0)


def planned(tiny, dtype, learning_rate=0.03, **arguments):
  """A plan, and a batch for it."""
  values = {"model.dtype": dtype, "learning_rate": learning_rate}
  config = tiny.config(values, **arguments)
  plan = Plan(config, examples_per_epoch=ROWS)
  *_, shapes = plan.step_arguments()
  rng = np.random.default_rng(0)
  batch = {n: np.zeros(x.shape, x.dtype) for n, x in shapes.items()}
  batch["text"] = rng.integers(3, 9, batch["text"].shape, np.int32)
  batch["image"] = rng.uniform(-1, 1, batch["image"].shape).astype(np.float32)
  batch["mask_input"][:] = batch["_mask"][:] = True
  batch["mask_ar"][:, 5:] = batch["mask_loss"][:, 5:] = 1
  return plan, {
    n: jax.device_put(x, shapes[n].sharding) for n, x in batch.items()
  }


def losses(plan, batch, state, frozen, steps):
  step, found = plan.compile_step(), []
  for _ in range(steps):
    state, measured = step(state, frozen, batch)
    found.append(float(measured["loss"]))
  return state, found


@pytest.mark.parametrize(
  ("tune", "rate"), [("attention", 0.3), ("qlora_int4", 0.3), ("full", 0.03)]
)
def test_float16_learns_as_float32_does(tiny, tune, rate):
  found = {}
  for dtype in ("float32", "float16"):
    plan, batch = planned(tiny, dtype, rate, tune=tune, epochs=30)
    state, found[dtype] = losses(plan, batch, *start.initial(plan), 20)
  skipped = int(state.opt_state.loss_scale.skipped_steps)
  assert skipped < 5
  expected = np.array(found["float32"][: 20 - skipped])
  assert expected[-1] < 0.95 * expected[0]
  np.testing.assert_allclose(found["float16"][skipped:], expected, rtol=0.01)


def test_other_dtypes_have_no_scale(tiny):
  for dtype in ("float32", "bfloat16"):
    plan, _ = planned(tiny, dtype)
    assert plan.state.opt_state.loss_scale is None


def test_a_resumed_run_goes_on_with_its_scale(tiny, tmp_path):
  plan, batch = planned(tiny, "float16")
  state, frozen = start.initial(plan)
  opt_state = state.opt_state._replace(loss_scale=scale(2**9, 1998, 4))
  state = state.replace(opt_state=opt_state)
  state, _ = losses(plan, batch, state, frozen, 1)
  with StepCheckpoints(tmp_path) as checkpoints:
    checkpoints.save(1, state.trainable, state.opt_state)
    restored = checkpoints.restore(
      1, plan.state.trainable, plan.state.opt_state
    )
  resumed = TrainState(jnp.int32(1), *restored)
  ends = [losses(plan, batch, s, frozen, 2)[0] for s in (state, resumed)]
  for one, other in zip(*map(jax.tree.leaves, ends), strict=True):
    np.testing.assert_array_equal(one, other)
  assert tuple(map(float, ends[1].opt_state.loss_scale)) == (2**10, 1, 4)


@pytest.mark.parametrize("tune", ["attention", "qlora_int4"])
def test_all_products_of_the_backward_pass_are_of_float16(tiny, tune):
  plan, _ = planned(tiny, "float16", tune=tune)
  hlo = plan.lower_step().as_text()
  found = [x for x in hlo.splitlines() if "stablehlo.dot_general" in x]
  of_float32 = [x for x in found if "f32>, tensor" in x]
  assert len(found) > 30 and not of_float32
