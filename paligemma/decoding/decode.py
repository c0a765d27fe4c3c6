"""From images and prompts to tokens: one prefill, then a token at a time."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from paligemma.decoding import beam, samplers
from paligemma.decoding.grammar import automaton
from paligemma.models import cpu

# Lengths that prompts are padded to, so that few get compiled.
PROMPT_BUCKETS = (16, 32, 64, 128, 256, 512, 1024)

_TEXT_KEYS = ("text", "mask_ar", "mask_input")


class Decoded(NamedTuple):
  """Decoded rows; everything after a row's eos is filling.

  With eos = 1, pad = 0 and max_decode_len L = 5, a row that ends early, one
  that does not, and a padding row of the batch:

    tokens      7 9 1 0 0     7 9 7 9 7     0 0 0 0 0
    log_probs   x x x 0 0     x x x x x     0 0 0 0 0
    num_tokens  3             5             0

  Where several answers are asked for, they are on an axis behind B.

  Attributes:
    tokens: i32[B, L].
    log_probs: f32[B, L], log-probability of each token under the model's own
      softmax: temperature 1, whole vocabulary, whatever the sampler did and the
      grammar forbade. So a token that the model did not want has a low one.
    num_tokens: i32[B], tokens up to and including eos.
    score: f32[B], what answers to one prompt are ranked by: the sum of
      log_probs, divided by the length penalty of the sampler if it has one,
      see samplers.score; -inf where there is no answer.
  """

  tokens: jax.Array
  log_probs: jax.Array
  num_tokens: jax.Array
  score: jax.Array


def generate(
  model,
  params: Mapping[str, Any],
  batch: Mapping[str, Any],
  *,
  max_decode_len: int,
  sampler: str | samplers.AnySampler = "greedy",
  num_answers: int | None = None,
  rng: jax.Array | None = None,
  grammar: automaton.Grammar | None = None,
  eos_id: int = 1,
  pad_id: int = 0,
  prompt_buckets: Sequence[int] = PROMPT_BUCKETS,
) -> Decoded:
  """Answers every prompt of a batch, up to eos or the length limit.

  Prefill and loop are one program, which stops when every row has ended. It is
  compiled once per model, sampler, length limit and shapes, and prompts are
  padded so that these are few. The cache, which has room for prompt and answer,
  never leaves it. It works on a single device and, unchanged, under a mesh with
  sharded params and batch; the cache is then split like the batch.

  Args:
    model: a Model with embed_image_and_text, prefill_cache, embed_text and
      extend_cache; hashable.
    params: its parameters, {"img": ..., "llm": ...}.
    batch: a batch of prompts, without the answer:
      image: f32[B, H, W, 3] in [-1, 1]; not for a model without image tower.
      image_embedding: f32[B, N, D] in place of image, see `embed_images`.
      image_index: i32[B], optional; which of M images a row is about. Then
        image or image_embedding has M rows, and an image that several prompts
        are about is embedded once. Default: row b is about image b.
      text: i32[B, T], prompt then padding; rows may differ in length.
      mask_ar: i32[B, T], 0 on the prompt (attended to in both directions).
      mask_input: bool[B, T], True on the prompt, False on padding.
      _mask: bool[B], optional; False on rows that only fill up the batch: they
        are not decoded. Default all True.
      Other keys are ignored.
    max_decode_len: most tokens to decode, L, eos included.
    sampler: a sampler or a string for samplers.make: "greedy",
      "nucleus(p=0.9)", "beam(beam_size=4)", "best_of(n=8)".
    num_answers: how many of the answers that Beam or BestOf finds to return,
      best first: all of Decoded gets an axis of that size behind B. Default:
      the best, without that axis.
    rng: key for a stochastic sampler; the n-th token uses fold_in(rng, n).
    grammar: the answers that are allowed, of grammar.make. The sampler then
      chooses among the tokens that these have next, and beams are answers of
      them; none is cut by the length limit. It is an argument of the program:
      another of the same shape compiles nothing. Default: all are allowed.
    eos_id: token that ends a row.
    pad_id: token written after it.
    prompt_buckets: ascending lengths. T is padded to the first that it fits in,
      if any, which changes no answer. () pads nothing, for a caller whose
      batches have one shape anyway.

  Returns:
    Decoded.

  Raises:
    ValueError: a key is missing, the batch is one for training, images and rows
      do not fit together, max_decode_len is below 1, more answers are asked for
      than the sampler finds, a stochastic sampler has no rng, or the grammar is
      one of another tokenizer or has no answer of max_decode_len tokens.
  """
  sampler = samplers.make(sampler)
  if max_decode_len < 1:
    raise ValueError(f"max_decode_len={max_decode_len}, expected at least 1.")
  if sampler.stochastic and rng is None:
    raise ValueError(f"{sampler} draws at random: give generate an rng.")
  found = _answers_per_prompt(sampler)
  if num_answers is not None and not 1 <= num_answers <= found:
    raise ValueError(
      f"num_answers={num_answers}, expected 1 to {found}: what {sampler} finds"
      " for a prompt."
    )
  if grammar is not None:
    automaton.check(grammar, max_decode_len, eos_id)
  images, text = _inputs(model, batch)
  return _generate(
    model,
    params,
    images,
    _pad_prompts(text, prompt_buckets),
    batch.get("_mask", np.ones(len(batch["text"]), bool)),
    rng if sampler.stochastic else None,
    grammar,
    eos_id,
    pad_id,
    max_decode_len=max_decode_len,
    sampler=sampler,
    num_answers=num_answers,
  )


@functools.partial(jax.jit, static_argnames="model")
def embed_images(model, params: Mapping[str, Any], image) -> jax.Array:
  """Runs the image tower alone, for images that are asked about repeatedly.

      seen = decode.embed_images(model, params, image)  # of 2 images
      about = {"image_embedding": seen, "image_index": np.array([0, 0, 0, 1])}
      decode.generate(model, params, prompts | about, max_decode_len=32)

  Args:
    model, params: as in `generate`.
    image: f32[M, H, W, 3] in [-1, 1], or frames f32[M, F, H, W, 3].

  Returns:
    f32[M, N, D], N image tokens of the width D of the decoder.
  """
  embedding, _ = model.apply({"params": params}, image, method="embed_image")
  return embedding


def _answers_per_prompt(sampler):
  match sampler:
    case samplers.Beam():
      return sampler.beam_size
    case samplers.BestOf():
      return sampler.n
  return 1


def _inputs(model, batch):
  """What a batch says about images, and its text."""
  image_keys = [key for key in ("image", "image_embedding") if key in batch]
  missing = [key for key in _TEXT_KEYS if key not in batch]
  if model.img is not None and not image_keys:
    missing.insert(0, "image")
  if missing:
    expected = _TEXT_KEYS if model.img is None else ("image", *_TEXT_KEYS)
    raise ValueError(
      f"The batch to decode has no {', '.join(missing)}, expected"
      f" {', '.join(expected)}; found {', '.join(sorted(batch))}."
    )
  if "mask_loss" in batch:
    raise ValueError(
      "The batch to decode has mask_loss: its text holds the answer, which the"
      " model would read; make it with the evaluation layout (train=False)."
    )
  text = {key: batch[key] for key in _TEXT_KEYS}
  if model.img is None:
    return {}, text
  if len(image_keys) > 1:
    raise ValueError(
      "The batch to decode has image and image_embedding, expected one of them."
    )
  images = {key: batch[key] for key in image_keys}
  number, rows = len(batch[image_keys[0]]), len(batch["text"])
  if "image_index" in batch:
    images["image_index"] = _checked_index(batch["image_index"], number, rows)
  elif number != rows:
    raise ValueError(
      f"The batch to decode has {number} images and {rows} prompts: say in"
      " image_index which image each prompt is about."
    )
  return images, text


def _checked_index(index, number, rows):
  """`index`, whose values are not looked at where it is on a device already."""
  index = index if isinstance(index, jax.Array) else np.asarray(index)
  if index.shape != (rows,):
    raise ValueError(
      f"image_index has shape {index.shape}, expected ({rows},): an image for"
      " each prompt."
    )
  if isinstance(index, np.ndarray) and not set(index) <= set(range(number)):
    raise ValueError(
      f"image_index goes from {index.min()} to {index.max()}, expected 0 to"
      f" {number - 1}: the batch has {number} images."
    )
  return index


def _pad_prompts(text, buckets):
  """Pads the text on the right to the first bucket that it fits in, if any."""
  length = text["text"].shape[1]
  bucket = next((bucket for bucket in buckets if bucket >= length), length)
  if bucket == length:
    return text

  def pad(x, filling):
    numpy = jnp if isinstance(x, jax.Array) else np
    room = [(0, 0), (0, bucket - length)]
    return numpy.pad(x, room, constant_values=filling)

  filling = {"text": 0, "mask_ar": 1, "mask_input": False}
  return {key: pad(x, filling[key]) for key, x in text.items()}


@functools.partial(
  cpu.fast_math_jit,
  static_argnames=("model", "max_decode_len", "sampler", "num_answers"),
)
def _generate(
  model,
  params,
  images,
  text,
  rows,
  rng,
  grammar,
  eos_id,
  pad_id,
  *,
  max_decode_len,
  sampler,
  num_answers,
):
  """The compiled part of generate; rows bool[B] are the rows to decode."""
  variables = {"params": params}

  def prefill(x, input_mask, mask_ar, *, cache_size):
    logits, cache = model.apply(
      variables,
      x,
      input_mask,
      mask_ar,
      cache_size=cache_size,
      method="prefill_cache",
      mutable=["cache"],
    )
    return logits[:, 0].astype(jnp.float32), cache

  def extend(cache, token):
    x, _ = model.apply(variables, token[:, None], method="embed_text")
    logits, cache = model.apply(
      variables | cache, x, method="extend_cache", mutable=["cache"]
    )
    return logits[:, 0].astype(jnp.float32), cache

  # The first token comes from the prefill and each later one costs one step, so
  # the state of the last token, which nothing reads, is never computed.
  prompt = _embed(model, variables, images, text)
  cache_size = prompt[0].shape[1] + max_decode_len - 1
  logits, cache = prefill(*prompt, cache_size=cache_size)

  limits = {
    "grammar": grammar,
    "max_decode_len": max_decode_len,
    "eos_id": eos_id,
    "pad_id": pad_id,
  }
  sample = functools.partial(_sample, extend=extend, rng=rng, **limits)
  number = _answers_per_prompt(sampler)
  if isinstance(sampler, samplers.Beam | samplers.BestOf):
    layout = beam.find_layout(prefill, cache, prompt, cache_size)
    cache = layout.repeat(cache, number)
  match sampler:
    case samplers.Beam():
      answers = beam.search(
        logits,
        cache,
        rows,
        extend=extend,
        reorder=layout.reorder,
        sampler=sampler,
        keep=num_answers or 1,
        **limits,
      )
      decoded = Decoded(*answers)
    case samplers.BestOf():
      logits, rows = (jnp.repeat(x, number, axis=0) for x in (logits, rows))
      drawn = sample(logits, cache, rows, sampler=sampler.sampler)
      decoded = _rank(drawn, sampler)
    case _:
      decoded = sample(logits, cache, rows, sampler=sampler)
      decoded = jax.tree.map(lambda x: x[:, None], decoded)
  if num_answers is None:
    return jax.tree.map(lambda x: x[:, 0], decoded)
  return jax.tree.map(lambda x: x[:, :num_answers], decoded)


def _embed(model, variables, images, text):
  """What Model.embed_image_and_text makes of the inputs."""
  image = images.get("image")
  if "image_embedding" in images or "image_index" in images:
    if image is None:
      image = images["image_embedding"]
    else:
      image, _ = model.apply(variables, image, method="embed_image")
    if "image_index" in images:
      image = jnp.take(image, images["image_index"], axis=0)
    model = model.clone(img=_Embedded())
  prompt, _ = model.apply(
    variables,
    image,
    text["text"],
    input_mask=text["mask_input"],
    mask_ar=text["mask_ar"],
    method="embed_image_and_text",
  )
  return prompt


class _Embedded(nn.Module):
  """The image tower for images that have been through one."""

  def __call__(self, image, train=False):
    return image, {}


def _sample(
  logits,
  cache,
  rows,
  *,
  extend,
  rng,
  sampler,
  grammar,
  max_decode_len,
  eos_id,
  pad_id,
) -> Decoded:
  """One answer per row, by logits f32[B, V] of its first token."""

  def choose(step, logits, ended, place, decoded):
    """Adds the token that logits f32[B, V] give as column `step`."""
    key = None if rng is None else jax.random.fold_in(rng, step)
    left = max_decode_len - step
    allowed = automaton.restrict(grammar, place, logits, left)
    token = jnp.where(ended, pad_id, sampler(allowed, key))
    chosen = jnp.take_along_axis(logits, token[:, None], axis=-1)[:, 0]
    log_prob = chosen - jax.nn.logsumexp(logits, axis=-1)
    log_prob = jnp.where(ended, 0.0, log_prob)
    decoded = Decoded(
      tokens=decoded.tokens.at[:, step].set(token),
      log_probs=decoded.log_probs.at[:, step].set(log_prob),
      num_tokens=decoded.num_tokens + ~ended,
      score=decoded.score + log_prob,
    )
    place = automaton.advance(grammar, place, token)
    return token, ended | (token == eos_id), place, decoded

  def unfinished(state):
    step, _, ended, *_ = state
    return (step < max_decode_len) & ~jnp.all(ended)

  def advance(state):
    step, token, ended, place, decoded, cache = state
    logits, cache = extend(cache, token)
    return step + 1, *choose(step, logits, ended, place, decoded), cache

  shape = (len(logits), max_decode_len)
  nothing = Decoded(
    tokens=jnp.full(shape, pad_id, jnp.int32),
    log_probs=jnp.zeros(shape, jnp.float32),
    num_tokens=jnp.zeros(len(logits), jnp.int32),
    score=jnp.where(rows, 0.0, -jnp.inf),
  )
  place = automaton.begin(grammar, rows.shape)
  state = (1, *choose(0, logits, ~rows, place, nothing), cache)
  *_, decoded, _ = jax.lax.while_loop(unfinished, advance, state)
  return decoded


def _rank(drawn, sampler) -> Decoded:
  """Answers of B * n rows as [B, n, ...], the best first."""
  score = samplers.score(drawn.score, drawn.num_tokens, sampler.length_penalty)
  drawn = jax.tree.map(
    lambda x: x.reshape(-1, sampler.n, *x.shape[1:]),
    drawn._replace(score=score),
  )
  best = jnp.argsort(drawn.score, axis=1, descending=True, stable=True)
  return jax.tree.map(lambda x: beam.take(x, best), drawn)
