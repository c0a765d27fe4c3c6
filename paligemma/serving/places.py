"""The places of a device, in which answers are decoded side by side.

A few prompts are prefilled and put into places, rows of one cache, while the
others wait for no more than that. Then each round is two programs,
whatever the places hold: `choose` takes a token of each row of logits as its
request asks, and `extend` reads these tokens and leaves the logits of the next.
The host reads the tokens and acts on them while `extend` runs.

All places write to the same position of the cache in a round; behind the prompt
these are a ring as long as the longest answer.

Axes: P places, V vocabulary, C classes of a grammar, K told tokens.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from paligemma.decoding import continuous, decode, samplers
from paligemma.lora import gather
from paligemma.models import cpu
from paligemma.serving import sizes

MOST_TOLD = 20  # tokens of which log-probabilities are told


class Row(NamedTuple):
  """How the next token of one place is chosen; of P places, arrays.

  Attributes:
    position: Of the token in its answer, from 0 on.
    temperature, top_p, seed: As of a Request.
    told: Whether the most probable tokens are asked for.
    allowed: Whether each class of the place's grammar is.
    floor: Only tokens above it are allowed.
  """

  position: Int[np.ndarray, "*P"] = 0
  temperature: Float[np.ndarray, "*P"] = 0.0
  top_p: Float[np.ndarray, "*P"] = 1.0
  seed: Int[np.ndarray, "*P"] = 0
  told: Bool[np.ndarray, "*P"] = False
  allowed: Bool[np.ndarray, "*P C"] = np.ones(1, bool)
  floor: Int[np.ndarray, "*P"] = -1


class Reading(NamedTuple):
  """What a model reads of a request.

  Attributes:
    images: The tokens of each picture.
    text: As sequence.prompt returns it.
    adapter: Index into the argument of lora.gather.stack.
  """

  images: tuple[Float[Array, "N D"], ...]
  text: Mapping[str, np.ndarray]
  adapter: int


class Chosen(NamedTuple):
  """The next token of each place.

  Attributes:
    token, log_prob: As of a Token.
    told, told_log_probs: Of the most probable tokens, best first; zeros unless
      a place asks for them.
  """

  token: Int[Array, " P"]
  log_prob: Float[Array, " P"]
  told: Int[Array, "P K"]
  told_log_probs: Float[Array, "P K"]


class Places:
  """A cache on a device, with its logits; used by one thread.

  Args:
    model, params: Of lora.gather.stack, with the layers of the decoder apart.
    count: P.
    max_prompt: Most positions of a prompt.
    max_tokens: Most tokens of an answer.

  Raises:
    ValueError: The device has no room for the cache.
  """

  def __init__(
    self,
    model: nn.Module,
    params: Mapping[str, Any],
    count: int,
    max_prompt: int,
    max_tokens: int,
  ):
    self._model, self._params, self._ring = model, params, max_tokens
    self._size = max_prompt + max_tokens
    vocabulary = model.llm.vocab_size
    self.count = count
    shapes = jax.eval_shape(self._empty_cache, params)
    _check_memory(shapes, count, self._size, params)
    cache = jax.jit(self._empty_cache)(params)
    logits = jnp.zeros((count, vocabulary), jnp.float32)
    classes = jnp.zeros((count, vocabulary), jnp.int32)
    # Programs are compiled anew for arrays that are bound to no device.
    self._cache, self._logits, self._class_of_token = jax.device_put(
      (cache, logits, classes), _device(params)
    )

  def prefill(self, prompts: Mapping[int, Reading]) -> None:
    """Reads prompts of one shape into free places.

    Args:
      prompts: Place -> what it reads, at most sizes.TOGETHER.
    """
    place, prompts = zip(*sizes.padded([*prompts.items()]), strict=True)
    texts = [x.text for x in prompts]
    self._cache, self._logits = _prefill(
      self._model,
      self._params,
      self._cache,
      self._logits,
      tuple(x.images for x in prompts),
      {name: np.stack([x[name] for x in texts]) for name in texts[0]},
      np.array(place, np.int32),
      np.array([x.adapter for x in prompts], np.int32),
      size=self._size,
    )

  def restrict(self, place: int, class_of_token: Int[np.ndarray, " V"]) -> None:
    """Says what the classes of `Row.allowed` are, in a place."""
    more = self._class_of_token.shape[1] - len(class_of_token)
    row = np.pad(np.asarray(class_of_token, np.int32), (0, more))
    self._class_of_token = _put(self._class_of_token, row, np.int32(place))

  def choose(self, rows: Sequence[Row]) -> Chosen:
    """Chooses the next token of each place; returns before they are there."""
    classes = max(len(row.allowed) for row in rows)
    rows = [
      row._replace(
        # Beyond its own classes a place has no tokens, or no grammar.
        allowed=np.pad(row.allowed, (0, classes - len(row.allowed)), "edge")
      )
      for row in rows
    ]
    dtypes = np.int32, np.float32, np.float32, np.uint32, bool, bool, np.int32
    columns = zip(*rows, strict=True)
    packed = Row(*map(np.array, columns, dtypes))
    return _choose(self._logits, self._class_of_token, packed)

  def extend(self, token: Int[Array, " P"], adapter: Sequence[int]) -> None:
    """Reads a token in each place; of those that are free, any."""
    self._cache, self._logits = _extend(
      self._model,
      self._params,
      self._cache,
      token,
      np.array(adapter, np.int32),
      ring=self._ring,
    )

  def _empty_cache(self, params):
    """The cache of P prompts of one token, none of which anyone reads."""
    adapter = jnp.zeros(self.count, jnp.int32)
    prefill, _ = decode.functions(self._model, gather.take(params, adapter))
    x = jnp.zeros((self.count, 1, self._model.llm.width), jnp.float32)
    _, cache = prefill(
      x,
      jnp.ones((self.count, 1), bool),
      jnp.zeros((self.count, 1), jnp.int32),
      cache_size=self._size,
    )

    def emptied(path, leaf):
      if path[-1].key == "next_index":
        return jnp.int32(self._size - self._ring)
      return jnp.zeros_like(leaf)

    return jax.tree_util.tree_map_with_path(emptied, cache)


@functools.partial(
  cpu.fast_math_jit,
  static_argnames=("model", "size"),
  donate_argnames=("cache", "logits"),
)
def _prefill(
  model, params, cache, logits, images, text, place, adapter, *, size
):
  params = gather.take(params, adapter)
  of_images = {}
  if images[0]:
    joined = [jnp.concatenate(x) for x in images]
    of_images["image_embedding"] = jnp.stack(joined)
  prompts = decode.embed_prompts(model, params, of_images, text)
  prefill, _ = decode.functions(model, params)
  # Of keys and values only those of the prompt are written: who was in the
  # place before has left others behind it, which the mask hides.
  length = prompts[0].shape[1]
  new_logits, new_cache = prefill(*prompts, cache_size=length)

  def put(all_places, rows):
    if rows.dtype == bool:
      rows = jnp.pad(rows, [(0, 0), (0, size - length)])
    if rows.ndim:  # else the next index, which is that of all
      for i in range(len(rows)):
        all_places = _row_put(all_places, rows[i : i + 1], place[i])
    return all_places

  return jax.tree.map(put, cache, new_cache), put(logits, new_logits)


@functools.partial(
  cpu.fast_math_jit,
  static_argnames=("model", "ring"),
  donate_argnames="cache",
)
def _extend(model, params, cache, token, adapter, *, ring):
  params = gather.take(params, adapter)
  _, extend = decode.functions(model, params)
  logits, cache = extend(continuous.in_ring(cache, ring), token)
  return cache, logits


def _row_put(rows, row, place):
  return jax.lax.dynamic_update_slice_in_dim(rows, row, place, axis=0)


@functools.partial(jax.jit, donate_argnums=0)
def _put(rows, row, place):
  return _row_put(rows, row[None], place)


@jax.jit
def _choose(logits, class_of_token, rows) -> Chosen:
  """Each part is computed only if a place asks for it."""
  own = jax.nn.logsumexp(logits, axis=-1)

  def restricted():
    take = jax.vmap(functools.partial(jnp.take, mode="clip"))
    ids = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 1)
    allowed = take(rows.allowed, class_of_token) & (ids > rows.floor[:, None])
    return jnp.where(allowed, logits, -jnp.inf)

  is_restricted = ~jnp.all(rows.allowed) | jnp.any(rows.floor >= 0)
  allowed = jax.lax.cond(is_restricted, restricted, lambda: logits)
  greedy = samplers.Greedy()(allowed)

  def drawn():
    draws = rows.temperature > 0
    # Lower ones would not be finite.
    scale = jnp.where(draws, jnp.maximum(rows.temperature, 1e-6), 1.0)[:, None]

    def nucleus():
      p = jnp.maximum(rows.top_p, 1e-6)[:, None]
      ranked, ids = samplers.rank_nucleus(allowed, p, scale)
      return jnp.put_along_axis(ranked, ids, ranked, axis=-1, inplace=False)

    def draw(seed, position, logits):
      key = jax.random.fold_in(jax.random.key(seed), position)
      return jax.random.categorical(key, logits)

    is_cut = jnp.any(draws & (rows.top_p < 1))
    kept = jax.lax.cond(is_cut, nucleus, lambda: allowed / scale)
    token = jax.vmap(draw)(rows.seed, rows.position, kept)
    return jnp.where(draws, token.astype(jnp.int32), greedy)

  token = jax.lax.cond(jnp.any(rows.temperature > 0), drawn, lambda: greedy)
  chosen = jnp.take_along_axis(logits, token[:, None], axis=-1)[:, 0]
  most = min(MOST_TOLD, logits.shape[1])

  def told():
    values, ids = jax.lax.top_k(logits, most)
    return ids, values - own[:, None]

  def nothing():
    shape = len(logits), most
    return jnp.zeros(shape, jnp.int32), jnp.zeros(shape, jnp.float32)

  told = jax.lax.cond(jnp.any(rows.told), told, nothing)
  return Chosen(token, chosen - own, *told)


def _device(params):
  return min(jax.tree.leaves(params)[0].devices(), key=lambda d: d.id)


def free_memory(params: Mapping[str, Any]) -> float:
  """Returns the bytes left on the device of parameters, inf if it keeps mum."""
  stats = _device(params).memory_stats() or {}
  return stats.get("bytes_limit", math.inf) - stats.get("bytes_in_use", 0)


def _check_memory(cache, count, size, params):
  free = free_memory(params)
  arrays = jax.tree.leaves(cache)
  needed = sum(math.prod(x.shape) * x.dtype.itemsize for x in arrays)
  if needed > free:
    raise ValueError(
      f"the cache of {count} places of {size} positions takes "
      f"{needed / 2**30:.2f} GiB, the device has {free / 2**30:.2f} GiB left; "
      "lower places, max_prompt or max_tokens"
    )
