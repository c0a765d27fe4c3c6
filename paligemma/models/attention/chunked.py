"""Attention for a chunk of the queries at a time, on any device.

The logits of a chunk are in memory once forward and once backward. Kept between
the two are the result and, per query, the logarithm of the sum of the
exponentials, from which the backward pass recovers the weights without a
softmax (FlashAttention, arXiv:2205.14135, without its tiles).

Axes: B batch, P chunk, T query of a chunk, S key position, N query heads, K
key/value heads, G query heads per key/value head (N = K * G), H head dim.
"""

import functools

import einops
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from paligemma.models.attention.masks import Mask, pad_axis
from paligemma.models.linear import einsum_float32, keep

_LOWEST = float(jnp.finfo(jnp.float32).min)


def attend(
  q: Float[Array, "B T N H"],
  k: Float[Array, "B S K H"],
  v: Float[Array, "B S K H"],
  mask: Mask | None,
  window: int | Int[Array, ""] | None,
  num_chunks: int,
  *,
  scale: float,
  logits_softcap: float | None = None,
) -> Float[Array, "B T N H"]:
  """Attends as reference.attend, with at most so many chunks of the queries.

  The weights are rounded to the dtype of `v` before their sum is taken, too.
  """
  length = q.shape[1]
  size = -(-length // num_chunks)

  def split(x, value=0):
    x = pad_axis(x, 1, size, value)
    return einops.rearrange(x, "B (P T) ... -> P B T ...", T=size)

  of_queries = {}
  if mask is not None:
    of_queries["query_block"] = split(mask.query_block, -1)
    of_queries["query_position"] = split(mask.query_position)
    if mask.query_first is not None:
      of_queries["query_first"] = split(mask.query_first)
  # Scaling the queries rather than the logits saves a pass over the latter.
  q = (q.astype(jnp.float32) * scale).astype(q.dtype)
  # In this order the products need no transposition.
  heads = "P B T (K G) H -> P B K G T H"
  q = einops.rearrange(split(q), heads, K=k.shape[2])
  k, v = (einops.rearrange(x, "B S K H -> B K S H") for x in (k, v))
  mixed = _attend(q, k, v, (mask, of_queries), window, logits_softcap)
  mixed = einops.rearrange(mixed, "P B K G T H -> B (P T) (K G) H")
  return mixed[:, :length]


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _attend(q, k, v, masks, window, cap):
  return _forward(q, k, v, masks, window, cap)[0]


def _forward(q, k, v, masks, window, cap):
  mask, of_queries = masks

  def one_chunk(queries):
    q, of_queries = queries
    logits, _ = _logits("BKGTH,BKSH->BKGTS", q, k, cap)
    seen = _seen(mask, of_queries, window)
    if seen is not None:
      logits = jnp.where(seen[:, None, None], logits, _LOWEST)
    largest = logits.max(axis=-1, keepdims=True)
    weights = jnp.exp(logits - largest).astype(v.dtype)
    total = weights.sum(axis=-1, keepdims=True, dtype=jnp.float32)
    mixed = einsum_float32("BKGTS,BKSH->BKGTH", weights, v) / total
    return mixed.astype(v.dtype), largest + jnp.log(total)

  # If these two are kept, the backward pass does not attend again.
  mixed, log_sum = map(keep, jax.lax.map(one_chunk, (q, of_queries)))
  return mixed, (q, k, v, masks, window, mixed, log_sum)


def _backward(cap, kept, gradient):
  q, k, v, (mask, of_queries), window, mixed, log_sum = kept
  products = gradient.astype(jnp.float32) * mixed.astype(jnp.float32)
  products = products.sum(axis=-1, keepdims=True)

  def queries_last(x):
    return einops.rearrange(x, "B K G T 1 -> B K 1 G T")

  def one_chunk(sums, queries):
    # Keys before queries, "BKSGT": none of the five products has to transpose
    # one of the arrays of logits.
    k_gradient, v_gradient = sums
    q, gradient, products, log_sum, of_queries = queries
    logits, slope = _logits("BKSH,BKGTH->BKSGT", k, q, cap)
    weights = jnp.exp(logits - queries_last(log_sum))
    seen = _seen(mask, of_queries, window)
    if seen is not None:
      seen = einops.rearrange(seen, "B T S -> B 1 S 1 T")
      weights = jnp.where(seen, weights, 0)
    by_weights = einsum_float32("BKSH,BKGTH->BKSGT", v, gradient)
    by_logits = weights * (by_weights - queries_last(products))
    if slope is not None:
      by_logits *= slope
    by_logits = by_logits.astype(q.dtype)  # as einsum_float32 does
    v_gradient += einsum_float32(
      "BKSGT,BKGTH->BKSH", weights.astype(v.dtype), gradient
    )
    k_gradient += einsum_float32("BKSGT,BKGTH->BKSH", by_logits, q)
    q_gradient = einsum_float32("BKSH,BKSGT->BKHGT", k, by_logits)
    q_gradient = einops.rearrange(q_gradient, "B K H G T -> B K G T H")
    return (k_gradient, v_gradient), q_gradient.astype(q.dtype)

  zeros = [jnp.zeros(x.shape, jnp.float32) for x in (k, v)]
  (k_gradient, v_gradient), q_gradient = jax.lax.scan(
    one_chunk,
    tuple(zeros),
    (q, gradient, products, log_sum, of_queries),
  )
  gradients = q_gradient, k_gradient.astype(k.dtype), v_gradient.astype(v.dtype)
  return *gradients, None, None


_attend.defvjp(_forward, _backward)


def _logits(equation, x, y, cap):
  """Returns capped logits in float32, and the slope of the cap or None."""
  logits = einsum_float32(equation, x, y)
  if not cap:
    return logits, None
  squashed = jnp.tanh(logits / cap)
  return cap * squashed, 1 - jnp.square(squashed)


def _seen(mask, of_queries, window):
  """Returns which keys the queries of a chunk attend to, None for all."""
  return None if mask is None else mask.replace(**of_queries).dense(window)
