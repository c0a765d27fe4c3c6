"""Which keys every query may attend to.

Axes: B batch, T query position, S key position.
"""

import functools

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

# The block of a key that no query sees.
UNSEEN = jnp.iinfo(jnp.int32).max


@flax.struct.dataclass
class Mask:
  """Says which keys every query may attend to, from a few numbers per token.

  A query sees the keys whose block is at most its own. With a window, those of
  earlier blocks must also stand less than `window` positions before it, which
  with a window of 2 and a prefix of 3 tokens gives

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

  Attributes:
    query_block: int32[B, T]; -1 at padding, which sees nothing.
    key_block: int32[B, S]; the largest int32 at padding, which nothing sees.
    query_position: int32[B, T], index of each query in its own sequence.
    key_position: int32[B, S], likewise for the keys.
  """

  query_block: Int[Array, "B T"]
  key_block: Int[Array, "B S"]
  query_position: Int[Array, "B T"]
  key_position: Int[Array, "B S"]

  def dense(
    self, window: int | Int[Array, ""] | None = None
  ) -> Bool[Array, "B T S"]:
    """Writes the mask out: bool[B, T, S] (query, key).

    Args:
      window: int or int32[], the number of positions; 1 leaves only the token
        itself (and its block). Default: no bound.
    """
    query, key = self.query_block[:, :, None], self.key_block[:, None, :]
    seen = key <= query
    if window is None:
      return seen
    distance = self.query_position[:, :, None] - self.key_position[:, None, :]
    return seen & ((distance < window) | (key == query))

  def ranges(
    self, window: int | Int[Array, ""] | None = None
  ) -> tuple[Int[Array, "B T"], Int[Array, "B T"], Bool[Array, "B S"]]:
    """The mask as one range of keys for each query.

    For a mask of `make_mask`, where blocks and positions rise along the row: a
    query sees the valid keys from the first of its block, or with a window the
    first one within it, to the last of its block; without one all up to there.

    Args:
      window: as for `dense`.

    Returns:
      Tuple of the first place int32[B, T], the place behind the last one
      int32[B, T], and which keys are valid, bool[B, S].
    """
    valid = self.key_block != UNSEEN
    # Padding joins the block behind it, and at the end stays out of all.
    block = jax.lax.cummin(self.key_block, axis=1, reverse=True)

    def find(rising, wanted, side):
      search = functools.partial(jnp.searchsorted, side=side)
      return jax.vmap(search)(rising, wanted).astype(jnp.int32)

    end = find(block, self.query_block, "right")
    if window is None:
      return jnp.zeros_like(end), end, valid
    nearest = find(self.key_position, self.query_position - window, "right")
    return (
      jnp.minimum(find(block, self.query_block, "left"), nearest),
      end,
      valid,
    )


def make_mask(
  input_mask: Bool[Array, "B T"], mask_ar: Int[Array, "B T"]
) -> Mask:
  """The mask of a sequence that attends to itself.

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
    Mask of T queries and T keys. Padding neither attends nor is attended to.
    The position of a token is its index among the valid ones of its row.
  """
  block = jnp.cumsum(mask_ar, axis=1, dtype=jnp.int32)
  count = jnp.cumsum(input_mask, axis=1, dtype=jnp.int32)
  position = jnp.maximum(count - 1, 0)
  return Mask(
    query_block=jnp.where(input_mask, block, -1),
    key_block=jnp.where(input_mask, block, UNSEEN),
    query_position=position,
    key_position=position,
  )


def make_next_mask(
  key_mask: Bool[Array, "B S"],
  key_position: Int[Array, "B S"],
  position: Int[Array, "B 1"],
) -> Mask:
  """The mask of one new token per row, a block of its own.

  Args:
    key_mask: bool[B, S], True at the tokens before it and at itself.
    key_position: int32[B, S].
    position: int32[B, 1], that of the new token.

  Returns:
    Mask of 1 query and S keys.
  """
  return Mask(
    query_block=jnp.ones_like(position),
    key_block=jnp.where(key_mask, 0, UNSEEN),
    query_position=position,
    key_position=key_position,
  )
