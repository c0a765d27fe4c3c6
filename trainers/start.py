"""Where a run starts: initial weights, and over them its last checkpoint."""

from paligemma.checkpoints import npz
from trainers import state


def start_or_resume(plan, checkpoints, batches):
  """Loads the initial weights, and over them the last checkpoint if any.

  Raises:
    ValueError: the initial weights are not those of the checkpoint.
  """
  config = plan.config
  everything = {**plan.trainable, **plan.frozen}
  if config.init:
    params = state.load_params(config.init, everything)
  else:
    params = state.random_params(
      plan.model, config.res, everything, seed=config.seed
    )
  frozen = {name: params[name] for name in plan.frozen}
  trainable = {name: params[name] for name in plan.trainable}
  train_state = state.create_state(plan.optimizer, trainable, plan.state)

  latest = checkpoints.latest_step()
  if latest is None:
    return train_state, frozen
  found, given = checkpoints.metadata(latest)["init"], frozen_source(config)
  if found != given:
    raise ValueError(
      f"checkpoint of step {latest} was trained on top of {found}, but init is "
      f"now {given}; give the former weights"
    )
  trainable, opt_state, ema = checkpoints.restore(
    latest,
    plan.state.trainable,
    plan.state.opt_state,
    ema=plan.state.ema,
    data_iterator=batches,
  )
  step = state.place(latest, plan.state.step)
  restored = state.TrainState(step, trainable, opt_state, ema)
  return restored, frozen


def frozen_source(config):
  """Names the weights a run started from: where they lie, and their hash."""
  if config.init:
    return {"path": config.init, "fingerprint": npz.fingerprint(config.init)}
  return {"path": "random", "fingerprint": f"seed:{config.seed}"}
