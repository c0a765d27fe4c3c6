"""Optimizers: an optax direction, a weight decay and a learning rate per regex.

One update, in float32 whatever the parameters are stored in, for step t:

    p -= s_t * (learning_rate * direction(g) + weight_decay * p)

with s_t in [0, mult] the schedule of the parameter. The decay is decoupled and
follows the schedule but not the learning rate, as in big_vision/optax.py, where
the published values come from: its lr=1e-5, wd=1e-6 is optax.adamw(1e-5,
weight_decay=0.1).

Everything works on flat dicts of trainable leaves, "llm/final_norm/scale" -> x.
Gradient accumulation is not here but in the train step, as a scan over micro
batches: clipping and schedules then see whole steps, and no accumulator lives
in the optimizer's state or its checkpoints.
"""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from paligemma import tree

# Every matrix: Gemma's and the ViT's, dense or attention, and the embedding
# that is also the output layer. Not scale, bias, pos_embedding, probe and cls.
MATRICES = ((r".*/(w|kernel|gating_einsum|linear|input_embedding)", 1.0),)

COSINE = ((".*", {"decay": "cosine"}),)


def _constant(after, steps, timescale):
  del after, steps, timescale
  return 1.0


def _linear(after, steps, timescale):
  del timescale
  return 1 - after / steps


def _cosine(after, steps, timescale):
  del timescale
  return 0.5 * (1 + jnp.cos(jnp.pi * after / steps))


def _rsqrt(after, steps, timescale):
  del steps
  return jax.lax.rsqrt(1 + after / timescale)


DECAYS = {
  "constant": _constant,
  "cosine": _cosine,
  "linear": _linear,
  "rsqrt": _rsqrt,
}


def make_schedule(
  total_steps: int,
  *,
  decay: str = "cosine",
  warmup_steps: int = 0,
  mult: float = 1.0,
  timescale: int = 10_000,
) -> Callable[[jax.typing.ArrayLike], jax.Array]:
  """Returns the factor s_t of step t: a linear warm-up, then a decay.

  With w = warmup_steps and n = total_steps:

      t <  w              s_t = mult * t / w
      t >= w   constant   s_t = mult
               linear     s_t = mult * (1 - (t - w) / (n - w))
               cosine     s_t = mult * (1 + cos(pi * (t - w) / (n - w))) / 2
               rsqrt      s_t = mult / sqrt(1 + (t - w) / timescale)

  So s_0 is 0 if there is a warm-up, s_w is mult, and s_n is 0 for linear and
  cosine; the last step taken is t = n - 1, which is still above 0. Beyond n the
  value stays that of n.

  Args:
    total_steps: Number of steps of the whole training.
    decay: A name in DECAYS, default "cosine".
    warmup_steps: Number of steps of the warm-up, default 0.
    mult: The factor at the end of the warm-up, default 1.
    timescale: For rsqrt, the steps after which s_t is mult / sqrt(2).

  Returns:
    A function from a step, int[], to s_t, float32[].

  Raises:
    ValueError: An unknown decay, or a warm-up that is not shorter than the
      training (except for one of 0 or 1 steps, which only debugs).

  Source: create_learning_rate_schedule() in big_vision/utils.py.
  """
  decay_fn = tree.lookup(DECAYS, decay, "decay")
  if warmup_steps >= total_steps > 1:
    raise ValueError(
      f"warmup_steps is {warmup_steps}, expected fewer than the "
      f"{total_steps} steps of the training"
    )
  decay_steps = max(total_steps - warmup_steps, 1)

  def scale(step):
    step = jnp.asarray(step, jnp.float32)
    warmup = jnp.minimum(step / warmup_steps, 1) if warmup_steps else 1.0
    after = jnp.clip(step - warmup_steps, 0, decay_steps)
    return mult * warmup * decay_fn(after, decay_steps, timescale)

  return scale


def sgd(
  momentum: float = 0.0, nesterov: bool = False
) -> optax.GradientTransformation:
  """Returns the gradient itself, or its momentum; no state without momentum.

  Args:
    momentum: The trace is gradient + momentum * trace; default 0, none.
    nesterov: Whether to look one step ahead along the trace.

  Raises:
    ValueError: nesterov without momentum.
  """
  if momentum:
    return optax.trace(momentum, nesterov)
  if nesterov:
    raise ValueError("sgd: nesterov=True needs a momentum, expected e.g. 0.9")
  return optax.identity()


def adafactor(
  momentum: float | None = 0.9,
  decay_rate: float = 0.8,
  beta2_cap: float = 0.999,
) -> optax.GradientTransformation:
  """Returns the gradient over a factored estimate of its root mean square.

  Args:
    momentum: Decay of the running mean of the directions; None for no mean.
    decay_rate: beta2 of step t, from 1, is 1 - t ** -decay_rate, ...
    beta2_cap: ... but at most this.

  Source: Shazeer & Stern 2018 (arXiv:1804.04235) as changed in Zhai et al. 2021
  (arXiv:2106.04560), section 3.4: no scaling by the parameter, no clipping, a
  capped beta2. Their momentum is bfloat16; here every moment is float32.
  """

  def beta2(step, exponent):
    t = jnp.asarray(step, jnp.float32) + 1
    return jnp.minimum(beta2_cap, 1 - t**-exponent)

  direction = optax.scale_by_factored_rms(
    decay_rate=decay_rate,
    decay_rate_fn=beta2,
    # Between the most layers of a scan (46), over which nothing should be
    # averaged, and the smallest head dimension (72 in So400m).
    min_dim_size_to_factor=64,
  )
  if momentum is None:
    return direction
  return optax.chain(direction, optax.ema(momentum, debias=False))


OPTIMIZERS = {
  "adafactor": adafactor,
  "adam": optax.scale_by_adam,
  "adamw": optax.scale_by_adam,  # the same: weight_decay is its own argument
  "lion": optax.scale_by_lion,
  "sgd": sgd,
}


class State(NamedTuple):
  """State of the optimizer made by `make`.

  Attributes:
    count: int32[], number of updates done.
    direction: State of the optax transforms, in float32.
  """

  count: jax.Array
  direction: Any


def make(
  names: Sequence[str],
  *,
  total_steps: int,
  optimizer: str = "sgd",
  optimizer_args: Mapping[str, Any] | None = None,
  learning_rate: float = 0.03,
  schedule: Sequence[tuple[str, Mapping[str, Any] | None]] = COSINE,
  weight_decay: float = 0.0,
  weight_decay_mults: Sequence[tuple[str, float]] = MATRICES,
  clip_norm: float | None = None,
) -> tuple[
  optax.GradientTransformation,
  dict[str, Callable[[jax.typing.ArrayLike], jax.Array]],
]:
  """Makes an optimizer of flat dicts, and its learning rates for the log.

  The order is: gradients to float32, clip their global norm, direction, weight
  decay, schedule (see the formula at the top of this file).

  Args:
    names: Names of the trainable leaves.
    total_steps: Number of steps of the whole training.
    optimizer: A name in OPTIMIZERS, default "sgd".
    optimizer_args: Arguments of that function, such as dict(momentum=0.9).
    learning_rate: Peak learning rate, default 0.03.
    schedule: (regex, arguments of `make_schedule`) pairs; the first regex that
      matches a whole name counts, and every name needs one. None in place of
      the arguments leaves the parameters alone: no update, no state, no share
      in the clipped norm.
    weight_decay: Decay per step at s_t = 1, not multiplied by learning_rate.
    weight_decay_mults: (regex, factor) pairs on top of weight_decay, the first
      match counts, 0 without a match; default: 1 for every matrix. Not read
      when weight_decay is 0.
    clip_norm: Largest global norm of the gradients, default None: no clipping.

  Returns:
    The transformation, whose `update` needs the parameters, and whose updates
    are float32 (optax.apply_updates rounds to the dtype of the parameters); and
    by regex the function from step, int[], to learning_rate * s_t, float32[].

  Raises:
    ValueError: An unknown optimizer, decay or argument; a regex without any
      match (a decay that reaches nothing included), or a name without a regex.
  """
  direction = _call(
    tree.lookup(OPTIMIZERS, optimizer, "optimizer"),
    optimizer_args or {},
    f'optimizer "{optimizer}"',
  )
  if clip_norm is not None:
    direction = optax.chain(optax.clip_by_global_norm(clip_norm), direction)
  scales = {
    regex: _call(
      functools.partial(make_schedule, total_steps),
      arguments,
      f'schedule of "{regex}"',
    )
    for regex, arguments in schedule
    if arguments is not None
  }
  rule_of = tree.match_first([(regex, regex) for regex, _ in schedule], names)
  moving = [name for name in names if rule_of[name] in scales]
  decays = {}
  if weight_decay:
    mults = tree.match_first(weight_decay_mults, moving, default=0.0)
    decays = {name: weight_decay * mult for name, mult in mults.items() if mult}

  def in_float32(flat):
    return {name: flat[name].astype(jnp.float32) for name in moving}

  def init(params):
    return State(
      count=jnp.zeros([], jnp.int32),
      direction=direction.init(in_float32(params)),
    )

  def update(grads, state, params):
    assert grads.keys() == rule_of.keys(), sorted(grads.keys() ^ rule_of.keys())
    params = in_float32(params)
    directions, direction_state = direction.update(
      in_float32(grads), state.direction, params
    )
    factors = {regex: scale(state.count) for regex, scale in scales.items()}
    updates = {}
    for name, grad in grads.items():
      if name not in directions:
        updates[name] = jnp.zeros_like(grad)
        continue
      change = learning_rate * directions[name]
      if name in decays:
        change += decays[name] * params[name]
      updates[name] = -factors[rule_of[name]] * change
    return updates, State(state.count + 1, direction_state)

  learning_rates = {
    regex: lambda step, scale=scale: learning_rate * scale(step)
    for regex, scale in scales.items()
  }
  return optax.GradientTransformation(init, update), learning_rates


def ema(params: Any, average: Any, decay: float) -> Any:
  """Returns the moving average of parameters, average + (1 - decay) * change.

  Args:
    params: Tree of float leaves, after the step.
    average: Tree of float32 leaves; starts as the parameters in float32.
    decay: What is kept of the average each step: 0.999 averages over about the
      last 1000 steps. 0 gives the parameters.

  Returns:
    Tree of float32 leaves. In bfloat16 (8 bits) a change below 1/256 of the
    value, every change for decay 0.999, would be rounded away.
  """
  return jax.tree.map(
    lambda p, a: a + (1 - decay) * (p.astype(jnp.float32) - a), params, average
  )


def _call(function, arguments, what):
  known = inspect.signature(function).parameters
  for name in arguments:
    if name not in known:
      raise ValueError(
        f'{what} has no argument "{name}", expected some of: '
        f"{', '.join(known)}." + tree.did_you_mean(name, known)
      )
  return function(**arguments)
