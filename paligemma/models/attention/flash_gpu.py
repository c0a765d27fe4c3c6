"""Attention that never holds its logits: Triton kernels for NVIDIA GPUs.

One tile of logits at a time is on a multiprocessor, forward and backward, as in
flash.py, and masks are three numbers per token, as there. A tile of queries (or
of keys, for the gradients of these) is a program, and loops over those of the
other axis up to the last one that meets it.

They have not run on a GPU yet. They were compiled for L4, A100, H100 and H200
(jax 0.10.2), and interpreted on CPUs they equal the reference, forward and
backward.

Axes: B batch, T query position, S key position, N query heads, K key/value
heads, G query heads per key/value head (N = K * G), H head dim, R query in a
tile, C key in a tile. In a grid: i tile, b example, n query or key/value head.
"""

import functools
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Float, Int

from paligemma.models.attention.masks import UNSEEN, Mask, pad_axis
from paligemma.models.linear import keep

# Sides of a tile: of what a program owns, and of what it loops over. A head dim
# of 256 then takes 128 KiB of shared memory, which data centers' GPUs have; it
# is half of the former for others, which have 99 KiB.
_OWN, _OTHER = 64, 32
_HAS_128_KIB = re.compile(r"NVIDIA (A100|A800|A30\b|G?[HB]\d)")

_LOWEST = float(jnp.finfo(jnp.float32).min)


class _Settings(NamedTuple):
  scale: float
  cap: float | None
  head_dim: int
  own: int


def attend(
  q: Float[Array, "B T N H"],
  k: Float[Array, "B S K H"],
  v: Float[Array, "B S K H"],
  mask: Mask,
  window: int | Int[Array, ""] | None = None,
  *,
  scale: float,
  logits_softcap: float | None = None,
  device_kind: str = "",
) -> Float[Array, "B T N H"]:
  """Attends as reference.attend, in bfloat16 or float16.

  The result for a query without any key is 0. `device_kind` is that of the GPU,
  by default one of little shared memory.
  """
  length, head_dim = q.shape[1], q.shape[3]
  is_small = head_dim > 128 and not _HAS_128_KIB.match(device_kind)
  own = _OWN // 2 if is_small else _OWN
  first, after = (jnp.full_like(mask.query_block, -(2**31)) for _ in range(2))
  if mask.query_first is not None:
    first = mask.query_first
  if window is not None:
    after = mask.query_position - window
  query = jnp.stack([mask.query_block, first, after], axis=1)
  key = jnp.stack([mask.key_block, mask.key_position], axis=1)
  tokens = pad_axis(query, 2, own, -1), pad_axis(key, 2, own, UNSEEN)
  q, k, v = (pad_axis(x, 1, own) for x in (q, k, v))
  settings = _Settings(scale, logits_softcap or None, head_dim, own)
  return _attend(settings, q, k, v, tokens)[:, :length]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(settings, q, k, v, tokens):
  return _mix(settings, q, k, v, tokens)[0]


def _mix(settings, q, k, v, tokens):
  batch, length, heads, _ = q.shape
  return _over_tiles(
    _mix_kernel,
    settings,
    tokens,
    inputs=[("q", q), ("k", k), ("k", v)],
    outputs=[
      ("q", q.shape, v.dtype),
      ("q", (batch, heads, length), jnp.float32),
    ],
    products=2,
  )


def _attend_fwd(settings, q, k, v, tokens):
  # If these two are kept, the backward pass does not attend again.
  out, total = (keep(x) for x in _mix(settings, q, k, v, tokens))
  return out, (q, k, v, tokens, out, total)


def _attend_bwd(settings, residuals, d_out):
  q, k, v, tokens, out, total = residuals
  # The gradients of all weights of a query have this in common.
  mean = jnp.sum(d_out.astype(jnp.float32) * out.astype(jnp.float32), axis=3)
  mean = jnp.swapaxes(mean, 1, 2)
  inputs = [("q", q), ("k", k), ("k", v), ("q", d_out)]
  inputs += [("q", total), ("q", mean)]
  (dq,) = _over_tiles(
    _queries_kernel,
    settings,
    tokens,
    inputs,
    outputs=[("q", q.shape, q.dtype)],
    products=3,
  )
  dk, dv = _over_tiles(
    _keys_kernel,
    settings,
    tokens,
    inputs,
    outputs=[("k", k.shape, k.dtype), ("k", v.shape, v.dtype)],
    products=4,
    by_keys=True,
  )
  return dq, dk, dv, None


_attend.defvjp(_attend_fwd, _attend_bwd)


def _mix_kernel(settings, q, k, v, query, key, end, out, total):
  """Mixes the values for a tile of queries."""
  at = _own(settings)
  q_tile, of_query = _load(settings, q, at), _tokens(query, at, 1)

  def add(j, so_far):
    top, weight, mixed = so_far
    at = _other(j)
    logits, _ = _logits(settings, q_tile, _load(settings, k, at))
    seen = _seen(of_query, _tokens(key, at, 0))
    logits = jnp.where(seen, logits, _LOWEST)
    new_top = jnp.maximum(top, logits.max(axis=1, keepdims=True))
    fade = jnp.exp(top - new_top)
    # While a query has no key yet, logits - new_top is 0: mask weights too.
    weights = jnp.where(seen, jnp.exp(logits - new_top), 0.0)
    weight = weight * fade + weights.sum(axis=1, keepdims=True)
    mixed = mixed * fade + _dot(
      weights.astype(v.dtype), _load(settings, v, at), 0
    )
    return new_top, weight, mixed

  top = jnp.full((settings.own, 1), _LOWEST, jnp.float32)
  start = top, jnp.zeros_like(top), jnp.zeros(q_tile.shape, jnp.float32)
  top, weight, mixed = jax.lax.fori_loop(0, end[pl.program_id(0)], add, start)
  weight = jnp.where(weight == 0.0, 1.0, weight)
  _store(settings, out, at, mixed / weight)
  total[at] = (top + jnp.log(weight))[:, 0]


def _queries_kernel(settings, q, k, v, d_out, total, mean, query, key, end, dq):
  """Sums the gradient by a tile of queries."""
  at = _own(settings)
  q_tile, d_tile, of_query = (
    _load(settings, q, at),
    _load(settings, d_out, at),
    _tokens(query, at, 1),
  )
  of_row = total[at][:, None], mean[at][:, None]

  def add(j, so_far):
    at = _other(j)
    k_tile, v_tile = _load(settings, k, at), _load(settings, v, at)
    seen = _seen(of_query, _tokens(key, at, 0))
    _, by_logits = _gradients(
      settings, q_tile, k_tile, seen, _dot(d_tile, v_tile, 1), *of_row
    )
    return so_far + _dot(by_logits.astype(k.dtype), k_tile, 0)

  start = jnp.zeros(q_tile.shape, jnp.float32)
  end = end[pl.program_id(0)]
  _store(settings, dq, at, jax.lax.fori_loop(0, end, add, start))


def _keys_kernel(
  settings, q, k, v, d_out, total, mean, query, key, begin, dk, dv
):
  """Sums the gradients by a tile of keys and by its values, of all heads."""
  at = _own(settings)
  k_tile, v_tile, of_key = (
    _load(settings, k, at),
    _load(settings, v, at),
    _tokens(key, at, 1),
  )
  _, group, _ = q.shape
  begin = begin[pl.program_id(0)]

  def add_head(g, so_far):
    def add(i, so_far):
      by_k, by_v = so_far
      at = _other(i)
      q_tile, d_tile = _load(settings, q, at, g), _load(settings, d_out, at, g)
      seen = _seen(_tokens(query, at, 0), of_key)
      of_row = total[g, at][None, :], mean[g, at][None, :]
      weights, by_logits = _gradients(
        settings, k_tile, q_tile, seen, _dot(v_tile, d_tile, 1), *of_row
      )
      by_k += _dot(by_logits.astype(q.dtype), q_tile, 0)
      by_v += _dot(weights.astype(v.dtype), d_tile, 0)
      return by_k, by_v

    return jax.lax.fori_loop(begin, query.shape[1] // _OTHER, add, so_far)

  start = (jnp.zeros(k_tile.shape, jnp.float32),) * 2
  by_k, by_v = jax.lax.fori_loop(0, group, add_head, start)
  _store(settings, dk, at, by_k)
  _store(settings, dv, at, by_v)


def _gradients(settings, x, y, seen, by_weights, total, mean):
  """Returns weights, and the gradient by the scaled products, of a tile."""
  logits, slope = _logits(settings, x, y)
  weights = jnp.where(seen, jnp.exp(logits - total), 0.0)
  return weights, weights * (by_weights - mean) * slope * settings.scale


def _logits(settings, x, y):
  """Returns logits in float32, and their derivative by the uncapped ones."""
  logits = _dot(x, y, 1) * settings.scale
  if settings.cap is None:
    return logits, 1.0
  # As tanh, which needs CUDA's library of functions.
  squashed = 1.0 - 2.0 / (1.0 + jnp.exp(2.0 * logits / settings.cap))
  return settings.cap * squashed, 1.0 - squashed * squashed


def _seen(query, key):
  """Returns Mask.dense of a tile."""
  (query_block, first, after), (key_block, key_position) = query, key
  seen = (key_block <= query_block) & (key_block >= first)
  return seen & ((key_position > after) | (key_block == query_block))


def _own(settings):
  return pl.ds(pl.program_id(0) * settings.own, settings.own)


def _other(index):
  return pl.ds(index * _OTHER, _OTHER)


def _tokens(ref, at, axis):
  """Loads the numbers of some tokens, with a new axis."""
  return [jnp.expand_dims(ref[i, at], axis) for i in range(ref.shape[0])]


def _load(settings, ref, at, head=None):
  """Loads rows of a head, whose dimension the block has padded."""
  ref = ref.at[at, :] if head is None else ref.at[at, head, :]
  return triton.load(ref, mask=_is_real(settings, ref), other=0.0)


def _store(settings, ref, at, value):
  ref = ref.at[at, :]
  value = value.astype(ref.dtype)
  triton.store(ref, value, mask=_is_real(settings, ref))


def _is_real(settings, ref):
  return (jnp.arange(ref.shape[1]) < settings.head_dim)[None, :]


def _dot(x, y, y_axis):
  """Sums products over the last axis of x and one of y, in float32."""
  return jax.lax.dot_general(
    x,
    y,
    (((1,), (y_axis,)), ((), ())),
    preferred_element_type=jnp.float32,
  )


def _over_tiles(
  kernel, settings, tokens, inputs, outputs, *, products, by_keys=False
):
  """Runs a kernel for every tile of queries of every head.

  Args:
    kernel: Function of (settings, *inputs, query, key, bound, *outputs).
    settings: _Settings.
    tokens: Of the queries, int32[B, 3, T]: block, the first block seen and the
      position behind which keys of other blocks are seen; and of the keys,
      int32[B, 2, S]: block and position.
    inputs: List of (kind, array), arrays [B, T, N, H] or [B, N, T]. The kind
      says whether it is of queries, "q", or of keys, "k".
    outputs: List of (kind, shape, dtype).
    products: How many products of a tile the kernel computes.
    by_keys: Whether for every tile of keys of every key/value head instead,
      with all of the queries' heads of its group.
  """
  query, key = tokens
  batch, length, heads, head_dim = inputs[0][1].shape
  keys, kv_heads = inputs[1][1].shape[1:3]
  group = heads // kv_heads
  padded = max(pl.next_power_of_2(head_dim), 16)
  own = settings.own
  rows, columns = (_OTHER, own) if by_keys else (own, _OTHER)
  highest = query[:, 0].reshape(batch, -1, rows).max(axis=2)
  lowest = key[:, 0].reshape(batch, -1, columns).min(axis=2)
  meets = lowest[:, None, :] <= highest[:, :, None]
  if by_keys:
    bound = jnp.argmax(meets, axis=1)
    bound = jnp.where(meets.any(axis=1), bound, meets.shape[1])
  else:
    index = jnp.arange(1, meets.shape[2] + 1)[None, None]
    bound = jnp.where(meets, index, 0).max(axis=2)
  bound = bound.astype(jnp.int32)

  def spec(kind, array):
    together = group if by_keys and kind == "q" else None
    shared = 1 if by_keys or kind == "q" else group
    if array.ndim == 3:
      shape = None, together, array.shape[2]
      return pl.BlockSpec(shape, lambda i, b, n: (b, n // shared, 0))
    shape = None, array.shape[1], together, padded
    return pl.BlockSpec(shape, lambda i, b, n: (b, 0, n // shared, 0))

  def whole(array):
    shape = None, *array.shape[1:]
    zeros = (0,) * (array.ndim - 1)
    return pl.BlockSpec(shape, lambda i, b, n: (b, *zeros))

  numbers = query, key, bound
  shapes = [jax.ShapeDtypeStruct(*out) for _, *out in outputs]
  flops = 2 * products * batch * heads * length * keys * padded
  return pl.pallas_call(
    functools.partial(kernel, settings),
    grid=(bound.shape[1], batch, kv_heads if by_keys else heads),
    in_specs=[spec(*each) for each in inputs] + [whole(x) for x in numbers],
    out_specs=[
      spec(kind, shape)
      for (kind, *_), shape in zip(outputs, shapes, strict=True)
    ],
    out_shape=shapes,
    compiler_params=triton.CompilerParams(
      num_warps=4 if padded <= 128 else 8, num_stages=2
    ),
    metadata={"flops": str(flops)},
    name=f"flash{kernel.__name__}",
  )(*[array for _, array in inputs], *numbers)
