"""Decoding of many batches in which no place waits for the longest answer.

A row whose answer has ended is given the next prompt, while the others go on.
Shapes are fixed: a batch of places that decode, and a batch of prompts, already
prefilled, that take places as they become free. So no program depends on how
long answers are, and the number of steps is about that of all tokens over the
number of places, not the sum of the longest answer of each batch.

Every row counts its own tokens and positions. All write to the same position of
the cache at a step; behind the prompt these are a ring as long as an answer, so
that a row which begins anywhere in it has room.
"""

import collections
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Int

from paligemma.decoding import decode, next_token, samplers
from paligemma.decoding.decoded import Decoded
from paligemma.decoding.grammar import automaton
from paligemma.models import cpu

Done = tuple[Int[Array, " B"], Decoded]  # owners and answers

_WAIT = 8  # places change rows once an eighth of them is free


class Rows(NamedTuple):
  """Answers of B prompts, begun or complete.

  Attributes:
    owner: number of the prompt, from the first batch on.
    growing: the answers.
    cache: of the model.
  """

  owner: Int[Array, " B"]
  growing: next_token.Growing
  cache: Any


def generate(
  model: nn.Module,
  params: Mapping[str, Any],
  batches: Iterable[Mapping[str, Any]],
  *,
  max_decode_len: int,
  sampler: str | Callable | samplers.Sampler = "greedy",
  rngs: Iterable[jax.Array | None] = itertools.repeat(None),
  grammar: automaton.Grammar | None = None,
  eos_id: Int[ArrayLike, ""] = 1,
  pad_id: Int[ArrayLike, ""] = 0,
) -> Iterator[Decoded]:
  """Answers the prompts of many batches, on a single device.

  Answers are those of decode.generate, batch by batch, up to the order in which
  float32 sums are added. A batch is taken before all of those before it are
  answered.

  Args:
    model, params, max_decode_len, grammar, eos_id, pad_id: As of
      decode.generate.
    batches: As of decode.generate, all of the same shapes.
    sampler: See samplers.make; not Beam or BestOf, which follow several answers
      of a prompt.
    rngs: The rng of each batch, as of decode.generate.

  Yields:
    The answers of each batch, in order, as arrays of NumPy.

  Raises:
    ValueError: As decode.generate, and for such a sampler.
  """
  sampler = samplers.make(sampler)
  if not callable(sampler):
    raise ValueError(
      f"{sampler} follows several answers of a prompt: use decode.generate"
    )
  if grammar is not None:
    automaton.check(grammar, max_decode_len, eos_id)
  how = {
    "grammar": grammar,
    "eos_id": eos_id,
    "pad_id": pad_id,
    "sampler": sampler,
    "max_len": max_decode_len,
  }
  active, answers, sizes = None, {}, collections.deque()
  taken = yielded = 0

  def complete():
    nonlocal yielded
    while sizes and all(yielded + i in answers for i in range(sizes[0])):
      rows = [answers.pop(yielded + i) for i in range(sizes[0])]
      yielded += sizes.popleft()
      yield jax.tree.map(lambda *x: np.stack(x), *rows)

  for batch, rng in zip(batches, rngs, strict=False):
    images, text = decode._inputs(model, batch)
    rng = decode._rng_for(sampler, rng)
    size = len(batch["text"])
    is_real = batch.get("_mask", np.ones(size, bool))
    owner = np.arange(taken, taken + size, dtype=np.int32)
    prompts = images, text, is_real, owner
    taken += size
    sizes.append(size)
    begin = functools.partial(_begin, model, params, rng=rng, **how)
    new = begin(*prompts)
    if active is None:
      active, axes = new, _batch_axes(begin, prompts)
      continue
    active, done, _ = _advance(model, params, active, new, axes=axes, **how)
    _keep(done, answers)
    yield from complete()
  if active is not None:
    _keep(_finish(model, params, active, **how)[0], answers)
    yield from complete()


def _keep(done, answers):
  owner, decoded = jax.device_get(done)
  for i, number in enumerate(owner.tolist()):
    answers[number] = jax.tree.map(lambda x, i=i: x[i], decoded)


def _batch_axes(begin, prompts) -> tuple[int | None, ...]:
  """Finds the axis of each leaf of a cache that grows with one more prompt."""

  def caches(more):
    def grown(x):
      return jax.ShapeDtypeStruct((len(x) + more, *x.shape[1:]), x.dtype)

    rows = jax.eval_shape(begin, *jax.tree.map(grown, prompts))
    return [leaf.shape for leaf in jax.tree.leaves(rows.cache)]

  return tuple(
    next(
      (i for i, (n, m) in enumerate(zip(*pair, strict=True)) if n != m), None
    )
    for pair in zip(caches(0), caches(1), strict=True)
  )


_STATIC = ("model", "sampler", "max_len")


@functools.partial(cpu.fast_math_jit, static_argnames=_STATIC)
def _begin(
  model, params, images, text, is_real, owner, *, rng, max_len, pad_id, **how
) -> Rows:
  """Prefills prompts and chooses their first token."""
  prefill, _ = decode.functions(model, params)
  prompt = decode.embed_prompts(model, params, images, text)
  size = prompt[0].shape[1] + max_len - 1
  logits, cache = prefill(*prompt, cache_size=size)
  ends = {"max_len": max_len, "pad_id": pad_id}
  growing = next_token.begin(is_real, rng, how["grammar"], **ends)
  growing = next_token.append(growing, logits, **how, **ends)
  return Rows(owner, growing, cache)


@functools.partial(
  cpu.fast_math_jit,
  static_argnames=(*_STATIC, "axes"),
  donate_argnames="active",
)
def _advance(
  model, params, active, new, *, axes, **how
) -> tuple[Rows, Done, Int[Array, ""]]:
  """Decodes until all new prompts have a place.

  Returns:
    The rows at work; the answers that made room; the number of steps.
  """
  size = len(new.owner)

  def has_room(state):
    rows, _, taken, _ = state
    return rows.growing.ended.sum() >= jnp.minimum(
      max(size // _WAIT, 1), size - taken
    )

  def step(state):
    rows, done, taken, steps = state
    rows = _extend(model, params, rows, how)
    return rows, done, taken, steps + 1

  def change(state):
    state = jax.lax.while_loop(lambda s: ~has_room(s), step, state)
    rows, done, taken, steps = state
    ended = rows.growing.ended
    order = taken + jnp.cumsum(ended) - 1
    enters = ended & (order < size)
    index = jnp.where(enters, order, size)  # beyond the end: none
    done = jax.tree.map(
      lambda all, row: all.at[index].set(row, mode="drop"),
      done,
      (rows.owner, rows.growing.decoded),
    )

    def pick(old, fresh, axis=0):
      if axis is None:
        return old
      shape = [-1 if i == axis else 1 for i in range(old.ndim)]
      fresh = jnp.take(fresh, index, axis=axis, mode="clip")
      return jnp.where(enters.reshape(shape), fresh, old)

    old, tree = jax.tree.flatten(rows.cache)
    cache = map(pick, old, jax.tree.leaves(new.cache), axes)
    rows = jax.tree.map(
      pick, rows._replace(cache=()), new._replace(cache=())
    )._replace(cache=jax.tree.unflatten(tree, cache))
    return rows, done, taken + enters.sum(), steps

  done = active.owner, active.growing.decoded
  state = (active, done, jnp.int32(0), jnp.int32(0))
  state = jax.lax.while_loop(lambda s: s[2] < size, change, state)
  rows, done, _, steps = state
  return rows, done, steps


@functools.partial(cpu.fast_math_jit, static_argnames=_STATIC)
def _finish(model, params, active, **how) -> tuple[Done, Int[Array, ""]]:
  """Decodes the last rows to their ends; returns these and the steps."""

  def step(state):
    rows, steps = state
    rows = _extend(model, params, rows, how)
    return rows, steps + 1

  def unfinished(state):
    return ~jnp.all(state[0].growing.ended)

  rows, steps = jax.lax.while_loop(unfinished, step, (active, jnp.int32(0)))
  return (rows.owner, rows.growing.decoded), steps


def _extend(model, params, rows, how):
  """Reads the last token of every row and chooses the next one."""
  cache = in_ring(rows.cache, how["max_len"] - 1)
  token = rows.growing.token
  logits, cache = decode.functions(model, params)[1](cache, token)
  growing = next_token.append(rows.growing, logits, **how)
  return rows._replace(growing=growing, cache=cache)


def in_ring(cache: Any, length: int) -> Any:
  """Returns a cache whose next position is in its last ones, used as a ring."""
  flat = jax.tree_util.tree_flatten_with_path(cache)[0]
  named = {path[-1].key: x for path, x in flat}
  end = named["input_mask"].shape[1]

  def wrapped(path, x):
    if path[-1].key != "next_index":
      return x
    return jnp.where(x == end, end - length, x)

  return jax.tree_util.tree_map_with_path(wrapped, cache)
