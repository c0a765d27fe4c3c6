"""The training step: a pure function of state, frozen weights and batch."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import optax

from paligemma import tree
from paligemma.training import optimizers
from trainers.state import TrainState
from trainers.tasks.task import Loss

Arrays = Mapping[str, jax.Array]
Step = Callable[
  [TrainState, Arrays, Arrays], tuple[TrainState, dict[str, jax.Array]]
]


def make_step(
  loss: Loss,
  optimizer: optax.GradientTransformation,
  *,
  seed: int,
  accumulate_steps: int = 1,
  ema_decay: float | None = None,
  teach_from: int | None = None,
) -> Step:
  """Builds the step of a training.

  The loss is the mean over the examples of the global batch (those with
  `_mask`). A batch without an example is no step of the optimizer: parameters,
  its state (the schedule's count with it) and the moving average stay as they
  are, and `step` alone advances, which counts batches. So it is for a step with
  a gradient that is not finite, if the optimizer's state has a LossScale.

  Args:
    loss: of a batch, see tasks/task.py.
    optimizer: over flat dicts.
    seed: dropout depends on it and on the number of the step.
    accumulate_steps: microbatches the batch is split into, for a loss that is
      the sum of theirs; the gradient is that of the whole batch, the
      activations are those of one of them.
    ema_decay: of the moving average of the parameters, None for none.
    teach_from: the step at which the average becomes a teacher; until then it
      is the parameters themselves. The loss then also gets `teacher`, all
      parameters as a tree, those that train averaged, and `is_taught`, whether
      that step has come; among its measurements it returns "averaged", what is
      averaged in the place of some parameters. None: there is no teacher.

  Returns:
    Function of TrainState, frozen parameters and a batch that returns the new
    TrainState and measurements, float32[]: loss, grad_norm, update_norm,
    param_norm, num_examples and those of the loss; without an example the first
    three are 0. With a LossScale also loss_scale, that of this step, and
    skipped_steps, the number of steps that a gradient has made none; of those,
    grad_norm and update_norm are 0, unless the scale cannot fall any more.

  Raises:
    ValueError: on tracing, if the batch does not divide into the microbatches.
  """

  def summed_loss(trainable, frozen, batch, rng, **taught):
    return loss(tree.unflatten({**frozen, **trainable}), batch, rng, **taught)

  loss_and_grads = jax.value_and_grad(summed_loss, has_aux=True)

  def accumulated(trainable, frozen, batch, rng, **taught):
    if accumulate_steps == 1:
      return loss_and_grads(trainable, frozen, batch, rng, **taught)
    size, rest = divmod(len(batch["_mask"]), accumulate_steps)
    if rest:
      raise ValueError(
        f"batch_size {len(batch['_mask'])} does not divide into "
        f"accumulate_steps {accumulate_steps}"
      )

    def one(trainable, frozen, batch, rngs):
      return loss_and_grads(trainable, frozen, batch, rngs[0])

    # Row i is in microbatch i % accumulate_steps, so that each keeps an equal
    # share on every device; all rows of one have its key.
    rngs = jnp.tile(jax.random.split(rng, accumulate_steps), size)
    return optax.microbatching.microbatch(one, (2, 3), size)(
      trainable, frozen, batch, rngs
    )

  def step(state, frozen, batch):
    rng = jax.random.fold_in(jax.random.key(seed), state.step)
    taught, decay = {}, ema_decay
    if teach_from is not None:
      taught["teacher"] = tree.unflatten({**frozen, **state.ema})
      taught["is_taught"] = state.step >= teach_from
      decay = jnp.where(taught["is_taught"], ema_decay, 0.0)
    loss_scale = getattr(state.opt_state, "loss_scale", None)
    if loss_scale is not None:
      weight = jnp.full(batch["_mask"].shape, loss_scale.value)
      batch = {**batch, "_weight": weight}
    (total, measured), grads = accumulated(
      state.trainable, frozen, batch, rng, **taught
    )
    num_rows = jnp.sum(batch["_mask"], dtype=jnp.float32)
    num_examples = measured.get("num_examples", num_rows)
    scale = 1.0 / jnp.maximum(num_examples, 1.0)
    if loss_scale is not None:
      scale /= loss_scale.value
    grads = jax.tree.map(lambda g: g * scale, grads)
    updates, opt_state = optimizer.update(
      grads, state.opt_state, state.trainable
    )
    trainable = optax.apply_updates(state.trainable, updates)
    ema = state.ema
    if ema_decay is not None:
      averaged = {**trainable, **measured.pop("averaged", {})}
      ema = optimizers.ema(averaged, ema, decay)
    stepped = state.replace(trainable=trainable, opt_state=opt_state, ema=ema)
    grad_norm, has_examples = optax.tree.norm(grads), num_examples > 0
    is_step = has_norm = has_examples
    if loss_scale is not None:
      is_finite = jnp.isfinite(grad_norm)
      is_step = has_examples & is_finite
      has_norm = is_step | (has_examples & (loss_scale.value == 1))

    def choose(chosen, new, old):
      return jax.tree.map(lambda n, o: jnp.where(chosen, n, o), new, old)

    state = choose(is_step, stepped, state)
    if loss_scale is not None:
      after = optimizers.next_loss_scale(loss_scale, is_finite)
      after = choose(has_examples, after, loss_scale)
      opt_state = state.opt_state._replace(loss_scale=after)
      state = state.replace(opt_state=opt_state)
      measured = {
        **measured,
        "loss_scale": loss_scale.value,
        "skipped_steps": after.skipped_steps.astype(jnp.float32),
      }
    measurements = {
      "loss": jnp.where(has_examples, total * scale, 0.0),
      "grad_norm": jnp.where(has_norm, grad_norm, 0.0),
      "update_norm": jnp.where(is_step, optax.tree.norm(updates), 0.0),
      "param_norm": optax.tree.norm(state.trainable),
      "num_examples": num_examples,
      **measured,
    }
    return state.replace(step=state.step + 1), measurements

  return step
