"""The next-token loss of the supervised tokens, always computed in float32.

`next_token` is the definition. `mean_next_token` and `supervised_sums` hold the
logits of a few supervised tokens at a time; those of 8 examples of 128 tokens
would take 1 GiB.

Axes: B batch, T token, D width, V vocabulary, C tokens at a time.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, Num

from paligemma.models import microbatch

LOGITS_AT_ONCE = 2**25  # per device: 128 MiB in float32

Mask = Bool[ArrayLike, "B T"] | Num[ArrayLike, "B T"]
ComputeLogits = Callable[[Any, Float[Array, "B C D"]], Float[Array, "B C V"]]


def next_token(
  logits: Float[ArrayLike, "B T V"],
  targets: Int[ArrayLike, "B T"],
  mask_loss: Mask,
  *,
  label_smoothing: float = 0.0,
) -> Float[Array, " B"]:
  """Returns per example the mean loss over its supervised tokens.

  The caller shifts by one: for text [B, T+1] the model reads text[:, :-1], and
  targets and mask_loss are text[:, 1:] and mask_loss[:, 1:].

      text       bos  caption  en  \\n  a  cat  eos  pad
      targets         caption  en  \\n  a  cat  eos  pad
      mask_loss             0   0   0  1    1    1    0

  Args:
    logits: In any float dtype, after the model's soft cap.
    targets: The token that each logit should predict.
    mask_loss: 1 where the token is supervised.
    label_smoothing: The probability e that is moved from the target and spread
      evenly over the V-1 other tokens: the target has 1-e, each other one
      e/(V-1). In [0, 1). (optax.smooth_labels spreads over all V.)

  Returns:
    Losses in nats; 0 for an example without any supervised token.

  Raises:
    ValueError: mask_loss is None, or a shape or label_smoothing does not fit.

  Source: big_vision/trainers/proj/paligemma/train.py, the same definition.
  """
  _check(logits, targets, mask_loss, label_smoothing)
  mask = mask_loss.astype(jnp.float32)
  losses = _token_losses(logits, targets, label_smoothing)
  return (losses * mask).sum(axis=1) / jnp.maximum(mask.sum(axis=1), 1)


def mean_next_token(
  compute_logits: ComputeLogits,
  head: Any,
  features: Float[ArrayLike, "B T D"],
  targets: Int[ArrayLike, "B T"],
  mask_loss: Mask,
  weights: Float[ArrayLike, " B"],
  *,
  label_smoothing: float = 0.0,
  segment_ids: Int[ArrayLike, "B T"] | None = None,
) -> Float[Array, ""]:
  """Returns sum_b weights[b] * next_token(...)[b] without storing all logits.

  The gradient is computed along with the value, as in the Liger kernels
  (arXiv:2410.10989): logits are computed once, for a few supervised tokens at a
  time.

  Args:
    compute_logits: (head, features) -> logits, with the soft cap. It compiles
      once if it compares equal from call to call.
    head: Parameters of the output layer.
    features: What the logits are computed from.
    targets, mask_loss, label_smoothing: As for `next_token`.
    weights: Of the examples, e.g. 0 for padding of the batch.
    segment_ids: The number of the text of each target, below T + 1, where
      several share a row: the mean is over the tokens of each text, and they
      are summed over texts. Default: a row is one text.

  Raises:
    ValueError: As `next_token`.
  """
  _check(features, targets, mask_loss, label_smoothing)
  mask = mask_loss.astype(jnp.float32)
  count = mask.sum(axis=1, keepdims=True)
  if segment_ids is not None:
    num_segments = mask.shape[1] + 2

    def count_of_own(mask, ids):
      return jax.ops.segment_sum(mask, ids, num_segments)[ids]

    count = jax.vmap(count_of_own)(mask, segment_ids)
  weights = mask * weights[:, None] / jnp.maximum(count, 1)
  tokens = features, targets, weights
  return _weighted_loss(compute_logits, label_smoothing, head, tokens)


def supervised_sums(
  compute_logits: ComputeLogits,
  head: Any,
  features: Float[ArrayLike, "B T D"],
  targets: Int[ArrayLike, "B T"],
  mask_loss: Mask,
) -> tuple[Float[Array, " B"], Float[Array, " B"]]:
  """Returns the negative log-likelihood and number of supervised tokens.

  Both are sums per example, in nats; summed over examples too, exp(sum / count)
  is the perplexity per token. Arguments as of `mean_next_token`.
  """
  _check(features, targets, mask_loss, 0.0)
  mask = mask_loss.astype(jnp.float32)

  def add(total, features, targets, mask):
    losses = _token_losses(compute_logits(head, features), targets, 0.0)
    return total + (losses * mask).sum(axis=1), None

  tokens, zeros = (features, targets, mask), jnp.zeros(mask.shape[0])
  total, _ = _each_few(compute_logits, head, tokens, add, zeros)
  return total, mask.sum(axis=1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _weighted_loss(compute_logits, smoothing, head, tokens):
  def add(total, features, targets, weights):
    losses = _token_losses(compute_logits(head, features), targets, smoothing)
    return total + (losses * weights).sum(), None

  total, _ = _each_few(compute_logits, head, tokens, add, jnp.zeros(()))
  return total


def _weighted_loss_fwd(compute_logits, smoothing, head, tokens):
  head_trains = any(leaf.perturbed for leaf in jax.tree.leaves(head))
  head, tokens = jax.tree.map(lambda x: x.value, (head, tokens))

  def add(carry, features, targets, weights):
    total, by_head = carry
    if head_trains:
      logits, pull_back = jax.vjp(compute_logits, head, features)
    else:
      logits, pull_back = jax.vjp(lambda x: compute_logits(head, x), features)
    losses, by_logits = _token_losses_and_grads(
      logits, targets, weights, smoothing
    )
    *new_by_head, by_features = pull_back(by_logits)
    if head_trains:
      by_head = jax.tree.map(jnp.add, by_head, new_by_head[0])
    return (total + (losses * weights).sum(), by_head), by_features

  by_head = jax.tree.map(jnp.zeros_like, head) if head_trains else None
  (total, by_head), by_features = _each_few(
    compute_logits, head, tokens, add, (jnp.zeros(()), by_head)
  )
  return total, (by_head, by_features)


def _weighted_loss_bwd(compute_logits, smoothing, grads, by_total):
  del compute_logits, smoothing
  if isinstance(by_total, jax.custom_derivatives.SymbolicZero):
    by_total = jnp.zeros(())
  by_head, by_features = jax.tree.map(
    lambda g: (g * by_total).astype(g.dtype), grads
  )
  return by_head, (by_features, None, None)


_weighted_loss.defvjp(
  _weighted_loss_fwd, _weighted_loss_bwd, symbolic_zeros=True
)


def _each_few(compute_logits, head, tokens, add, carry):
  """Scans `add` over the tokens with a weight, a few of each example at a time.

  They are sorted to the front of every example, so the example with the most
  of them determines the number of rounds.

  Args:
    tokens: (features, targets, weights).
    add: Function of a carry and (features, targets, weights) of C tokens of
      every example that returns a new carry and float[B, C, D] or None.

  Returns:
    The last carry, and what `add` returned for each of the T tokens (0 for
    tokens without weight), or None.
  """
  features, targets, weights = tokens
  batch, length = targets.shape
  one = jax.ShapeDtypeStruct((batch, 1, features.shape[-1]), features.dtype)
  vocab_size = jax.eval_shape(compute_logits, head, one).shape[-1]
  size = LOGITS_AT_ONCE // (microbatch.local_batch(batch) * vocab_size)
  size = min(max(size, 1), length)
  counts = weights != 0
  rounds = -(-counts.sum(axis=1).max() // size)
  order = jnp.argsort(~counts, axis=1, stable=True)

  def sort(x):
    x = jnp.take_along_axis(x, order[:, :, None] if x.ndim == 3 else order, 1)
    return jnp.pad(x, [(0, 0), (0, -length % size)] + [(0, 0)] * (x.ndim - 2))

  tokens = [sort(x) for x in tokens]

  def few(i):
    take = jax.lax.dynamic_slice_in_dim
    return [take(x, i * size, size, axis=1) for x in tokens]

  def one_round(i, state):
    carry, out = state
    carry, new = add(carry, *few(i))
    if new is not None:
      out = jax.lax.dynamic_update_slice_in_dim(out, new, i * size, axis=1)
    return carry, out

  _, new = jax.eval_shape(lambda: add(carry, *few(0)))
  out = None if new is None else jnp.zeros_like(tokens[0])
  carry, out = jax.lax.fori_loop(0, rounds, one_round, (carry, out))
  if new is not None:
    inverse = jnp.argsort(order, axis=1)
    out = jnp.take_along_axis(out, inverse[:, :, None], axis=1)
  return carry, out


def _token_losses(logits, targets, label_smoothing):
  # This is log_softmax at the target only. Gathering from logits, not from
  # shifted, lets XLA fuse the sums over V: no copy of the float32 logits
  # [B, T, V] is made (1 GiB for 8 x 128 x 257,152), where log_softmax makes
  # one, and two with the gradient (jax 0.10.2 on CPU). Smoothing makes one.
  largest = jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True))
  largest = largest.astype(jnp.float32)
  shifted = logits.astype(jnp.float32) - largest
  log_norm = jnp.log(jnp.exp(shifted).sum(axis=-1))
  target = jnp.take_along_axis(logits, targets[..., None], axis=-1)
  nll = log_norm - (target.astype(jnp.float32) - largest)[..., 0]
  if not label_smoothing:
    return nll
  vocab_size = logits.shape[-1]
  mean_nll = log_norm - shifted.mean(axis=-1)
  others = (vocab_size * mean_nll - nll) / (vocab_size - 1)
  return (1 - label_smoothing) * nll + label_smoothing * others


def _token_losses_and_grads(logits, targets, weights, label_smoothing):
  """Returns losses float32[B, C], and the gradient of weights * losses."""
  losses = _token_losses(logits, targets, label_smoothing)
  vocab_size = logits.shape[-1]
  others = label_smoothing / (vocab_size - 1)
  is_target = targets[..., None] == jnp.arange(vocab_size)[None, None, :]
  wanted = jnp.where(is_target, 1 - label_smoothing, others)
  softmax = jax.nn.softmax(logits.astype(jnp.float32))
  grads = (softmax - wanted) * weights[..., None]
  return losses, grads.astype(logits.dtype)


def _check(logits, targets, mask_loss, label_smoothing):
  if not 0 <= label_smoothing < 1:
    raise ValueError(
      f"label_smoothing is {label_smoothing}, expected a value in [0, 1)"
    )
  if mask_loss is None:
    raise ValueError(
      "missing mask: mask_loss is None, expected [B, T] with 1 on the "
      "supervised tokens; without it padding and prompt would be averaged in"
    )
  for name, array in (("targets", targets), ("mask_loss", mask_loss)):
    if array.shape != logits.shape[:-1]:
      raise ValueError(
        f"{name} has shape {array.shape}, expected {logits.shape[:-1]}: the "
        f"logits or features {logits.shape} without their last axis"
      )
