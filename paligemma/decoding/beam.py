"""Beam search: the answers of highest score, found by following a few at once.

Axes: B prompts, N beams of each, L tokens of an answer, V vocabulary.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, Shaped

from paligemma.decoding import samplers
from paligemma.decoding.decoded import Decoded
from paligemma.decoding.grammar import automaton

Cache = Any  # a pytree of arrays
# Like a cache, with the batch axis and the position axis of each leaf, or None.
Axes = Any


class _Live(NamedTuple):
  """The beams: unfinished answers, the most probable first."""

  tokens: Int[Array, "B N L"]
  log_probs: Float[Array, "B N L"]
  total: Float[Array, "B N"]  # sum of log_probs; -inf where there is no beam
  grammar_state: automaton.State | None  # [B, N]


def search(
  logits: Float[Array, "B V"],
  cache: Cache,
  is_real: Bool[Array, " B"],
  *,
  extend: Callable[
    [Cache, Int[Array, " B*N"]], tuple[Float[Array, "B*N V"], Cache]
  ],
  reorder: Callable[[Cache, Int[Array, "B N"]], Cache],
  sampler: samplers.Beam,
  grammar: automaton.Grammar | None,
  keep: int,
  max_len: int,
  eos_id: Int[ArrayLike, ""],
  pad_id: Int[ArrayLike, ""],
) -> Decoded:
  """Searches for the answers of highest samplers.score to every prompt.

  Each step extends all beams by every token and takes the 2 N most probable
  continuations. At most N of these end, because each beam has only one eos; so
  at least N continue, and the best N are the beams of the next step. Those that
  end and are among the first N become answers; the best are kept.

  A prompt is done when no beam can beat the answers kept any more: the
  log-probability of a beam never rises, and the penalty is largest at L tokens.
  So stopping early changes no result.

  If the length limit comes first, missing answers are filled in as in
  big_vision, where every beam may end at every step, however improbable: by the
  best of all beams of all steps with eos appended. Only if no beam can end,
  because no token is eos, are beams cut at L tokens.

  Sources: Wu et al. 2016, arXiv:1609.08144, section 7, for the penalty; it
  also prunes by score, which we do not. The two sets, beams and answers, are
  those of transformers (5.23, num_beams); results agree for length_penalty=0
  and early_stopping="never". Otherwise it differs: it divides by
  |Y| ** length_penalty; by default (early_stopping=False) it stops by the score
  that a beam has, not the one it can reach; and cut answers compete with ended
  ones. In big_vision (predict_fns._beam_decode) beams with eos appended compete
  with answers that end among the first N, so a single beam is not greedy; it
  has no penalty and returns only the best answer.

  Args:
    logits: of the first token.
    cache: of B * N sequences; the N of a prompt are adjacent and equal.
    is_real: whether to answer a prompt.
    extend: feeds one token of each beam to the model: next logits and cache.
    reorder: the function below, of cache and parent.
    grammar: if fewer than N beams can continue, the others have
      log-probability -inf.
    keep: number of answers to return, at most N, the best first.
  """
  (batch, vocabulary), beams = logits.shape, sampler.beam_size

  def score(total, num_tokens):
    return samplers.score(total, num_tokens, sampler.length_penalty)

  def best(answers, more):
    scores = jnp.concatenate([answers.score, more.score], axis=1)
    order = jnp.argsort(scores, axis=1, descending=True, stable=True)
    return _take_of_both(answers, more, order[:, :keep])

  def choose(step, logits, live, answers, appended):
    """Chooses token number `step` from logits f32[B, N, V].

    Returns the new beams, their parents, the best answers that ended, and the
    best beams with eos appended.
    """
    log_probs = jax.nn.log_softmax(logits)
    left = max_len - step
    allowed = automaton.restrict(grammar, live.grammar_state, log_probs, left)
    total, chosen = _top(live.total[:, :, None] + allowed, 2 * beams)
    parent, token = jnp.divmod(chosen, vocabulary)
    log_prob = jax.vmap(lambda row, *at: row[at])(log_probs, parent, token)
    before = jax.tree.map(lambda x: take(x, parent), live)
    candidates = _Live(
      before.tokens.at[:, :, step].set(token),
      before.log_probs.at[:, :, step].set(log_prob),
      total,
      automaton.advance(grammar, before.grammar_state, token),
    )
    ends = token == eos_id

    ended = candidates._replace(total=jnp.where(ends, total, -jnp.inf))
    ended = jax.tree.map(lambda x: x[:, :beams], ended)
    answers = best(answers, _answers(ended, step + 1, score))

    # The other beams, with eos appended here.
    is_parent = parent[:, :beams, None] == jnp.arange(beams)[None, None]
    has_ended = jnp.any(is_parent & ends[:, :beams, None], axis=1)
    log_prob = _column(log_probs, eos_id)
    total = live.total + _column(allowed, eos_id)
    ending = live._replace(
      tokens=live.tokens.at[:, :, step].set(eos_id),
      log_probs=live.log_probs.at[:, :, step].set(log_prob),
      total=jnp.where(has_ended, -jnp.inf, total),
    )
    appended = best(appended, _answers(ending, step + 1, score))

    total = jnp.where(ends, -jnp.inf, candidates.total)
    candidates = candidates._replace(total=total)
    first = jnp.argsort(ends, axis=1, stable=True)[:, :beams]
    live = jax.tree.map(lambda x: take(x, first), candidates)
    return live, take(parent, first), answers, appended

  def unfinished(state):
    step, live, _, answers, _, _ = state
    can_win = score(live.total[:, 0], max_len) > answers.score[:, -1]
    return (step < max_len) & jnp.any(is_real & can_win)

  def advance(state):
    step, live, parent, answers, appended, cache = state
    token = live.tokens[:, :, step - 1]
    logits, cache = extend(reorder(cache, parent), token.reshape(-1))
    logits = logits.reshape(batch, beams, vocabulary)
    chosen = choose(step, logits, live, answers, appended)
    return step + 1, *chosen, cache

  def empty(number):
    shape = (batch, number, max_len)
    return _Live(
      tokens=jnp.full(shape, pad_id, jnp.int32),
      log_probs=jnp.zeros(shape, jnp.float32),
      total=jnp.full(shape[:2], -jnp.inf, jnp.float32),
      grammar_state=automaton.begin(grammar, shape[:2]),
    )

  # All beams begin equal, so only one takes part in the first step.
  live = empty(beams)
  live = live._replace(total=live.total.at[:, 0].set(0.0))
  none = _answers(empty(keep), 0, score)
  logits = jnp.broadcast_to(logits[:, None], (batch, beams, vocabulary))
  state = (1, *choose(0, logits, live, none, none), cache)
  state = jax.lax.while_loop(unfinished, advance, state)
  step, live, _, answers, appended, _ = state

  answers = _fill(answers, appended)
  answers = _fill(answers, _answers(live, step, score))
  exists = is_real[:, None] & (answers.score > -jnp.inf)

  def existing(x, missing):
    is_kept = jnp.expand_dims(exists, range(2, x.ndim))
    return jnp.where(is_kept, x, missing)

  return jax.tree.map(existing, answers, none)


def _fill(answers, others) -> Decoded:
  """Replaces missing answers by the best of others; both are sorted."""
  keep = answers.score.shape[1]
  found = jnp.sum(answers.score > -jnp.inf, axis=1, keepdims=True)
  rank = jnp.arange(keep)[None]
  order = jnp.where(rank < found, rank, keep + rank - found)
  return _take_of_both(answers, others, order)


def _take_of_both(answers, others, order) -> Decoded:
  def of_both(x, y):
    return take(jnp.concatenate([x, y], axis=1), order)

  return jax.tree.map(of_both, answers, others)


def _answers(live, num_tokens, score) -> Decoded:
  lengths = jnp.full(live.total.shape, num_tokens, jnp.int32)
  total = score(live.total, num_tokens)
  return Decoded(live.tokens, live.log_probs, lengths, total)


def take(
  x: Shaped[Array, "B M ..."], index: Int[Array, "B N"]
) -> Shaped[Array, "B N ..."]:
  """Returns x[b, index[b, n]] for every b and n."""
  return jax.vmap(lambda row, i: row[i])(x, index)


def _column(x, token):
  """Returns x[..., token] of x[B, N, V], -inf if there is no such token.

  Unlike slicing, it keeps x sharded over the vocabulary under a mesh.
  """
  is_token = jnp.arange(x.shape[-1])[None, None] == token
  return jnp.max(jnp.where(is_token, x, -jnp.inf), axis=-1)


def _top(x, k):
  """Returns the k largest values of x[B, ...] and flat indices, both [B, k].

  Unlike jax.lax.top_k, which gathers all logits on every device of a mesh, it
  exchanges k candidates, whatever the sharding. It reads x k times. If fewer
  than k values are above -inf, the others are -inf, with any index.
  """
  axes = tuple(range(1, x.ndim))
  index = jnp.arange(x[0].size, dtype=jnp.int32).reshape(1, *x.shape[1:])

  def next_largest(last, _):
    value, argmax = (jnp.expand_dims(y, axes) for y in last)
    is_left = (x < value) | ((x == value) & (index > argmax))
    left = jnp.where(is_left, x, -jnp.inf)
    value = jnp.max(left, axis=axes, keepdims=True)
    argmax = jnp.min(jnp.where(left == value, index, index.size), axis=axes)
    found = value.reshape(-1), argmax
    return found, found

  first = jnp.full(len(x), jnp.inf), jnp.full(len(x), -1)
  _, (values, indices) = jax.lax.scan(next_largest, first, length=k)
  return values.T, indices.T


def find_axes(
  prefill: Callable[..., tuple[jax.Array, Cache]],
  cache: Cache,
  prompt: tuple[Shaped[Array, "B S ..."], ...],
  cache_size: int,
) -> Axes:
  """Finds the batch axis and the position axis of every leaf of a cache.

  They are those that grow with one example and with two positions more. The
  shapes of that larger cache are evaluated abstractly.

  Args:
    prefill: function (*prompt, cache_size) -> (logits, cache).
    cache: what it returned for `prompt` and `cache_size`.
  """

  def one_more(x):
    return jax.ShapeDtypeStruct((x.shape[0] + 1, *x.shape[1:]), x.dtype)

  def axes(x, larger):
    shapes = zip(jnp.shape(x), larger.shape, strict=True)
    growth = [after - before for before, after in shapes]
    return tuple(growth.index(n) if n in growth else None for n in (1, 2))

  prefill = functools.partial(prefill, cache_size=cache_size + 2)
  _, larger = jax.eval_shape(prefill, *map(one_more, prompt))
  return jax.tree.map(axes, cache, larger)


def repeat(cache: Cache, axes: Axes, number: int) -> Cache:
  """Repeats every sequence of a cache; the copies are adjacent."""

  def repeated(x, axes):
    batch, _ = axes
    return x if batch is None else jnp.repeat(x, number, axis=batch)

  return jax.tree.map(repeated, cache, axes)


def reorder(
  axes: Axes, prompt_len: int, cache: Cache, parent: Int[Array, "B N"]
) -> Cache:
  """Gives beam n of prompt b what its beam parent[b, n] had.

  All beams of a prompt share its positions, the first `prompt_len`, so only
  later ones are copied.
  """

  def reordered(x, axes):
    batch, positions = axes
    if batch is None:
      return x
    new = x
    if positions is not None:
      new = jax.lax.slice_in_dim(x, prompt_len, None, axis=positions)
    before, after = new.shape[:batch], new.shape[batch + 1 :]
    beams = new.reshape(*before, *parent.shape, *after)
    pick = functools.partial(jnp.take, mode="clip", axis=batch)
    beams = jax.vmap(pick, (batch, 0), batch)(beams, parent)
    new = beams.reshape(new.shape)
    if positions is None:
      return new
    return jax.lax.dynamic_update_slice_in_dim(x, new, prompt_len, positions)

  return jax.tree.map(reordered, cache, axes)
