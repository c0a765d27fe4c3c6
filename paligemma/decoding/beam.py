"""Beam search: the answers of highest score, found by following a few at once.

Axes: B prompts, N beams of each, L tokens of an answer, V vocabulary.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from paligemma.decoding import samplers
from paligemma.decoding.grammar import automaton


class Answers(NamedTuple):
  """A few answers to every prompt, the best first; as in decode.Decoded.

  Attributes:
    tokens: i32[B, N, L].
    log_probs: f32[B, N, L].
    num_tokens: i32[B, N].
    score: f32[B, N], -inf where there is no answer.
  """

  tokens: jax.Array
  log_probs: jax.Array
  num_tokens: jax.Array
  score: jax.Array


class _Live(NamedTuple):
  """The beams: answers that go on, the most probable first."""

  tokens: jax.Array  # i32[B, N, L]
  log_probs: jax.Array  # f32[B, N, L]
  total: jax.Array  # f32[B, N], sum of log_probs; -inf where there is no beam
  place: automaton.State | None  # [B, N], in the grammar


def search(
  logits,
  cache,
  rows,
  *,
  extend,
  reorder,
  sampler: samplers.Beam,
  grammar,
  keep,
  max_decode_len,
  eos_id,
  pad_id,
) -> Answers:
  """Searches for the answers of highest samplers.score to every prompt.

  At each step all beams are continued by every token, and the 2 N most probable
  continuations looked at. At most N of those end, for each beam has but one
  eos; so at least N go on, and the best N are the beams of the next step. Those
  that end and are among the first N become answers, of which the best are kept.

  A prompt is done when no beam can still beat the answers kept. What a beam can
  reach is known: its log-probability never rises and the penalty is largest at
  L tokens. So to stop early changes no result.

  Where the limit comes first, places still free are filled as in big_vision,
  where every beam may end at every step, however improbable that is: with the
  best of what the beams would have been, had they ended, at any step. So if no
  answer ended, the best is that of big_vision. Only where nothing can end, as
  no token is eos, are beams cut at L tokens.

  Sources: Wu et al. 2016, arXiv:1609.08144, section 7, for the penalty; it
  also prunes by score, which we do not. The two sets are those of transformers
  (5.23, num_beams), with whom we agree for length_penalty=0 and
  early_stopping="never". It differs otherwise: it divides by
  |Y| ** length_penalty; by default (early_stopping=False) it takes what a beam
  has for what it can reach; cut answers compete with ended ones. In big_vision
  (predict_fns._beam_decode) an answer that is made to end competes with those
  that end among the first N, so that a single beam is not greedy; it has no
  penalty and returns the best answer alone.

  Args:
    logits: f32[B, V], of the first token.
    cache: of B * N rows, the N of a prompt side by side and all alike.
    rows: bool[B], the prompts to answer.
    extend: function (cache, tokens i32[B * N]) -> (f32[B * N, V], cache).
    reorder: function (cache, parent i32[B, N]) -> cache where beam n of a
      prompt has what its beam parent[:, n] had.
    sampler: beam size N and length penalty.
    grammar: the answers that are allowed, or None: see decode.generate. Fewer
      than N may be, or go on; the other beams are of log-probability -inf.
    keep: answers to return, at most N.
    max_decode_len: L.
    eos_id, pad_id: see decode.generate.

  Returns:
    Answers, with N = keep.
  """
  (batch, vocabulary), beams = logits.shape, sampler.beam_size

  def score(total, num_tokens):
    return samplers.score(total, num_tokens, sampler.length_penalty)

  def best(answers, more):
    """The best to be kept of both, in order."""
    both = jax.tree.map(_beside, answers, more)
    order = jnp.argsort(both.score, axis=1, descending=True, stable=True)
    return jax.tree.map(lambda x: take(x, order[:, :keep]), both)

  def choose(step, logits, live, answers, made_to_end):
    """Adds column `step` by logits f32[B, N, V].

    Returns the new beams, their parents, and both kinds of answers.
    """
    log_probs = jax.nn.log_softmax(logits)
    left = max_decode_len - step
    allowed = automaton.restrict(grammar, live.place, log_probs, left)
    total, chosen = _top(live.total[:, :, None] + allowed, 2 * beams)
    parent, token = jnp.divmod(chosen, vocabulary)
    log_prob = jax.vmap(lambda row, *at: row[at])(log_probs, parent, token)
    candidates = _Live(
      tokens=take(live.tokens, parent).at[:, :, step].set(token),
      log_probs=take(live.log_probs, parent).at[:, :, step].set(log_prob),
      total=total,
      place=automaton.advance(
        grammar, jax.tree.map(lambda x: take(x, parent), live.place), token
      ),
    )
    ends = token == eos_id

    ended = candidates._replace(total=jnp.where(ends, total, -jnp.inf))
    ended = jax.tree.map(lambda x: x[:, :beams], ended)
    answers = best(answers, _answers(ended, step + 1, score))

    # The other beams, as if each had ended here.
    is_parent = parent[:, :beams, None] == jnp.arange(beams)[None, None]
    has_ended = jnp.any(is_parent & ends[:, :beams, None], axis=1)
    log_prob = _column(log_probs, eos_id)
    total = live.total + _column(allowed, eos_id)
    ending = live._replace(
      tokens=live.tokens.at[:, :, step].set(eos_id),
      log_probs=live.log_probs.at[:, :, step].set(log_prob),
      total=jnp.where(has_ended, -jnp.inf, total),
    )
    made_to_end = best(made_to_end, _answers(ending, step + 1, score))

    total = jnp.where(ends, -jnp.inf, candidates.total)
    going_on = candidates._replace(total=total)
    first = jnp.argsort(ends, axis=1, stable=True)[:, :beams]
    live = jax.tree.map(lambda x: take(x, first), going_on)
    return live, take(parent, first), answers, made_to_end

  def unfinished(state):
    step, live, _, answers, _, _ = state
    can_win = score(live.total[:, 0], max_decode_len) > answers.score[:, -1]
    return (step < max_decode_len) & jnp.any(rows & can_win)

  def advance(state):
    step, live, parent, answers, made_to_end, cache = state
    token = live.tokens[:, :, step - 1]
    logits, cache = extend(reorder(cache, parent), token.reshape(-1))
    logits = logits.reshape(batch, beams, vocabulary)
    chosen = choose(step, logits, live, answers, made_to_end)
    return step + 1, *chosen, cache

  def nothing(number):
    shape = (batch, number, max_decode_len)
    return _Live(
      tokens=jnp.full(shape, pad_id, jnp.int32),
      log_probs=jnp.zeros(shape, jnp.float32),
      total=jnp.full(shape[:2], -jnp.inf, jnp.float32),
      place=automaton.begin(grammar, shape[:2]),
    )

  # All beams begin alike: but for one they are left out of the first step.
  live = nothing(beams)
  live = live._replace(total=live.total.at[:, 0].set(0.0))
  none = _answers(nothing(keep), 0, score)
  logits = jnp.broadcast_to(logits[:, None], (batch, beams, vocabulary))
  state = (1, *choose(0, logits, live, none, none), cache)
  state = jax.lax.while_loop(unfinished, advance, state)
  step, live, _, answers, made_to_end, _ = state

  answers = _fill(answers, made_to_end)
  answers = _fill(answers, _answers(live, step, score))
  is_one = rows[:, None] & (answers.score > -jnp.inf)
  return Answers(
    tokens=jnp.where(is_one[:, :, None], answers.tokens, pad_id),
    log_probs=jnp.where(is_one[:, :, None], answers.log_probs, 0.0),
    num_tokens=jnp.where(is_one, answers.num_tokens, 0),
    score=jnp.where(is_one, answers.score, -jnp.inf),
  )


def _fill(answers, others) -> Answers:
  """Others, the best first, where there is no answer; both are sorted."""
  keep = answers.score.shape[1]
  found = jnp.sum(answers.score > -jnp.inf, axis=1, keepdims=True)
  place = jnp.arange(keep)[None]
  order = jnp.where(place < found, place, keep + place - found)
  return jax.tree.map(lambda x, y: take(_beside(x, y), order), answers, others)


def _answers(live, num_tokens, score) -> Answers:
  return Answers(
    tokens=live.tokens,
    log_probs=live.log_probs,
    num_tokens=jnp.full(live.total.shape, num_tokens, jnp.int32),
    score=score(live.total, num_tokens),
  )


def _beside(x, y):
  return jnp.concatenate([x, y], axis=1)


def take(x, index):
  """Items [B, N, ...] of every row of x[B, M, ...], by index i32[B, N]."""
  return jax.vmap(lambda row, i: row[i])(x, index)


def _column(x, token):
  """x[..., token] of x[B, N, V], -inf if there is no such token.

  Under a mesh x stays split over the vocabulary, as it would not if sliced.
  """
  is_token = jnp.arange(x.shape[-1])[None, None] == token
  return jnp.max(jnp.where(is_token, x, -jnp.inf), axis=-1)


def _top(x, k):
  """The k largest values of x[B, ...] and their flat indices, both [B, k].

  As jax.lax.top_k, which under a mesh brings all logits to every device; this
  exchanges k candidates, however rows and vocabulary are split. It reads x k
  times and writes nothing. Where fewer than k values are above -inf, the others
  are -inf, with any index.
  """
  axes = tuple(range(1, x.ndim))
  index = jnp.arange(x[0].size, dtype=jnp.int32).reshape(1, *x.shape[1:])

  def next_largest(last, _):
    value, place = (jnp.expand_dims(y, axes) for y in last)
    is_left = (x < value) | ((x == value) & (index > place))
    left = jnp.where(is_left, x, -jnp.inf)
    value = jnp.max(left, axis=axes, keepdims=True)
    place = jnp.min(jnp.where(left == value, index, index.size), axis=axes)
    found = value.reshape(-1), place
    return found, found

  first = jnp.full(len(x), jnp.inf), jnp.full(len(x), -1)
  _, (values, places) = jax.lax.scan(next_largest, first, length=k)
  return values.T, places.T


@dataclasses.dataclass(frozen=True)
class CacheLayout:
  """Where a cache has its rows, so that beams can share and swap them.

  Attributes:
    axes: of every leaf, the axis of rows and that of positions, None without.
    prompt_len: positions of the prompt, which come first.
  """

  axes: tuple[tuple[int | None, int | None], ...]
  prompt_len: int

  def repeat(self, cache, number):
    """A cache of B rows -> B * number rows, the copies side by side."""

    def repeat(x, rows, positions):
      del positions
      return x if rows is None else jnp.repeat(x, number, axis=rows)

    return self._map(repeat, cache)

  def reorder(self, cache, parent):
    """Gives beam n of a prompt what its beam parent[:, n] had: i32[B, N].

    All beams of a prompt have that prompt in common: it stays in place, and
    only what lies behind is copied.
    """
    pick = functools.partial(jnp.take, mode="clip")

    def reorder(x, rows, positions):
      if rows is None:
        return x
      new = x
      if positions is not None:
        new = jax.lax.slice_in_dim(x, self.prompt_len, None, axis=positions)
      beams = new.reshape(
        *new.shape[:rows], *parent.shape, *new.shape[rows + 1 :]
      )
      pick_rows = functools.partial(pick, axis=rows)
      beams = jax.vmap(pick_rows, (rows, 0), rows)(beams, parent)
      new = beams.reshape(new.shape)
      if positions is None:
        return new
      return jax.lax.dynamic_update_slice_in_dim(
        x, new, self.prompt_len, positions
      )

    return self._map(reorder, cache)

  def _map(self, function, cache):
    leaves, treedef = jax.tree.flatten(cache)
    return treedef.unflatten(
      [function(x, *axes) for x, axes in zip(leaves, self.axes, strict=True)]
    )


def find_layout(prefill, cache, prompt, cache_size) -> CacheLayout:
  """Finds the axes of a cache, whatever the model keeps in it.

  They are those that grow with one row and with two positions more; the larger
  cache has shapes alone and is never computed.

  Args:
    prefill: function (*prompt, cache_size) -> (logits, cache).
    cache: what it returned for `prompt` and `cache_size`.
    prompt: tuple of arrays [B, S, ...].
    cache_size: int.
  """

  def one_row_more(x):
    return jax.ShapeDtypeStruct((x.shape[0] + 1, *x.shape[1:]), x.dtype)

  _, larger = jax.eval_shape(
    functools.partial(prefill, cache_size=cache_size + 2),
    *map(one_row_more, prompt),
  )

  def axes(x, larger):
    shapes = zip(jnp.shape(x), larger.shape, strict=True)
    growth = [after - before for before, after in shapes]
    return tuple(growth.index(n) if n in growth else None for n in (1, 2))

  leaves = zip(jax.tree.leaves(cache), jax.tree.leaves(larger), strict=True)
  return CacheLayout(tuple(axes(*pair) for pair in leaves), prompt[0].shape[1])
