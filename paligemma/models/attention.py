"""Attention from masks to weighted values, shared by both towers.

Axes: B batch, T query position, S key position, N query heads, K key/value
heads, G query heads per key/value head (N = K * G), H head dim.
"""

import einops
import jax
import jax.numpy as jnp

# Large enough to vanish in a float32 softmax, finite so that a query without
# any key (padding) yields a plain average instead of NaN.
MASKED_LOGIT = -2.3819763e38


def make_attn_mask(input_mask, mask_ar):
  """Says which keys every query may attend to.

  A query sees the valid keys whose running sum of `mask_ar` is at most its
  own. So a 1 in `mask_ar` opens a new block that earlier tokens cannot see,
  and a 0 joins the block of the token before:

      mask_ar    1 1 1 1 1 1   causal
      mask_ar    0 0 0 1 1 1   prefix-LM: 3 tokens see each other, then causal
      mask_ar    1 0 1 0 0 1   causal between blocks, full inside each

  Source: big_vision, models/proj/paligemma/paligemma.py.

  Args:
    input_mask: bool[B, T], True at a token, False at padding.
    mask_ar: int[B, T], 1 where earlier tokens must not look, else 0.

  Returns:
    bool[B, T, T] (query, key). Padding neither attends nor is attended to.
  """
  block = jnp.cumsum(mask_ar, axis=1)
  causal = block[:, None, :] <= block[:, :, None]
  valid = input_mask[:, None, :] & input_mask[:, :, None]
  return causal & valid


def make_block_mask(mask_ar):
  """Says which keys stand in the same block as a query, see `make_attn_mask`.

  Args:
    mask_ar: int[B, T].

  Returns:
    bool[B, T, T] (query, key): tokens of a prefix with each other, a causal
    token with itself.
  """
  block = jnp.cumsum(mask_ar, axis=1)
  return block[:, None, :] == block[:, :, None]


def make_window_mask(query_positions, key_positions, window):
  """Says which keys stand less than `window` positions before a query.

  Keys behind the query pass: whether it may look ahead says the mask that this
  one is combined with. Local layers of gemma.Model do so by

      make_attn_mask & (make_window_mask | make_block_mask)

  which with a window of 2 and a prefix of 3 tokens gives

      x x x . .    the prefix sees all of itself, however long,
      x x x . .
      x x x . .
      . . x x .    the suffix looks back on prefix and suffix alike
      . . . x x

  So do transformers' masks (5.23): its sliding, causal mask is joined ("or")
  with one of blocks. Its cache of a local layer keeps the last window - 1 keys,
  which are those that the next token sees by this rule. It counts places, we
  tokens: they agree unless padding stands inside. google-deepmind/gemma, whose
  Gemma 2 is causal throughout, bounds the distance in both directions
  (|distance| < window): the same for causal text, and it would cut the prefix.
  big_vision has no window.

  Args:
    query_positions: int[B, T], index of each query in its own sequence.
    key_positions: int[B, S], likewise for the keys.
    window: int, the number of positions; 1 leaves only the token itself.

  Returns:
    bool[B, T, S].
  """
  return query_positions[:, :, None] - key_positions[:, None, :] < window


def apply_rope(x, positions, *, max_wavelength=10_000):
  """Rotates each head by its position (RoPE, arXiv:2104.09864).

  The head dim is split into two halves, and element i of the first turns with
  element i of the second (GPT-NeoX layout, as in Gemma), not with its
  neighbour. Angles and rotation are float32: bfloat16 cannot even represent
  the integer positions above 256.

  Args:
    x: float[B, T, N, H] queries or keys; H is even.
    positions: int[B, T].
    max_wavelength: int, the slowest rotation in tokens per radian.

  Returns:
    float[B, T, N, H] in the dtype of `x`.
  """
  half = x.shape[-1] // 2
  exponent = jnp.arange(half, dtype=jnp.float32) / half
  angle = positions[:, :, None, None].astype(jnp.float32) / (
    jnp.float32(max_wavelength) ** exponent[None, None, None, :]
  )
  sin, cos = jnp.sin(angle), jnp.cos(angle)
  first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  rotated = jnp.concatenate(
    [first * cos - second * sin, second * cos + first * sin], axis=-1
  )
  return rotated.astype(x.dtype)


def soft_cap(logits, cap):
  """Squashes logits smoothly into (-cap, cap); None or 0 changes nothing.

  Source: Gemma 2 report (arXiv:2408.00118), section 2.
  """
  return cap * jnp.tanh(logits / cap) if cap else logits


def attend(q, k, v, mask=None, *, scale, logits_softcap=None):
  """Scaled dot-product attention with grouped queries.

  Logits and softmax are float32 whatever the inputs are; the weights return
  to the dtype of `v` before they meet it.

  Args:
    q: float[B, T, N, H] queries, not yet scaled.
    k: float[B, S, K, H] keys; K divides N.
    v: float[B, S, K, H] values.
    mask: bool[B, T, S], True where a query may look, or None for everywhere.
    scale: float, what the queries are multiplied by.
    logits_softcap: float or None, bound on the logits before the mask.

  Returns:
    float[B, T, N, H] in the dtype of `v`.
  """
  q = einops.rearrange(q, "B T (K G) H -> B T K G H", K=k.shape[2])
  logits = jnp.einsum(
    "BTKGH,BSKH->BKGTS", q, k, preferred_element_type=jnp.float32
  )
  logits = soft_cap(logits * scale, logits_softcap)
  if mask is not None:
    logits = jnp.where(mask[:, None, None, :, :], logits, MASKED_LOGIT)
  weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
  mixed = jnp.einsum("BKGTS,BSKH->BTKGH", weights, v)
  return einops.rearrange(mixed, "B T K G H -> B T (K G) H")
