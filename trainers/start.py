"""The start of a run: its initial weights, or its last checkpoint."""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from paligemma import init, io
from paligemma.checkpoints import formats
from paligemma.checkpoints.checkpoint import Checkpoint
from paligemma.checkpoints.training.steps import StepCheckpoints
from paligemma.data import image
from paligemma.parameters import LOSS_HEADS
from paligemma.tree import Flat
from trainers import progress, state
from trainers.plan import Plan


def start_or_resume(
  plan: Plan, checkpoints: StepCheckpoints, batches: Iterator[Any]
) -> tuple[state.TrainState, Flat]:
  """The state and the frozen parameters, of the last checkpoint if any.

  Raises:
    ValueError: the checkpoint has other frozen weights, or is of a later step
      than the end of the training.
  """
  latest = checkpoints.latest_step()
  if latest is None:
    return initial(plan)
  found = checkpoints.metadata(latest)["init"]
  given = frozen_source(plan.config)
  if plan.frozen and found["fingerprint"] != given["fingerprint"]:
    raise ValueError(
      f"checkpoint of step {latest} was trained on top of {found}, but init is "
      f"now {given}; give the former weights"
    )
  frozen = _initial_params(plan, plan.frozen)
  with progress.stage(f"restoring the checkpoint of step {latest}"):
    trainable, opt_state, ema = checkpoints.restore(
      latest,
      plan.state.trainable,
      plan.state.opt_state,
      ema=plan.state.ema,
      data_iterator=batches,
    )
  if latest > plan.total_steps:
    raise ValueError(
      f"the checkpoint is that of step {latest}, but the training now ends at "
      f"step {plan.total_steps}; give more total_epochs or total_steps"
    )
  step = jax.make_array_from_callback(
    (), plan.state.step.sharding, lambda _: np.int32(latest)
  )
  return state.TrainState(step, trainable, opt_state, ema), frozen


def check_weights(plan: Plan) -> None:
  """Raises if the initial weights do not fit, before anything is compiled."""
  if plan.config.init:
    everything = {**plan.trainable, **plan.frozen}
    state.fit_params(source(plan.config), everything)


def initial(plan: Plan) -> tuple[state.TrainState, Flat]:
  """The state and the frozen parameters before the first step."""
  params = _initial_params(plan, {**plan.trainable, **plan.frozen})
  frozen = {name: params.pop(name) for name in plan.frozen}
  return state.create_state(plan.optimizer, params, plan.state), frozen


def _initial_params(plan, names):
  """The parameters of these names before the first step."""
  config = plan.config
  everything = {**plan.trainable, **plan.frozen}
  params = {}
  if config.init and names:
    params = state.load_params(source(config), everything, names)
  if drawn := {n: everything[n] for n in names if n not in params}:
    with progress.stage(f"drawing {len(drawn)} parameters"):
      params |= init.random_params(
        plan.model, config.res, drawn, seed=config.seed
      )
  return params


def source(config: ConfigDict) -> str | dict[str, str]:
  """What formats.open takes: a path, or one of each tower; "" for none."""
  init = config.init
  return init.to_dict() if isinstance(init, ConfigDict) else init


def frozen_source(config: ConfigDict) -> dict[str, Any]:
  """Path and hash of the weights a run started from, of two towers a dict."""
  if not config.init:
    return {"path": "random", "fingerprint": f"seed:{config.seed}"}
  path = source(config)
  return {"path": path, "fingerprint": formats.fingerprint(path)}


def checkpoint_metadata(config: ConfigDict) -> dict[str, Any]:
  """The metadata of the last checkpoint of a run."""
  known = formats.open(source(config)).metadata if config.init else {}
  return {**known, "preprocessing": config.train.resize}


def describe_source(config: ConfigDict, model: io.Model) -> str:
  """Lines on the initial weights, and on what the config overrides in them."""
  if not config.init:
    return "initial weights: random"
  path = source(config)
  heads = [head for head in LOSS_HEADS if getattr(model, head, None)]
  checkpoint = formats.open(path, keep=heads)
  lines = [f"initial weights: {checkpoint.describe()}"]
  for head in set(heads) - state.loss_heads(checkpoint.leaves):
    lines.append(f'note: nothing under "{head}/" in the files, so it is drawn')
  name, tower = list(model.towers.items())[-1]
  for field, theirs in getattr(checkpoint, name).items():
    if (ours := getattr(tower, field)) != theirs:
      key = "lora" if field == "lora" else f"{name}.{field}"
      lines.append(
        f"note: {field} is {theirs} in the files and {ours} in this run; "
        f"config.model.{key} changes it"
      )
  if isinstance(path, dict) and len(path) == 1:
    lines.append(
      f"note: {checkpoint.path} gives {', '.join(path)} alone; all else begins "
      "with random weights"
    )
  return "\n".join(lines + preprocessing_notes(config, checkpoint))


def preprocessing_notes(
  config: ConfigDict, checkpoint: Checkpoint
) -> list[str]:
  """A line if the files were made with another resize than the config's."""
  theirs = checkpoint.metadata.get("preprocessing")
  known = image.PREPROCESSING
  if theirs is None or known.get(theirs) is known.get(config.train.resize):
    return []
  return [
    f'note: pictures are prepared as "{theirs}" by what made the files and as '
    f'"{config.train.resize}" here; config.train.resize changes it'
  ]
