"""Attention for a part of the queries at a time, on any device.

The logits of a part stand in memory once forward and once backward. In between
remain the result and, per query, the logarithm of the sum of the exponentials,
from which the backward pass has the weights back without a softmax
(FlashAttention, arXiv:2205.14135, without its tiles).

Axes: B batch, P part, T query of a part, S key position, N query heads, K
key/value heads, G query heads per key/value head (N = K * G), H head dim.
"""

import functools

import einops
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from paligemma.models.attention.masks import Mask
from paligemma.models.linear import einsum_float32

_LOWEST = float(jnp.finfo(jnp.float32).min)


def attend(
  q: Float[Array, "B T N H"],
  k: Float[Array, "B S K H"],
  v: Float[Array, "B S K H"],
  mask: Mask | None,
  window: int | Int[Array, ""] | None,
  parts: int,
  *,
  scale: float,
  logits_softcap: float | None = None,
) -> Float[Array, "B T N H"]:
  """Scaled dot-product attention with grouped queries.

  Logits and softmax are float32; the weights are rounded to the dtype of `v`
  before they are summed and meet it.

  Args:
    q: float[B, P * T, N, H] queries, not yet scaled; the last part may be
      shorter.
    k, v: float[B, S, K, H] keys and values; K divides N.
    mask: attention.Mask, or None: everything is seen.
    window: int, int32[] or None, see attention.Mask.dense.
    parts: int, at most so many.
    scale: float, what the queries are multiplied by.
    logits_softcap: float or None, bound on the logits before the mask.

  Returns:
    float[B, P * T, N, H] in the dtype of `v`; for a query without any key some
    finite number.
  """
  length = q.shape[1]
  size = -(-length // parts)
  parts = -(-length // size)

  def split(x, filling=0):
    room = [(0, 0), (0, parts * size - length)] + [(0, 0)] * (x.ndim - 2)
    x = jnp.pad(x, room, constant_values=filling)
    return einops.rearrange(x, "B (P T) ... -> P B T ...", P=parts)

  blocks = positions = None
  if mask is not None:
    blocks, positions = split(mask.query_block, -1), split(mask.query_position)
  # Scaled here, the logits need no pass for it.
  q = (q.astype(jnp.float32) * scale).astype(q.dtype)
  # In this order a product takes its factors as they lie.
  heads = "P B T (K G) H -> P B K G T H"
  q = einops.rearrange(split(q), heads, K=k.shape[2])
  k, v = (einops.rearrange(x, "B S K H -> B K S H") for x in (k, v))
  masks = mask, blocks, positions
  mixed = _attend(q, k, v, masks, window, logits_softcap)
  mixed = einops.rearrange(mixed, "P B K G T H -> B (P T) (K G) H")
  return mixed[:, :length]


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _attend(q, k, v, masks, window, cap):
  return _forward(q, k, v, masks, window, cap)[0]


def _forward(q, k, v, masks, window, cap):
  mask, *of_queries = masks

  def one_part(queries):
    q, *of_queries = queries
    logits, _ = _logits("BKGTH,BKSH->BKGTS", q, k, cap)
    seen = _seen(mask, *of_queries, window)
    if seen is not None:
      logits = jnp.where(seen[:, None, None], logits, _LOWEST)
    largest = logits.max(axis=-1, keepdims=True)
    weights = jnp.exp(logits - largest).astype(v.dtype)
    total = weights.sum(axis=-1, keepdims=True, dtype=jnp.float32)
    mixed = einsum_float32("BKGTS,BKSH->BKGTH", weights, v) / total
    return mixed.astype(v.dtype), largest + jnp.log(total)

  mixed, log_sum = jax.lax.map(one_part, (q, *of_queries))
  return mixed, (q, k, v, masks, window, mixed, log_sum)


def _backward(cap, kept, gradient):
  q, k, v, (mask, *of_queries), window, mixed, log_sum = kept
  products = gradient.astype(jnp.float32) * mixed.astype(jnp.float32)
  products = products.sum(axis=-1, keepdims=True)

  def one_part(sums, queries):
    # Keys before queries, "BKSGT": none of the five products has to turn one of
    # the arrays of logits around.
    k_gradient, v_gradient = sums
    q, gradient, products, log_sum, *of_queries = queries
    logits, slope = _logits("BKSH,BKGTH->BKSGT", k, q, cap)
    weights = jnp.exp(logits - _last(log_sum))
    seen = _seen(mask, *of_queries, window)
    if seen is not None:
      weights = jnp.where(
        einops.rearrange(seen, "B T S -> B 1 S 1 T"), weights, 0
      )
    by_weights = einsum_float32("BKSH,BKGTH->BKSGT", v, gradient)
    by_logits = weights * (by_weights - _last(products))
    if slope is not None:
      by_logits *= slope
    if q.dtype == jnp.bfloat16:  # as in the backward pass of einsum_float32
      by_logits = by_logits.astype(jnp.bfloat16)
    v_gradient += einsum_float32(
      "BKSGT,BKGTH->BKSH", weights.astype(v.dtype), gradient
    )
    k_gradient += einsum_float32("BKSGT,BKGTH->BKSH", by_logits, q)
    q_gradient = einsum_float32("BKSH,BKSGT->BKHGT", k, by_logits)
    q_gradient = einops.rearrange(q_gradient, "B K H G T -> B K G T H")
    return (k_gradient, v_gradient), q_gradient.astype(q.dtype)

  (k_gradient, v_gradient), q_gradient = jax.lax.scan(
    one_part,
    (jnp.zeros(k.shape, jnp.float32), jnp.zeros(v.shape, jnp.float32)),
    (q, gradient, products, log_sum, *of_queries),
  )
  return (
    q_gradient,
    k_gradient.astype(k.dtype),
    v_gradient.astype(v.dtype),
    None,
    None,
  )


_attend.defvjp(_forward, _backward)


def _logits(equation, x, y, cap):
  """Capped logits float32 of queries and keys, the slope of the cap or None."""
  logits = einsum_float32(equation, x, y)
  if not cap:
    return logits, None
  squashed = jnp.tanh(logits / cap)
  return cap * squashed, 1 - jnp.square(squashed)


def _last(of_queries):
  """[B, K, G, T, 1] -> [B, K, 1, G, T]"""
  return einops.rearrange(of_queries, "B K G T 1 -> B K 1 G T")


def _seen(mask, blocks, positions, window):
  """Which keys the queries of a part see: bool[B, T, S], or None."""
  if mask is None:
    return None
  part = mask.replace(query_block=blocks, query_position=positions)
  return part.dense(window)
