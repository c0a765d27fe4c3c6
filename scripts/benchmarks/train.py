"""Steps of training, as the trainer compiles and runs them."""

import functools
import types
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from paligemma import parameters, tree
from paligemma.planning import flops as flops_lib
from paligemma.training import losses, sharding
from scripts.benchmarks import contest, subject
from trainers import state
from trainers.plan import Plan

_LOSSES = 3
_GROWTH = (1, 2, 4)


def _run(plan, trainable, frozen, batch):
  """Returns a function that takes steps from these weights on.

  It waits for the last step, and returns the loss of each.
  """
  compiled, batch = plan.compile_step(), sharding.put_batch(batch, plan.mesh)
  trainable = jax.tree.map(jnp.copy, trainable)
  current = state.create_state(plan.optimizer, trainable, plan.state)

  def steps(count):
    nonlocal current
    measured = []
    for _ in range(count):
      current, measurements = compiled(current, frozen, batch)
      measured.append(measurements["loss"])
    jax.block_until_ready(current)
    return [float(loss) for loss in measured]

  return steps


def reference_losses(
  plan: Plan,
  trainable: Mapping[str, Any],
  frozen: Mapping[str, Any],
  batch: Mapping[str, Any],
  count: int,
) -> list[float]:
  """The loss of each step in the plain form, from some weights on.

  Logits float32[B, T, V] of every position, then the loss, and its gradient by
  jax.grad.
  """

  def mean_loss(trainable, frozen, batch):
    logits, _ = plan.model.apply(
      {"params": tree.unflatten({**frozen, **trainable})},
      batch["image"],
      batch["text"][:, :-1],
      batch["mask_ar"][:, :-1],
      input_mask=batch["mask_input"][:, :-1],
    )
    targets = batch["text"][:, 1:], batch["mask_loss"][:, 1:]
    return losses.next_token(logits, *targets).mean()

  @jax.jit
  def step(trainable, opt_state, frozen, batch):
    loss, grads = jax.value_and_grad(mean_loss)(trainable, frozen, batch)
    updates, opt_state = plan.optimizer.update(grads, opt_state, trainable)
    return optax.apply_updates(trainable, updates), opt_state, loss

  opt_state = plan.optimizer.init(trainable)
  found = []
  for _ in range(count):
    trainable, opt_state, loss = step(trainable, opt_state, frozen, batch)
    found.append(float(loss))
  return found


def work(plan: Plan) -> tuple[float, float]:
  """(FLOPs, bytes) that a step must do: see scripts/benchmark.py."""
  passes = [(plan.frozen, 2), (plan.trainable, 4)]
  moved = sum(
    count * leaf.size * leaf.dtype.itemsize
    for part, count in passes
    for leaf in part.values()
  )
  # Tokens without a loss, the prefix, need no logits.
  passes = 2 + (parameters.EMBEDDING in plan.trainable)
  llm, tokens = plan.model.llm, plan.config.batch_size * subject.PREFIX
  spared = 2 * llm.vocab_size * llm.width * tokens * passes
  return plan.flops_per_step - spared, moved


def measure(
  config: ConfigDict,
  *,
  peer: types.ModuleType | None,
  runs: int,
  steps: int,
  growth: bool,
) -> dict[str, Any]:
  """What `scripts.benchmark train` prints; `peer` is a module or None."""
  plan = subject.make_plan(config)
  model, batch_size = plan.model, config.batch_size
  batch = subject.batch(config, model.llm.vocab_size)
  trainable, frozen = subject.trained_parameters(plan)
  contestants = {"ours": _run(plan, trainable, frozen, batch)}
  if peer is not None:
    weights = {**trainable, **frozen}
    contestants |= peer.trainers(config, model, weights, batch)
  first = {name: take(_LOSSES) for name, take in contestants.items()}
  plain = reference_losses(plan, trainable, frozen, batch, _LOSSES)
  result = contest.compete(
    "train",
    "examples_per_s",
    {n: functools.partial(take, steps) for n, take in contestants.items()},
    runs=runs,
    amount=batch_size,
    phases=[work(plan)],
    dtype=config.model.dtype,
    repeats=steps,
    version=peer and peer.VERSION,
  )
  ours, peak = first.pop("ours"), flops_lib.peak_per_second()
  median = result["examples_per_s"]["median"]
  result |= {
    "mfu": peak and result["flops"] * median / batch_size / peak,
    "losses": ours,
    "loss_difference": _largest_difference(ours, plain),
  }
  if peer is not None:
    result["peer"]["loss_difference"] = {
      name: _largest_difference(ours, each) for name, each in first.items()
    }
  if growth:
    result["growth"] = {
      "batch_size": [_memory(config, batch_size * times) for times in _GROWTH],
      "res": [_time(config, config.res * times) for times in _GROWTH],
    }
  return result


def _memory(config, batch_size):
  plan = subject.make_plan(subject.changed(config, batch_size=batch_size))
  memory = plan.compile_step().memory_analysis()
  return {
    "batch_size": batch_size,
    "arguments": memory.argument_size_in_bytes,
    "temporaries": memory.temp_size_in_bytes,
  }


def _time(config, res):
  config = subject.changed(config, res=res, batch_size=jax.device_count())
  plan = subject.make_plan(config)
  batch = subject.batch(config, plan.model.llm.vocab_size)
  steps = _run(plan, *subject.trained_parameters(plan), batch)
  taken = contest.seconds({"": functools.partial(steps, 1)}, 3)[""]
  return {"res": res, "flops": plan.flops_per_step, "seconds": min(taken)}


def _largest_difference(ours, theirs):
  return float(np.abs(np.subtract(ours, theirs)).max())  # NaN if one is
