"""Attention that never holds its logits: a Pallas kernel for TPUs.

One tile of logits at a time is in the memory of a core, forward and backward
(FlashAttention, arXiv:2205.14135, with the loops of arXiv:2307.08691). The mask
of a tile is computed from three numbers per token, so that ragged prefixes,
padding anywhere and a window need no array of T x S, unlike in the kernels of
JAX and of tokamax 0.0.12.

It has not run on a TPU yet. It was compiled for v4, v5e, v5p and v6e (libtpu
0.0.51), and interpreted on CPUs it equals the reference, forward and backward,
also with the memories of a TPU simulated.

Axes: B batch, T query position, S key position, N query heads, K key/value
heads, H head dim, R query in a tile, C key in a tile. In a grid: b example, n
head, h key/value head, g head of its group, i tile of queries, j tile of keys.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from paligemma.models.attention.masks import UNSEEN, Mask, pad_axis
from paligemma.models.linear import keep

# Sides of a tile, multiples of the lanes; 512 x 512 logits take 1 MiB.
_LANES = 128
_SMALLEST, _LARGEST = 256, 512

_LOWEST = float(jnp.finfo(jnp.float32).min)


class _Settings(NamedTuple):
  scale: float
  cap: float | None
  windowed: bool
  rows: int
  columns: int


def attend(
  q: Float[Array, "B T N H"],
  k: Float[Array, "B S K H"],
  v: Float[Array, "B S K H"],
  mask: Mask,
  window: int | Int[Array, ""] | None = None,
  *,
  scale: float,
  logits_softcap: float | None = None,
) -> Float[Array, "B T N H"]:
  """Attends as reference.attend, in float32 or bfloat16.

  Products of float32 are exact to float32, which those of XLA are not on a TPU.
  The result for a query without any key is 0.
  """
  batch, length = q.shape[:2]
  rows, columns = _tile(length), _tile(k.shape[1])
  settings = _Settings(
    scale, logits_softcap or None, window is not None, rows, columns
  )
  query_block = pad_axis(mask.query_block, 1, rows, -1)
  query_position = pad_axis(mask.query_position, 1, rows)
  query_first = jnp.zeros_like(query_block)
  if mask.query_first is not None:
    query_first = pad_axis(mask.query_first, 1, rows)
  key_block = pad_axis(mask.key_block, 1, columns, UNSEEN)
  key_position = pad_axis(mask.key_position, 1, columns)
  tokens = (
    # A tile none of whose queries attends to any key is skipped: later text,
    # padding.
    query_block.reshape(batch, -1, rows).max(axis=2),
    key_block.reshape(batch, -1, columns).min(axis=2),
    jnp.asarray([0 if window is None else window], jnp.int32),
    jnp.stack([query_block, query_position, query_first], axis=2),
    jnp.stack([key_block, key_position], axis=1),
  )
  q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))
  q = pad_axis(q, 2, rows)
  k, v = (pad_axis(x, 2, columns) for x in (k, v))
  out = _attend(settings, q, k, v, tokens)
  return jnp.swapaxes(out, 1, 2)[:, :length]


def _tile(length):
  """Returns the side of the tiles: the largest that needs least padding."""
  sides = range(_LARGEST, min(_LARGEST, _SMALLEST) - 1, -_LANES)
  return min(sides, key=lambda side: length + -length % side)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(settings, q, k, v, tokens):
  return _attend_fwd(settings, q, k, v, tokens)[0]


def _attend_fwd(settings, q, k, v, tokens):
  batch, heads, queries, head_dim = q.shape
  rows = settings.rows
  out, total = _over_tiles(
    _mix_tile,
    _mix_end,
    settings,
    tokens,
    inputs=[("q", q), ("k", k), ("k", v)],
    outputs=[
      ("q", q.shape, v.dtype),
      ("row", (batch, heads, 1, queries), jnp.float32),
    ],
    scratch=[((rows, 1), _LOWEST), ((rows, 1), 0.0), ((rows, head_dim), 0.0)],
    products=2,
  )
  # If these two are kept, the backward pass does not attend again.
  out, total = keep(out), keep(total)
  return out, (q, k, v, tokens, out, total)


def _mix_tile(settings, seen, inputs, scratch):
  """Adds the weighted values of a tile of keys to those of earlier tiles.

  Scratch: the largest logit so far and the sum of the weights relative to it,
  both [R, 1], and the sum of the values times these weights, [R, H].
  """
  q, k, v = inputs
  top, weight, mixed = scratch
  logits, _ = _logits(settings, q, k)
  logits = jnp.where(seen, logits, _LOWEST)
  new_top = jnp.maximum(top[...], logits.max(axis=1, keepdims=True))
  fade = jnp.exp(top[...] - new_top)
  # While a query has no key yet, logits - new_top is 0: mask the weights too.
  weights = jnp.where(seen, jnp.exp(logits - new_top), 0.0)
  top[...] = new_top
  weight[...] = weight[...] * fade + weights.sum(axis=1, keepdims=True)
  mixed[...] = mixed[...] * fade + _dot(weights.astype(v.dtype), v[...], 1, 0)


def _mix_end(outputs, scratch):
  """Writes the result, and the logarithm of the sum of exp(logits)."""
  out, total = outputs
  top, weight, mixed = scratch
  weight = jnp.where(weight[...] == 0.0, 1.0, weight[...])
  out[...] = (mixed[...] / weight).astype(out.dtype)
  total[...] = _to_row(top[...] + jnp.log(weight))


def _attend_bwd(settings, residuals, d_out):
  q, k, v, tokens, out, total = residuals
  # The gradients of all weights of a query have this in common.
  mean = jnp.sum(d_out.astype(jnp.float32) * out.astype(jnp.float32), axis=3)
  inputs = [("q", q), ("k", k), ("k", v), ("q", d_out)]
  inputs += [("row", total), ("row", mean[:, :, None, :])]

  (dq,) = _over_tiles(
    _queries_tile,
    _gradients_end,
    settings,
    tokens,
    inputs,
    outputs=[("q", q.shape, q.dtype)],
    scratch=[((settings.rows, q.shape[3]), 0.0)],
    products=3,
  )
  dk, dv = _over_tiles(
    _keys_tile,
    _gradients_end,
    settings,
    tokens,
    inputs,
    outputs=[("k", k.shape, k.dtype), ("k", v.shape, v.dtype)],
    scratch=[((settings.columns, k.shape[3]), 0.0)] * 2,
    products=4,
    by_keys=True,
  )
  return dq, dk, dv, None


_attend.defvjp(_attend_fwd, _attend_bwd)


def _queries_tile(settings, seen, inputs, scratch):
  _, k, *_ = inputs
  (dq,) = scratch
  _, d_logits = _gradients(settings, seen, *inputs)
  dq[...] += _dot(d_logits, k[...], 1, 0)


def _keys_tile(settings, seen, inputs, scratch):
  q, _, _, d_out, *_ = inputs
  dk, dv = scratch
  weights, d_logits = _gradients(settings, seen, *inputs)
  dk[...] += _dot(d_logits, q[...], 0, 0)
  dv[...] += _dot(weights, d_out[...], 0, 0)


def _gradients_end(outputs, scratch):
  for out, total in zip(outputs, scratch, strict=True):
    out[...] = total[...].astype(out.dtype)


def _gradients(settings, seen, q, k, v, d_out, total, mean):
  """Returns the weights of a tile and the gradient of its scaled products."""
  logits, slope = _logits(settings, q, k)
  weights = jnp.exp(logits - _to_column(total[...]))
  weights = jnp.where(seen, weights, 0.0)
  d_weights = _dot(d_out[...], v[...], 1, 1)
  d_logits = weights * (d_weights - _to_column(mean[...])) * slope
  return weights.astype(v.dtype), (d_logits * settings.scale).astype(q.dtype)


def _logits(settings, q, k):
  """Returns logits in float32, and their derivative by the uncapped ones."""
  logits = _dot(q[...], k[...], 1, 1) * settings.scale
  if settings.cap is None:
    return logits, 1.0
  squashed = jnp.tanh(logits / settings.cap)
  return settings.cap * squashed, 1.0 - squashed * squashed


def _to_row(column):
  """float32[R, 1] -> [1, R], by a transposition that all TPUs have."""
  return jnp.broadcast_to(column, (len(column), _LANES)).T[:1]


def _to_column(row):
  return jnp.broadcast_to(row, (_LANES, row.shape[1])).T[:, :1]


def _dot(x, y, x_axis, y_axis):
  """Sums products over an axis of each matrix, in float32."""
  exact = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
  return jax.lax.dot_general(
    x,
    y,
    (((x_axis,), (y_axis,)), ((), ())),
    precision=exact,
    preferred_element_type=jnp.float32,
  )


def _over_tiles(
  step,
  end,
  settings,
  tokens,
  inputs,
  outputs,
  scratch,
  *,
  products,
  by_keys=False,
):
  """Runs a kernel over all tiles of logits.

  Args:
    step: Function of (settings, seen bool[R, C], inputs, scratch), called for
      every tile in which some query attends to some key.
    end: Function of (outputs, scratch), called when scratch is complete.
    settings: _Settings.
    tokens: See `attend`.
    inputs: List of (kind, array); the kind says which block a tile needs.
    outputs: List of (kind, shape, dtype).
    scratch: List of (shape, initial value), float32.
    products: How many products of a tile the kernel computes.
    by_keys: Whether to traverse all tiles of a key, of all heads in its group,
      rather than all tiles of a query.
  """
  rows, columns = settings.rows, settings.columns
  (_, q), (_, k), *_ = inputs
  batch, heads, queries, head_dim = q.shape
  kv_heads, keys = k.shape[1:3]
  group = heads // kv_heads
  if by_keys:
    grid = batch, kv_heads, keys // columns, group, queries // rows
    in_turn = 2  # number of last axes over which scratch accumulates
  else:
    grid = batch, heads, queries // rows, keys // columns
    in_turn = 1

  def place(b, n, *others):
    """Returns example, head, tile of queries and tile of keys."""
    if by_keys:
      j, g, i = others
      return b, n * group + g, i, j
    return b, n, *others

  blocks = {
    "q": ((None, None, rows, head_dim), lambda b, n, i, j: (b, n, i, 0)),
    "k": (
      (None, None, columns, head_dim),
      lambda b, n, i, j: (b, n // group, j, 0),
    ),
    "row": ((None, None, 1, rows), lambda b, n, i, j: (b, n, 0, i)),
    "query": ((None, rows, 3), lambda b, n, i, j: (b, i, 0)),
    "key": ((None, 2, columns), lambda b, n, i, j: (b, 0, j)),
  }

  def spec(kind):
    shape, index = blocks[kind]
    return pl.BlockSpec(
      shape, lambda *where: index(*place(*where[: len(grid)]))
    )

  def kernel(highest, lowest, window, query, key, *refs):
    of_inputs = refs[: len(inputs)]
    of_outputs = refs[len(inputs) : -len(scratch)]
    of_scratch = refs[-len(scratch) :]
    where = [pl.program_id(axis) for axis in range(len(grid))]
    turn = list(zip(where, grid, strict=True))[-in_turn:]
    b, _, i, j = place(*where)

    @pl.when(functools.reduce(jnp.logical_and, [at == 0 for at, _ in turn]))
    def _():
      for ref, (_, value) in zip(of_scratch, scratch, strict=True):
        ref[...] = jnp.full_like(ref, value)

    @pl.when(lowest[b, j] <= highest[b, i])
    def _():
      seen = _seen(settings, query, key, window[0])
      step(settings, seen, of_inputs, of_scratch)

    @pl.when(functools.reduce(jnp.logical_and, [at == n - 1 for at, n in turn]))
    def _():
      end(of_outputs, of_scratch)

  arrays = [array for _, array in inputs]
  shapes = [jax.ShapeDtypeStruct(*out) for _, *out in outputs]
  logits = batch * heads * queries * keys
  return pl.pallas_call(
    kernel,
    grid_spec=pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=3,
      grid=grid,
      in_specs=[
        spec("query"),
        spec("key"),
        *(spec(kind) for kind, _ in inputs),
      ],
      out_specs=[spec(kind) for kind, _, _ in outputs],
      scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape, _ in scratch],
    ),
    out_shape=shapes,
    cost_estimate=pl.CostEstimate(
      flops=2 * products * logits * head_dim,
      transcendentals=logits,
      bytes_accessed=sum(x.size * x.dtype.itemsize for x in arrays + shapes),
    ),
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=("parallel",) * (len(grid) - in_turn)
      + ("arbitrary",) * in_turn
    ),
    name=f"flash{step.__name__}",
  )(*tokens, *arrays)


def _seen(settings, query, key, window):
  """Returns Mask.dense of a tile: bool[R, C]."""
  query_block, key_block = query[:, :1], key[:1, :]
  seen = (key_block <= query_block) & (key_block >= query[:, 2:])
  if not settings.windowed:
    return seen
  distance = query[:, 1:2] - key[1:, :]
  return seen & ((distance < window) | (key_block == query_block))
