"""Optimizers: an optax direction, a weight decay and a learning rate per regex.

One update, in float32 whatever the parameters are stored in, for step t:

    p -= s_t * (learning_rate * mult * direction(g) + weight_decay * p)

where s_t is the schedule and mult the learning-rate factor of the parameter.
The decay is decoupled and follows the schedule but not the learning rate, as in
big_vision/optax.py, where the published values come from: its lr=1e-5, wd=1e-6
is optax.adamw(1e-5, weight_decay=0.1).

Everything works on flat dicts of trainable leaves, "llm/final_norm/scale" -> x.
Gradients are accumulated in the train step, by optax.microbatching: clipping
and schedules then see whole steps, and unlike with optax.MultiSteps no
accumulator is in a checkpoint. Checkpoints hold State by name, which the nested
tuples of optax.chain or optax.partition would not allow.
"""

import inspect
import itertools
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float

from paligemma import parameters, registry, tree

# Every matrix: Gemma's and the ViT's, dense or attention, and the embedding
# that is also the output layer. Not scale, bias, pos_embedding, probe and cls.
MATRICES = ((parameters.DECAYED, 1.0),)


COSINE = ((".*", {"decay": "cosine"}),)


class _Progress(NamedTuple):
  step: jax.Array
  after: jax.Array  # steps since the end of the warm-up, 0 before it
  left: jax.Array  # share of the steps after the warm-up still to come: 1 to 0
  peak: float  # the factor at the end of the warm-up


def _constant(at):
  return at.peak


def _polynomial(at, *, end=0.0, power=1.0):
  return end + (at.peak - end) * at.left**power


def _cosine(at):
  return at.peak * 0.5 * (1 - jnp.cos(jnp.pi * at.left))


def _exponential(at, *, end=0.01):
  return at.peak * end ** (1 - at.left)


def _rsqrt(at, *, timescale=10_000, shift=0):
  return at.peak * jax.lax.rsqrt(1 + (at.after + shift) / timescale)


def _stair(at, *, steps=(), mults=()):
  factors = jnp.array([1.0, *mults], jnp.float32)
  i = jnp.searchsorted(jnp.array(steps, jnp.float32), at.step, side="right")
  return at.peak * factors[i]


DECAYS = {
  "constant": _constant,
  "cosine": _cosine,
  "exponential": _exponential,
  "linear": _polynomial,
  "polynomial": _polynomial,
  "rsqrt": _rsqrt,
  "stair": _stair,
}


def make_schedule(
  total_steps: int,
  /,
  *,
  decay: str = "cosine",
  warmup_steps: int = 0,
  cooldown_steps: int = 0,
  mult: float = 1.0,
  **options: Any,
) -> Callable[[jax.typing.ArrayLike], jax.Array]:
  """Returns the factor s_t of step t: a warm-up, a decay and a cool-down.

  With w = warmup_steps, c = cooldown_steps, n = total_steps, p = mult, and
  u = max(t - w, 0) / (n - w), the share of what follows on the warm-up:

      s_t = min(1, t / w) * min(1, (n - t) / c) * d_t

      constant    d_t = p
      cosine      d_t = p * (1 + cos(pi * u)) / 2
      linear, polynomial
                  d_t = end + (p - end) * (1 - u) ** power
      exponential d_t = p * end ** u
      rsqrt       d_t = p / sqrt(1 + (max(t - w, 0) + shift) / timescale)
      stair       d_t = p * mults[i] from t = steps[i] on, before the first p

  So s_0 is 0 with a warm-up, and s_n is 0 for cosine, for linear to the end 0
  and with a cool-down; the last step, t = n - 1, is above 0. Beyond n the value
  stays that of n.

  Args:
    total_steps: Of the whole training.
    decay: A name in DECAYS.
    **options: Of the decay: end (default 0) and power (default 1) of linear and
      polynomial; end (default 0.01) of exponential, relative to p; timescale
      in steps (default 10,000) and shift in steps (default 0) of rsqrt; steps,
      ascending, and as many mults of stair.

  Returns:
    A function from a step to s_t in float32.

  Raises:
    ValueError: An unknown decay or option, a value that is no number or
      negative, or a warm-up, cool-down or stair that does not fit the training.

  Source: create_learning_rate_schedule() in big_vision/utils.py, where decay is
  decay_type, and the value beyond n is not defined.
  """
  decay_fn = registry.lookup(DECAYS, decay, "decay")
  common = "decay", "warmup_steps", "cooldown_steps", "mult"
  of_decay = list(inspect.signature(decay_fn).parameters)[1:]
  _check_names(options, (*common, *of_decay), f'decay "{decay}"')
  numbers = dict(
    warmup_steps=warmup_steps, cooldown_steps=cooldown_steps, mult=mult
  )
  if decay == "stair":
    _check_stair(**options)
  else:
    numbers |= options
  for name, value in numbers.items():
    _check_number(name, value, above_zero=name in ("power", "timescale"))
  if cooldown_steps > total_steps > 1:
    raise ValueError(
      f"cooldown_steps is {cooldown_steps}, expected no more than the "
      f"{total_steps} steps of the training"
    )
  if warmup_steps >= total_steps > 1:
    raise ValueError(
      f"warmup_steps is {warmup_steps}, expected fewer than the "
      f"{total_steps} steps of the training"
    )
  decay_steps = float(max(total_steps - warmup_steps, 1))

  def scale(step):
    step = jnp.minimum(jnp.asarray(step, jnp.float32), float(total_steps))
    after = jnp.clip(step - warmup_steps, 0, decay_steps)
    left = (decay_steps - after) / decay_steps
    factor = decay_fn(_Progress(step, after, left, mult), **options)
    if warmup_steps:
      factor *= jnp.minimum(step / warmup_steps, 1)
    if cooldown_steps:
      factor *= jnp.minimum((total_steps - step) / cooldown_steps, 1)
    return jnp.asarray(factor, jnp.float32)

  return scale


def _check_number(name, value, *, above_zero):
  good = isinstance(value, int | float) and not isinstance(value, bool)
  if not (good and 0 <= value < math.inf and (value or not above_zero)):
    least = "above 0" if above_zero else "from 0"
    raise ValueError(f"{name} is {value!r:.80}, expected a number {least}")


def _check_stair(steps=(), mults=()):
  for name, values in (("steps", steps), ("mults", mults)):
    for value in values:
      _check_number(f"one of {name}", value, above_zero=False)
  ascends = all(x < y for x, y in itertools.pairwise(steps))
  if len(steps) != len(mults) or not ascends:
    raise ValueError(
      f'decay "stair" has steps={tuple(steps)} and mults={tuple(mults)}, '
      "expected ascending steps and as many mults"
    )


def sgd(
  momentum: float = 0.0, nesterov: bool = False, momentum_dtype: str = "float32"
) -> optax.GradientTransformation:
  """Returns the gradient itself, or its momentum; no state without momentum.

  Args:
    momentum: The trace is gradient + momentum * trace.
    nesterov: Whether to look one step ahead along the trace.
    momentum_dtype: Of the stored trace; big_vision's momentum_hp stores it in
      "bfloat16".

  Raises:
    ValueError: nesterov without momentum.
  """
  if momentum:
    return optax.trace(momentum, nesterov, momentum_dtype)
  if nesterov:
    raise ValueError("sgd: nesterov=True needs a momentum, expected e.g. 0.9")
  return optax.identity()


def adafactor(
  momentum: float | None = 0.9,
  decay_rate: float = 0.8,
  beta2_cap: float = 0.999,
  *,
  decay_offset: int = 0,
  min_dim_size_to_factor: int = 64,
  clipping_threshold: float | None = None,
  momentum_dtype: str = "float32",
  eps: float = 1e-30,
) -> optax.GradientTransformation:
  """Returns the gradient over a factored estimate of its root mean square.

  Args:
    momentum: Decay of the running mean of the directions; None for no mean.
    decay_rate: beta2 of step t, from 1, is 1 - t ** -decay_rate, ...
    beta2_cap: ... but at most this.
    decay_offset: Number of steps that t lags behind.
    min_dim_size_to_factor: Leaves are factored over their two largest axes if
      both are at least so long. 64 is between the most layers (46), which
      should not be averaged, and the smallest head dimension (72 in So400m).
      big_vision's 32 averages over layers of the larger models.
    clipping_threshold: Largest root mean square of a leaf's direction, which is
      scaled down to it; None for no limit.
    momentum_dtype: Of the stored running mean, "bfloat16" in big_vision.
    eps: Added to the square of a gradient.

  Source: Shazeer & Stern 2018 (arXiv:1804.04235) as changed in Zhai et al. 2021
  (arXiv:2106.04560), section 3.4: no scaling by the parameter, no clipping, a
  capped beta2; scale_by_adafactor of big_vision/optax.py.
  """

  def beta2(step, exponent):
    t = jnp.asarray(step, jnp.float32) + 1
    return jnp.minimum(beta2_cap, 1 - t**-exponent)

  transforms = [
    optax.scale_by_factored_rms(
      decay_rate=decay_rate,
      step_offset=decay_offset,
      min_dim_size_to_factor=min_dim_size_to_factor,
      epsilon=eps,
      decay_rate_fn=beta2,
    )
  ]
  if clipping_threshold:
    transforms.append(optax.clip_by_block_rms(clipping_threshold))
  if momentum:
    transforms.append(optax.ema(momentum, False, momentum_dtype))
  return optax.chain(*transforms)


OPTIMIZERS = {
  "adafactor": adafactor,
  "adam": optax.scale_by_adam,
  "adamw": optax.scale_by_adam,  # the same: weight_decay is its own argument
  "lion": optax.scale_by_lion,
  "sgd": sgd,
}


class LossScale(NamedTuple):
  """What the loss of float16 is multiplied by, so that gradients are not 0.

  Source: dynamic loss scaling of arXiv:1710.03740, section 3.2, with the
  constants of PyTorch's GradScaler and of DynamicLossScale in
  github.com/google-deepmind/jmp. Where these start at 2**16 and 2**15, this
  starts at 2**15.
  """

  value: jax.Array  # float32[], a power of two from 1
  good_steps: jax.Array  # int32[], since it last changed
  skipped_steps: jax.Array  # int32[], of the whole training


_FIRST_LOSS_SCALE = 2.0**15
_GROWTH_STEPS = 2000


def next_loss_scale(scale: LossScale, is_finite: Bool[Array, ""]) -> LossScale:
  """Returns the scale after a step.

  After 2000 steps with finite gradients it doubles. After one without, which
  is to be skipped, it halves, but not below 1.
  """
  value, good_steps, skipped_steps = scale
  grows = good_steps + 1 == _GROWTH_STEPS
  after_good = value * jnp.where(grows, 2.0, 1.0)
  after_bad = jnp.maximum(value / 2, 1.0)
  return LossScale(
    value=jnp.where(is_finite, after_good, after_bad),
    good_steps=jnp.where(is_finite & ~grows, good_steps + 1, 0),
    skipped_steps=skipped_steps + ~is_finite,
  )


class State(NamedTuple):
  """State of the optimizer made by `make`."""

  count: jax.Array  # number of updates done
  direction: Any  # of the optax transforms; in float32, or momentum_dtype
  loss_scale: LossScale | None = None


def make(
  names: Collection[str],
  *,
  total_steps: int,
  optimizer: str = "sgd",
  optimizer_args: Mapping[str, Any] | None = None,
  learning_rate: float = 0.03,
  learning_rate_mults: Sequence[tuple[str, float]] = (),
  schedule: Sequence[tuple[str, Mapping[str, Any] | None]] = COSINE,
  weight_decay: float = 0.0,
  weight_decay_mults: Sequence[tuple[str, float]] = MATRICES,
  clip_norm: float | None = None,
  scales_loss: bool = False,
) -> tuple[
  optax.GradientTransformation,
  dict[str, Callable[[jax.typing.ArrayLike], jax.Array]],
]:
  """Makes an optimizer of flat dicts, and its learning rates for the log.

  The order is: gradients to float32, clip their global norm, direction, weight
  decay, schedule (see the formula at the top of this file).

  Args:
    names: Of the trainable leaves.
    total_steps: Of the whole training.
    optimizer: A name in OPTIMIZERS.
    optimizer_args: Of that function, such as dict(momentum=0.9).
    learning_rate: At the peak of the schedule.
    learning_rate_mults: (regex, factor) pairs on top of learning_rate, but not
      of weight_decay; the first match counts, 1 without a match.
    schedule: (regex, arguments of `make_schedule`) pairs; the first regex that
      matches a whole name counts, and every name needs one. None in place of
      the arguments leaves the parameters alone: no update, no state, no share
      in the clipped norm.
    weight_decay: Decay per step at s_t = 1, not multiplied by learning_rate.
    weight_decay_mults: (regex, factor) pairs on top of weight_decay, not read
      if that is 0; the first match counts, 0 without a match.
    clip_norm: Largest global norm of the gradients; None for no clipping.
    scales_loss: Whether the state has a LossScale, which the train step applies
      and changes. Gradients given to `update` are those of the loss itself.

  Returns:
    The transformation, whose `update` needs the parameters, and whose updates
    are float32 (optax.apply_updates rounds to the dtype of the parameters); and
    by regex the function from a step to learning_rate * s_t in float32.

  Raises:
    ValueError: An unknown optimizer, decay or argument; a regex without any
      match (a decay that reaches nothing included), or a name without a regex.
  """
  make_direction = registry.lookup(OPTIMIZERS, optimizer, "optimizer")
  arguments = optimizer_args or {}
  known = inspect.signature(make_direction).parameters
  _check_names(arguments, known, f'optimizer "{optimizer}"')
  direction = make_direction(**arguments)
  if clip_norm is not None:
    direction = optax.chain(optax.clip_by_global_norm(clip_norm), direction)
  scales = {}
  for regex, arguments in schedule:
    if arguments is not None:
      try:
        scales[regex] = make_schedule(total_steps, **arguments)
      except ValueError as error:
        raise ValueError(f'schedule of "{regex}": {error}') from None
  rule_of = tree.match_first([(regex, regex) for regex, _ in schedule], names)
  moving = [name for name in names if rule_of[name] in scales]
  for regex, factor in learning_rate_mults:
    if not factor > 0:
      raise ValueError(
        f'learning_rate_mults of "{regex}" is {factor}, expected more than 0; '
        "to leave parameters alone, do not name them in trainable"
      )
  rates = tree.match_first(learning_rate_mults, moving, default=1.0)
  decays = {}
  if weight_decay:
    mults = tree.match_first(weight_decay_mults, moving, default=0.0)
    decays = {name: weight_decay * mult for name, mult in mults.items() if mult}

  def in_float32(flat):
    return {name: flat[name].astype(jnp.float32) for name in moving}

  def init(params):
    zero = jnp.zeros([], jnp.int32)
    scale = LossScale(jnp.float32(_FIRST_LOSS_SCALE), zero, zero)
    return State(
      count=zero,
      direction=direction.init(in_float32(params)),
      loss_scale=scale if scales_loss else None,
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
      change = learning_rate * rates[name] * directions[name]
      if name in decays:
        change += decays[name] * params[name]
      updates[name] = -factors[rule_of[name]] * change
    state = state._replace(count=state.count + 1, direction=direction_state)
    return updates, state

  learning_rates = {
    regex: lambda step, scale=scale: learning_rate * scale(step)
    for regex, scale in scales.items()
  }
  return optax.GradientTransformation(init, update), learning_rates


def ema(params: Any, average: Any, decay: float | Float[Array, ""]) -> Any:
  """Returns the moving average of parameters, average + (1 - decay) * change.

  Args:
    params: Parameters after the step.
    average: In float32, as is the result, and at first the parameters. In
      bfloat16 (8 bits) a change below 1/256 of the value, every change for
      decay 0.999, would be rounded away.
    decay: Share of the average that is kept each step: 0.999 averages over
      about the last 1000 steps. 0 gives the parameters.
  """
  return jax.tree.map(
    lambda p, a: a + (1 - decay) * (p.astype(jnp.float32) - a), params, average
  )


def _check_names(arguments, known, what):
  for name in arguments:
    if name not in known:
      raise ValueError(
        f'{what} has no argument "{name}", expected some of: '
        f"{', '.join(known)}." + registry.did_you_mean(name, known)
      )
