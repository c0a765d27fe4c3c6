"""The next-token loss of the supervised tokens, always computed in float32.

Axes: B batch, T token, V vocabulary.
"""

import jax
import jax.numpy as jnp


def next_token(
  logits: jax.Array,
  targets: jax.Array,
  mask_loss: jax.Array,
  *,
  label_smoothing: float = 0.0,
) -> jax.Array:
  """Returns per example the mean loss over its supervised tokens.

  The caller shifts by one: for text [B, T+1] the model reads text[:, :-1], and
  targets and mask_loss are text[:, 1:] and mask_loss[:, 1:].

      text       bos  caption  en  \\n  a  cat  eos  pad
      targets         caption  en  \\n  a  cat  eos  pad
      mask_loss             0   0   0  1    1    1    0

  Args:
    logits: float[B, T, V], in any float dtype, after the model's soft cap.
    targets: int[B, T], the token that each logit should predict.
    mask_loss: bool, int or float [B, T], 1 where the token is supervised.
    label_smoothing: The probability e that is taken from the target and spread
      evenly over the V-1 other tokens: the target has 1-e, each other one
      e/(V-1). In [0, 1), default 0. (optax.smooth_labels spreads over all V.)

  Returns:
    float32[B], in nats; 0 for an example without any supervised token.

  Raises:
    ValueError: mask_loss is None, or a shape or label_smoothing does not fit.

  Source: big_vision/trainers/proj/paligemma/train.py, the same definition.
  """
  if not 0 <= label_smoothing < 1:
    raise ValueError(
      f"label_smoothing is {label_smoothing}, expected a value in [0, 1)"
    )
  total, count = _masked_sums(logits, targets, mask_loss, label_smoothing)
  return total / jnp.maximum(count, 1)


def token_sums(
  logits: jax.Array, targets: jax.Array, mask_loss: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Returns per example what a perplexity is made of.

  Summed over examples, exp(sum / count) is the perplexity per token.

  Args:
    logits: float[B, T, V], as for `next_token`.
    targets: int[B, T].
    mask_loss: bool, int or float [B, T].

  Returns:
    The summed negative log-likelihood float32[B] in nats, and the number of
    supervised tokens float32[B].

  Raises:
    ValueError: mask_loss is None, or a shape does not fit.
  """
  return _masked_sums(logits, targets, mask_loss, label_smoothing=0.0)


def _masked_sums(logits, targets, mask_loss, label_smoothing):
  _check_shapes(logits, targets, mask_loss)
  mask = mask_loss.astype(jnp.float32)
  losses = _token_losses(logits, targets, label_smoothing)
  return (losses * mask).sum(axis=1), mask.sum(axis=1)


def _token_losses(logits, targets, label_smoothing):
  # This is log_softmax at the target alone. Gathered from logits, not shifted,
  # it lets XLA fuse the sums over V: of float32 logits [B, T, V] (1 GiB for 8 x
  # 128 x 257,152) no copy is made, where log_softmax makes one, with the
  # gradient two (jax 0.10.2 on CPU). Smoothing brings one copy back.
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


def _check_shapes(logits, targets, mask_loss):
  if mask_loss is None:
    raise ValueError(
      "missing mask: mask_loss is None, expected [B, T] with 1 on the "
      "supervised tokens; without it padding and prompt would be averaged in"
    )
  for name, array in (("targets", targets), ("mask_loss", mask_loss)):
    if array.shape != logits.shape[:-1]:
      raise ValueError(
        f"{name} has shape {array.shape}, expected {logits.shape[:-1]}: the "
        f"logits {logits.shape} without their vocabulary axis"
      )
