"""From images and prompts to tokens: one prefill, then a token at a time."""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from paligemma import samplers

_TEXT_KEYS = ("text", "mask_ar", "mask_input")


class Decoded(NamedTuple):
  """Decoded rows; everything after a row's eos is filling.

  With eos = 1, pad = 0 and max_decode_len L = 5, a row that ends early, one
  that does not, and a padding row of the batch:

    tokens      7 9 1 0 0     7 9 7 9 7     0 0 0 0 0
    log_probs   x x x 0 0     x x x x x     0 0 0 0 0
    num_tokens  3             5             0

  Attributes:
    tokens: i32[B, L].
    log_probs: f32[B, L], log-probability of each token under the model's own
      softmax: temperature 1, whole vocabulary, whatever the sampler did.
    num_tokens: i32[B], tokens up to and including eos.
  """

  tokens: jax.Array
  log_probs: jax.Array
  num_tokens: jax.Array


def generate(
  model,
  params: Mapping[str, Any],
  batch: Mapping[str, Any],
  *,
  max_decode_len: int,
  sampler: str | samplers.Sampler = "greedy",
  rng: jax.Array | None = None,
  eos_id: int = 1,
  pad_id: int = 0,
) -> Decoded:
  """Decodes every prompt of a batch until eos or the length limit.

  Compiled once per model, sampler, length and shapes. Works on a single device
  and, unchanged, under a mesh with sharded params and batch. Stops when every
  row has ended.

  Args:
    model: a Model with embed_image_and_text, prefill_cache, embed_text and
      extend_cache; hashable.
    params: its parameters, {"img": ..., "llm": ...}.
    batch: a batch of prompts, without the answer:
      image: f32[B, H, W, 3] in [-1, 1]; not for a model without image tower.
      text: i32[B, T], prompt then padding; rows may differ in length.
      mask_ar: i32[B, T], 0 on the prompt (attended to in both directions).
      mask_input: bool[B, T], True on the prompt, False on padding.
      _mask: bool[B], optional; False on rows that only fill up the batch: they
        are not decoded. Default all True.
      Other keys are ignored.
    max_decode_len: most tokens to decode, L, eos included.
    sampler: a sampler or its name in samplers.SAMPLERS.
    rng: key for a stochastic sampler; the n-th token uses fold_in(rng, n).
    eos_id: token that ends a row.
    pad_id: token written after it.

  Returns:
    Decoded.

  Raises:
    ValueError: a key is missing, the batch is one for training, max_decode_len
      is below 1, or a stochastic sampler has no rng.
  """
  sampler = samplers.make(sampler)
  if max_decode_len < 1:
    raise ValueError(f"max_decode_len={max_decode_len}, expected at least 1.")
  if sampler.stochastic and rng is None:
    raise ValueError(f"{sampler} draws at random: give generate an rng.")
  keys = _TEXT_KEYS if model.img is None else ("image", *_TEXT_KEYS)
  if missing := [key for key in keys if key not in batch]:
    raise ValueError(
      f"The batch to decode has no {', '.join(missing)}, expected"
      f" {', '.join(keys)}; found {', '.join(sorted(batch))}."
    )
  if "mask_loss" in batch:
    raise ValueError(
      "The batch to decode has mask_loss: its text holds the answer, which the"
      " model would read; make it with the evaluation layout (train=False)."
    )
  rows = batch.get("_mask", np.ones(len(batch["text"]), bool))
  return _generate(
    model,
    params,
    None if model.img is None else batch["image"],
    *(batch[key] for key in _TEXT_KEYS),
    rows,
    rng if sampler.stochastic else None,
    max_decode_len=max_decode_len,
    sampler=sampler,
    eos_id=eos_id,
    pad_id=pad_id,
  )


@functools.partial(
  jax.jit,
  static_argnames=("model", "max_decode_len", "sampler", "eos_id", "pad_id"),
)
def _generate(
  model,
  params,
  image,
  text,
  mask_ar,
  mask_input,
  rows,
  rng,
  *,
  max_decode_len,
  sampler,
  eos_id,
  pad_id,
):
  """The compiled part of generate; rows bool[B] are the rows to decode."""
  variables = {"params": params}

  def choose(step, logits, ended, decoded):
    """Adds the token that logits f32[B, 1, V] give as column `step`."""
    logits = logits[:, 0].astype(jnp.float32)
    key = None if rng is None else jax.random.fold_in(rng, step)
    token = jnp.where(ended, pad_id, sampler(logits, key))
    log_prob = jax.nn.log_softmax(logits)
    log_prob = jnp.take_along_axis(log_prob, token[:, None], axis=-1)[:, 0]
    decoded = Decoded(
      tokens=decoded.tokens.at[:, step].set(token),
      log_probs=decoded.log_probs.at[:, step].set(
        jnp.where(ended, 0.0, log_prob)
      ),
      num_tokens=decoded.num_tokens + ~ended,
    )
    return token, ended | (token == eos_id), decoded

  def unfinished(state):
    step, _, ended, _, _ = state
    return (step < max_decode_len) & ~jnp.all(ended)

  def advance(state):
    step, token, ended, decoded, cache = state
    x, _ = model.apply(variables, token[:, None], method="embed_text")
    logits, cache = model.apply(
      variables | cache, x, method="extend_cache", mutable=["cache"]
    )
    return step + 1, *choose(step, logits, ended, decoded), cache

  (x, input_mask, mask_ar), _ = model.apply(
    variables,
    image,
    text,
    input_mask=mask_input,
    mask_ar=mask_ar,
    method="embed_image_and_text",
  )
  logits, cache = model.apply(
    variables,
    x,
    input_mask,
    mask_ar,
    cache_size=x.shape[1] + max_decode_len - 1,
    method="prefill_cache",
    mutable=["cache"],
  )
  nothing = Decoded(
    tokens=jnp.full((len(text), max_decode_len), pad_id, jnp.int32),
    log_probs=jnp.zeros((len(text), max_decode_len), jnp.float32),
    num_tokens=jnp.zeros(len(text), jnp.int32),
  )
  # The first token comes from the prefill and each later one costs one step, so
  # the state of the last token, which nothing reads, is never computed.
  state = (1, *choose(0, logits, ~rows, nothing), cache)
  _, _, _, decoded, _ = jax.lax.while_loop(unfinished, advance, state)
  return decoded
