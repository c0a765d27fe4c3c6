"""Which keys every query may attend to.

Axes: B batch, T query position, S key position.
"""

import flax.struct
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Int, Num

# The block of a key that no query may attend to.
UNSEEN = jnp.iinfo(jnp.int32).max


@flax.struct.dataclass
class Mask:
  """Says which keys every query may attend to, in a few numbers per token.

  A query attends to the keys whose block is at most its own. With a window,
  those of earlier blocks must also be less than `window` positions before it,
  which with a window of 2 and a prefix of 3 tokens gives

      x x x . .    the prefix attends to all of itself, however long,
      x x x . .
      x x x . .
      . . x x .    the suffix to the last positions of prefix and suffix alike
      . . . x x

  transformers (5.23) does the same, with a sliding, causal mask "or" one of
  blocks, but counts array positions where we count tokens: they agree unless
  there is padding between tokens. google-deepmind/gemma, whose Gemma 2 is
  causal throughout, bounds the distance in both directions (|distance| <
  window), which would cut the prefix. big_vision has no window.

  Attributes:
    query_block: -1 at padding, which attends to nothing.
    key_block: UNSEEN at padding, which nothing attends to.
    query_position, key_position: index of each token in its own sequence.
    query_first: The first block that a query attends to, where several
      sequences share a row. Default: it attends to all earlier ones.
  """

  query_block: Int[Array, "B T"]
  key_block: Int[Array, "B S"]
  query_position: Int[Array, "B T"]
  key_position: Int[Array, "B S"]
  query_first: Int[Array, "B T"] | None = None

  def dense(
    self, window: int | Int[Array, ""] | None = None
  ) -> Bool[Array, "B T S"]:
    """Returns the mask as one boolean per query and key.

    Args:
      window: Number of positions; 1 leaves only the token itself (and its
        block). Default: no bound.
    """
    query, key = self.query_block[:, :, None], self.key_block[:, None, :]
    seen = key <= query
    if self.query_first is not None:
      seen &= key >= self.query_first[:, :, None]
    if window is None:
      return seen
    distance = self.query_position[:, :, None] - self.key_position[:, None, :]
    return seen & ((distance < window) | (key == query))


def make_mask(
  input_mask: Bool[ArrayLike, "B T"],
  mask_ar: Int[ArrayLike, "B T"],
  segment_ids: Int[ArrayLike, "B T"] | None = None,
) -> Mask:
  """Returns the mask of a sequence that attends to itself.

  A query attends to the valid keys whose running sum of `mask_ar` is at most
  its own. So a 1 in `mask_ar` opens a new block that earlier tokens cannot
  attend to, and a 0 joins the block of the token before:

      mask_ar    1 1 1 1 1 1   causal
      mask_ar    0 0 0 1 1 1   prefix-LM: full within 3 tokens, then causal
      mask_ar    1 0 1 0 0 1   causal between blocks, full within each

  With segments, several sequences share a row. None attends to another, and the
  positions of each begin at 0:

      segment_ids    1 1 1 2 2 0      x . . . . .    two causal texts
      mask_ar        1 1 1 1 1 1      x x . . . .    and padding
      position       0 1 2 0 1 0      x x x . . .
                                      . . . x . .
                                      . . . x x .
                                      . . . . . .

  Source: big_vision, models/proj/paligemma/paligemma.py.

  Args:
    input_mask: True at a token, False at padding, which neither attends nor is
      attended to. Positions count the tokens of an example.
    mask_ar: 1 where earlier tokens must not attend to a token, else 0. It is 1
      at the first token of every segment but the first.
    segment_ids: The number of the sequence of each token, ascending. Default:
      there is one.
  """
  block = jnp.cumsum(mask_ar, axis=1, dtype=jnp.int32)
  count = jnp.cumsum(input_mask, axis=1, dtype=jnp.int32)
  first = None
  if segment_ids is not None:
    begins = jnp.diff(segment_ids, axis=1, prepend=-1) != 0

    def at_first(x):
      return jax.lax.cummax(jnp.where(begins, x, 0), axis=1)

    first = at_first(block)
    count -= at_first(count - input_mask)
  position = jnp.maximum(count - 1, 0)
  return Mask(
    query_block=jnp.where(input_mask, block, -1),
    key_block=jnp.where(input_mask, block, UNSEEN),
    query_position=position,
    key_position=position,
    query_first=first,
  )


def make_next_mask(
  key_mask: Bool[Array, "B S"],
  key_position: Int[Array, "B S"],
  position: Int[Array, "B 1"],
) -> Mask:
  """Returns the mask of one new token per example, a block of its own.

  `key_mask` is True at the tokens before it and at itself.
  """
  return Mask(
    query_block=jnp.ones_like(position),
    key_block=jnp.where(key_mask, 0, UNSEEN),
    query_position=position,
    key_position=key_position,
  )


def pad_axis(
  x: Num[Array, "..."], axis: int, multiple: int, value: int = 0
) -> Num[Array, "..."]:
  """Pads the end of an axis so that its size is a multiple."""
  widths = [(0, 0)] * x.ndim
  widths[axis] = (0, -x.shape[axis] % multiple)
  return jnp.pad(x, widths, constant_values=value)
