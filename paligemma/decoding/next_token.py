"""Answers that grow by a token at a time, one of each prompt.

Every row counts its own tokens and has its own key, so that what it draws
depends neither on the other rows nor on when it began.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, Key

from paligemma.decoding import samplers
from paligemma.decoding.decoded import Decoded
from paligemma.decoding.grammar import automaton


class Growing(NamedTuple):
  """Answers of B prompts, begun or complete.

  Attributes:
    token: the last one, which the model has not read yet.
    ended: whether the answer is complete.
    decoded: the tokens so far.
    state: of the grammar; None without one.
    key: what a row draws from; None if it draws nothing.
  """

  token: Int[Array, " B"]
  ended: Bool[Array, " B"]
  decoded: Decoded
  state: automaton.State | None
  key: Key[Array, " B"] | None


def begin(
  is_real: Bool[ArrayLike, " B"],
  rng: jax.Array | None,
  grammar: automaton.Grammar | None,
  *,
  max_len: int,
  pad_id: Int[ArrayLike, ""],
) -> Growing:
  """Returns answers without a token; those that are not real have ended.

  Args:
    is_real: which prompts to answer.
    rng: row b draws token n from fold_in(fold_in(rng, b), n).
    grammar: of all answers.
    max_len: L, most tokens of an answer.
    pad_id: token behind its end.
  """
  is_real = jnp.asarray(is_real)
  count = len(is_real)
  key = None
  if rng is not None:
    key = jax.vmap(jax.random.fold_in, (None, 0))(rng, jnp.arange(count))
  return Growing(
    token=jnp.full(count, pad_id, jnp.int32),
    ended=~is_real,
    decoded=Decoded(
      tokens=jnp.full((count, max_len), pad_id, jnp.int32),
      log_probs=jnp.zeros((count, max_len), jnp.float32),
      num_tokens=jnp.zeros(count, jnp.int32),
      score=jnp.where(is_real, 0.0, -jnp.inf),
    ),
    state=automaton.begin(grammar, is_real.shape),
    key=key,
  )


def append(
  growing: Growing,
  logits: Float[Array, "B V"],
  sampler: samplers.Sampler,
  grammar: automaton.Grammar | None,
  *,
  max_len: int,
  eos_id: Int[ArrayLike, ""],
  pad_id: Int[ArrayLike, ""],
) -> Growing:
  """Appends a token to every answer that has not ended."""
  ended, decoded = growing.ended, growing.decoded
  position = decoded.num_tokens
  left = max_len - position
  allowed = automaton.restrict(grammar, growing.state, logits, left)
  token = _choose(sampler, allowed, growing.key, position)
  token = jnp.where(ended, pad_id, token).astype(jnp.int32)
  chosen = jnp.take_along_axis(logits, token[:, None], axis=-1)[:, 0]
  log_prob = chosen - jax.nn.logsumexp(logits, axis=-1)
  log_prob = jnp.where(ended, 0.0, log_prob)
  # Not a scatter, which would move rows that are split over devices.
  here = jnp.arange(max_len)[None] == position[:, None]
  num_tokens = position + ~ended
  return growing._replace(
    token=token,
    ended=ended | (token == eos_id) | (num_tokens == max_len),
    decoded=Decoded(
      tokens=jnp.where(here, token[:, None], decoded.tokens),
      log_probs=jnp.where(here, log_prob[:, None], decoded.log_probs),
      num_tokens=num_tokens,
      score=decoded.score + log_prob,
    ),
    state=automaton.advance(grammar, growing.state, token),
  )


def _choose(sampler, logits, key, position):
  """Returns a token of each row, drawn from its own key."""
  if key is None:
    return sampler(logits, None)

  def draw(logits, key, position):
    return sampler(logits[None], jax.random.fold_in(key, position))[0]

  return jax.vmap(draw)(logits, key, position)
