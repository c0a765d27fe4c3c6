"""From images and prompts to tokens: one prefill, then a token at a time."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from paligemma.decoding import beam, next_token, samplers
from paligemma.decoding.decoded import Decoded
from paligemma.decoding.grammar import automaton
from paligemma.models import cpu

# Lengths that prompts are padded to, so that few programs are compiled.
PROMPT_BUCKETS = (16, 32, 64, 128, 256, 512, 1024)

_TEXT_KEYS = ("text", "mask_ar", "mask_input")


def generate(
  model: nn.Module,
  params: Mapping[str, Any],
  batch: Mapping[str, Any],
  *,
  max_decode_len: int,
  sampler: str | Callable | samplers.AnySampler = "greedy",
  num_answers: int | None = None,
  rng: jax.Array | None = None,
  grammar: automaton.Grammar | None = None,
  eos_id: Int[ArrayLike, ""] = 1,
  pad_id: Int[ArrayLike, ""] = 0,
  prompt_buckets: Sequence[int] = PROMPT_BUCKETS,
) -> Decoded:
  """Answers every prompt of a batch, up to eos or the length limit.

  Prefill and decode loop are one program, which stops when all answers have
  ended. It is compiled once per model, sampler, length limit and shapes;
  prompts are padded so that there are few shapes. It runs on a single device
  or, unchanged, under a mesh with sharded params and batch; the KV cache is
  then sharded like the batch.

  Args:
    model: hashable.
    params: {"img": ..., "llm": ...}.
    batch: prompts, without the answer; other keys are ignored:
      image: f32[B, H, W, 3] in [-1, 1]; not for a model without image tower.
      image_embedding: f32[B, N, D] instead of image, see `embed_images`.
      image_index: i32[B], optional; index of each prompt's image. Then there
        are M images or image_embeddings, and an image that several prompts
        share is embedded once. Default: prompt b belongs to image b.
      text: i32[B, T], prompt then padding; prompts may differ in length.
      mask_ar: i32[B, T], 0 on the prompt (bidirectional attention).
      mask_input: bool[B, T], True on the prompt, False on padding.
      _mask: bool[B], optional; False on examples that only fill up the batch,
        which are not decoded. Default: all True.
    max_decode_len: L, most tokens to decode, eos included.
    sampler: see samplers.make: "nucleus(p=0.9)", "beam(beam_size=4)".
    num_answers: how many of the answers that Beam or BestOf finds to return,
      best first, on a second axis of every array. Default: the best one,
      without that axis.
    rng: key for a stochastic sampler; token n of prompt b is drawn from
      fold_in(fold_in(rng, b), n), whatever the other prompts are.
    grammar: the answers that are allowed, see grammar.make. Another one of the
      same shape needs no compilation. Default: all answers.
    eos_id: token that ends an answer.
    pad_id: token written after it.
    prompt_buckets: ascending lengths; T is padded to the first one that is not
      smaller, if any. Answers do not depend on it.

  Raises:
    ValueError: a key is missing, the batch is in the training layout or does
      not fit together, more answers are asked for than the sampler finds, a
      stochastic sampler has no rng, or the grammar allows no answer.
  """
  sampler = samplers.make(sampler)
  if max_decode_len < 1:
    raise ValueError(f"max_decode_len={max_decode_len}, expected at least 1.")
  rng = _rng_for(sampler, rng)
  found = _answers_per_prompt(sampler)
  if num_answers is not None and not 1 <= num_answers <= found:
    raise ValueError(
      f"num_answers={num_answers}, expected 1 to {found}: what {sampler} finds"
      " for a prompt."
    )
  if grammar is not None:
    automaton.check(grammar, max_decode_len, eos_id)
  images, text = _inputs(model, batch)
  return program(
    model,
    params,
    images,
    _pad_prompts(text, prompt_buckets),
    batch.get("_mask", np.ones(len(batch["text"]), bool)),
    rng,
    grammar,
    eos_id,
    pad_id,
    max_decode_len=max_decode_len,
    sampler=sampler,
    num_answers=num_answers,
    unstack=_has_room_to_unstack(params),
  )


def _rng_for(sampler, rng):
  """Returns the key that a sampler needs, None if it draws nothing."""
  if sampler.stochastic and rng is None:
    raise ValueError(f"{sampler} draws at random: give generate an rng.")
  return rng if sampler.stochastic else None


def _has_room_to_unstack(params):
  """Returns whether a copy of the decoder's layers, if stacked, is small.

  That is an eighth of the memory of a device: it then fits beside a training of
  all parameters, too, whose gradients and moments take at least six times as
  much. Layers that are sharded, or belong to several processes, stay stacked.
  """
  layers = params.get("llm", {}).get("layers", {"0": None})
  if "0" in layers:
    return False
  arrays = jax.tree.leaves(layers)
  for x in arrays:
    if not isinstance(x, jax.Array) or isinstance(x, jax.core.Tracer):
      return False
    if not (x.is_fully_replicated and x.is_fully_addressable):
      return False
  return 8 * sum(x.nbytes for x in arrays) <= _memory_of_device(arrays[0])


def _memory_of_device(array):
  stats = min(array.devices(), key=lambda d: d.id).memory_stats()
  return (stats or {}).get("bytes_limit", math.inf)


@functools.partial(jax.jit, static_argnames="model")
def embed_images(
  model: nn.Module,
  params: Mapping[str, Any],
  image: Float[ArrayLike, "M *F H W 3"],
) -> Float[Array, "M N D"]:
  """Runs the image tower alone, for images that are asked about repeatedly.

      seen = decode.embed_images(model, params, image)  # of 2 images
      about = {"image_embedding": seen, "image_index": np.array([0, 0, 0, 1])}
      decode.generate(model, params, prompts | about, max_decode_len=32)

  Images, or videos of F frames, are in [-1, 1]; each becomes N image tokens of
  the width D of the decoder.
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
  """Returns the arrays of a batch that describe images, and those of text."""
  expected = _TEXT_KEYS if model.img is None else ("image", *_TEXT_KEYS)
  image_keys = [key for key in ("image", "image_embedding") if key in batch]
  found = {*batch, "image"} if image_keys else batch
  if missing := [key for key in expected if key not in found]:
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
  num_images, num_prompts = len(batch[image_keys[0]]), len(batch["text"])
  if "image_index" not in batch:
    if num_images != num_prompts:
      raise ValueError(
        f"The batch to decode has {num_images} images and {num_prompts}"
        " prompts: say in image_index which image each prompt is about."
      )
    return images, text
  index = batch["image_index"]
  on_host = not isinstance(index, jax.Array)
  index = np.asarray(index) if on_host else index
  if index.shape != (num_prompts,):
    raise ValueError(
      f"image_index has shape {index.shape}, expected ({num_prompts},): an"
      " image for each prompt."
    )
  if on_host and not set(index) <= set(range(num_images)):
    raise ValueError(
      f"image_index goes from {index.min()} to {index.max()}, expected 0 to"
      f" {num_images - 1}: the batch has {num_images} images."
    )
  return images | {"image_index": index}, text


def _pad_prompts(text, buckets):
  """Pads the text on the right to the first bucket that is not smaller."""
  length = text["text"].shape[1]
  bucket = next((bucket for bucket in buckets if bucket >= length), length)
  if bucket == length:
    return text

  def pad(x, value):
    numpy = jnp if isinstance(x, jax.Array) else np
    width = [(0, 0), (0, bucket - length)]
    return numpy.pad(x, width, constant_values=value)

  values = {"text": 0, "mask_ar": 1, "mask_input": False}
  return {key: pad(x, values[key]) for key, x in text.items()}


@functools.partial(
  cpu.fast_math_jit,
  static_argnames=(
    *("model", "max_decode_len", "sampler", "num_answers", "unstack"),
  ),
)
def program(
  model: nn.Module,
  params: Mapping[str, Any],
  images: Mapping[str, ArrayLike],
  text: Mapping[str, ArrayLike],
  is_real: Bool[ArrayLike, " B"],
  rng: jax.Array | None,
  grammar: automaton.Grammar | None,
  eos_id: Int[ArrayLike, ""],
  pad_id: Int[ArrayLike, ""],
  *,
  max_decode_len: int,
  sampler: samplers.AnySampler,
  num_answers: int | None,
  unstack: bool,
) -> Decoded:
  """The compiled part of `generate`.

  is_real says which prompts to answer, unstack whether to copy the decoder's
  layers out of their stack first.
  """
  if unstack:
    model, params = model.unstack_decoder(params)
  prefill, extend = functions(model, params)
  # The first token comes from the prefill and each later one from a step, so
  # the last token is never fed to the model.
  prompt = embed_prompts(model, params, images, text)
  prompt_len = prompt[0].shape[1]
  cache_size = prompt_len + max_decode_len - 1
  logits, cache = prefill(*prompt, cache_size=cache_size)

  limits = {
    "grammar": grammar,
    "max_len": max_decode_len,
    "eos_id": eos_id,
    "pad_id": pad_id,
  }
  sample = functools.partial(_sample, extend=extend, rng=rng, **limits)
  number = _answers_per_prompt(sampler)
  if isinstance(sampler, samplers.Beam | samplers.BestOf):
    axes = beam.find_axes(prefill, cache, prompt, cache_size)
    cache = beam.repeat(cache, axes, number)
  match sampler:
    case samplers.Beam():
      decoded = beam.search(
        logits,
        cache,
        is_real,
        extend=extend,
        reorder=functools.partial(beam.reorder, axes, prompt_len),
        sampler=sampler,
        keep=num_answers or 1,
        **limits,
      )
    case samplers.BestOf():
      logits, is_real = (jnp.repeat(x, number, 0) for x in (logits, is_real))
      drawn = sample(logits, cache, is_real, sampler=sampler.sampler)
      decoded = _rank(drawn, sampler)
    case _:
      decoded = sample(logits, cache, is_real, sampler=sampler)
      decoded = jax.tree.map(lambda x: x[:, None], decoded)
  kept = 0 if num_answers is None else slice(num_answers)
  return jax.tree.map(lambda x: x[:, kept], decoded)


def functions(
  model: nn.Module, params: Mapping[str, Any]
) -> tuple[Callable, Callable]:
  """Returns prefill and extend, each to logits f32[B, V] and a cache.

  The first takes what embed_prompts returns and the cache_size of
  gemma.Model.prefill_cache, the other a cache and the last tokens i32[B].
  """
  variables = {"params": params}

  def apply(variables, *args, **options):
    logits, cache = model.apply(variables, *args, mutable=["cache"], **options)
    return logits[:, 0].astype(jnp.float32), cache

  def extend(cache, token):
    x, _ = model.apply(variables, token[:, None], method="embed_text")
    return apply(variables | cache, x, method="extend_cache")

  return functools.partial(apply, variables, method="prefill_cache"), extend


def embed_prompts(
  model: nn.Module,
  params: Mapping[str, Any],
  images: Mapping[str, ArrayLike],
  text: Mapping[str, ArrayLike],
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Returns prompts as embeddings and masks; each image is embedded once.

  `images` and `text` are keys of the batch of `generate`.
  """
  variables = {"params": params}
  image = images.get("image", images.get("image_embedding"))
  if images.keys() - {"image"}:
    if "image" in images:
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
  """Replaces the image tower for images that are embedded already."""

  def __call__(self, image, train=False):
    return image, {}


def _sample(
  logits, cache, is_real, extend, rng, sampler, grammar, max_len, eos_id, pad_id
) -> Decoded:
  """Samples one answer per prompt from logits f32[B, V] of the first token."""
  append = functools.partial(
    next_token.append,
    sampler=sampler,
    grammar=grammar,
    max_len=max_len,
    eos_id=eos_id,
    pad_id=pad_id,
  )

  def unfinished(state):
    step, growing, _ = state  # the number of steps bounds the loop, for plans
    return (step < max_len) & ~jnp.all(growing.ended)

  def advance(state):
    step, growing, cache = state
    logits, cache = extend(cache, growing.token)
    return step + 1, append(growing, logits), cache

  growing = next_token.begin(
    is_real, rng, grammar, max_len=max_len, pad_id=pad_id
  )
  state = 1, append(growing, logits), cache
  _, growing, _ = jax.lax.while_loop(unfinished, advance, state)
  return growing.decoded


def _rank(drawn, sampler) -> Decoded:
  """Reshapes answers from [B * n, ...] to [B, n, ...], the best first."""
  score = samplers.score(drawn.score, drawn.num_tokens, sampler.length_penalty)
  drawn = jax.tree.map(
    lambda x: x.reshape(-1, sampler.n, *x.shape[1:]),
    drawn._replace(score=score),
  )
  best = jnp.argsort(drawn.score, axis=1, descending=True, stable=True)
  return jax.tree.map(lambda x: beam.take(x, best), drawn)
