"""Ask a model about images or text, show its answers; embeddings of SigLIP."""

import functools
import logging
import numbers
import os
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float32
from PIL import Image

from paligemma import registry
from paligemma.data import (
  chat,
  drawing,
  naflex,
  objects,
  pictures,
  sequence,
  siglip_tokenizer,
  spelling,
  tokenizer,
)
from paligemma.data import image as image_lib
from paligemma.decoding import decode, samplers
from paligemma.evals import embedding, zero_shot
from paligemma.models import mask_codec, siglip
from paligemma.models import paligemma as paligemma_model

_log = logging.getLogger(__name__)

# What stands for one picture; several are a list of them.
Picture = str | os.PathLike | pictures.Picture


def generate(
  model: paligemma_model.Model,
  params: dict[str, Any],
  tok: tokenizer.Tokenizer,
  images: Picture | Sequence[Picture | Sequence[Picture]] | None,
  prompts: str | Sequence[str],
  *,
  max_decode_len: int = 64,
  sampler: str | samplers.AnySampler = "greedy",
  rng: int | jax.Array | None = None,
  batch_size: int = 32,
  preprocessing: str | None = None,
) -> list[str]:
  """Answers one prompt per image; a decoder alone continues its prompts.

  A picture is a path, the contents of a file, a picture of PIL, or an array of
  NumPy or JAX: uint8[H, W, 3], or a floating-point dtype in [0, 1], see
  paligemma.data.pictures. One path is one picture.

  Args:
    model, params: From `load`.
    tok: Tokenizer of the checkpoint.
    images: Pictures, or one alone; uint8[N, H, W, 3] is N of them. In place of
      a picture a list of several, which one prompt is about:
      [["before.png", "after.png"]]. How many may differ from prompt to prompt.
      None for a decoder alone.
    prompts: As many, e.g. "caption en"; or one for all. Leading "<image>" and
      "<bos>" and a trailing line break, which the layout has anyway, are
      removed, with a warning in the log. The answer to one that ends as that of
      a conversation, in "<start_of_turn>model" and a line break, ends before
      "<end_of_turn>".
    preprocessing: Key of image.PREPROCESSING. Default: what the checkpoint says
      (Model.metadata): of most Hugging Face folders "hf", which is what
      transformers' processor does; of a run what it was trained with; else
      "reference".
    max_decode_len: Most tokens of an answer.
    sampler: A sampler of paligemma.samplers, or a string for samplers.make:
      "greedy", "nucleus(p=0.9)", "beam(beam_size=4)", "best_of(n=8)".
    rng: JAX key, or the seed of one, for samplers that draw.
    batch_size: Prompts decoded at a time.

  Returns:
    The answers, in the order of the prompts.

  Raises:
    ValueError: A picture cannot be read, the numbers of pictures and prompts
      differ, or a prompt spells out a control token elsewhere or a malformed
      location, see paligemma.data.spelling, holds half a surrogate pair, or
      a token beyond the decoder's table of embeddings.
  """
  if isinstance(model, siglip.Model):
    raise ValueError(
      "the model is a SigLIP, which compares and does not answer, expected a "
      "PaliGemma or a Gemma"
    )
  if model.img is not None:
    images, layout = _list(images), sequence.prompt
  elif images is None:
    images = [[]] * (1 if isinstance(prompts, str) else len(prompts))
    layout = functools.partial(sequence.prompt, causal=True)
  else:
    raise ValueError(
      f"{len(_list(images))} images for a decoder without image tower, "
      "expected None"
    )
  if isinstance(prompts, str):
    prompts = [prompts] * len(images)
  if len(images) != len(prompts):
    raise ValueError(
      f"{len(images)} images but {len(prompts)} prompts; give one prompt per "
      "image, or a single one for all"
    )
  if not isinstance(batch_size, numbers.Integral) or batch_size < 1:
    raise ValueError(f"batch_size is {batch_size}, expected 1 or more")
  prompts, text_len = _read_prompts(
    tok, prompts, images, rows=model.llm.vocab_size
  )
  if isinstance(rng, numbers.Integral):
    rng = jax.random.key(int(rng))
  elif not isinstance(rng, jax.Array | None):
    raise ValueError(f"rng is {rng!r:.60}, expected a JAX key or a seed")
  if preprocessing is None:
    preprocessing = model.metadata.get("preprocessing", "reference")
  eos_id = chat.end_of_answers(tok, prompts)
  answers = [""] * len(prompts)
  for chosen, filling in _batches(images, batch_size):
    examples = []
    for i in chosen:
      prompt = prompts[i]
      image = _image(model, params, images[i], f"images[{i}]", preprocessing)
      examples.append({**image, **layout(tok, prompt, text_len)})
    examples += [examples[0]] * filling
    batch = {key: np.stack([x[key] for x in examples]) for key in examples[0]}
    batch["_mask"] = np.arange(len(examples)) < len(chosen)
    decoded = decode.generate(
      model,
      params,
      batch,
      max_decode_len=max_decode_len,
      sampler=sampler,
      rng=None if rng is None else jax.random.fold_in(rng, chosen[0]),
      eos_id=eos_id,
      pad_id=tok.pad_id,
    )
    tokens, counts = np.asarray(decoded.tokens), np.asarray(decoded.num_tokens)
    for row, i in enumerate(chosen):
      ids = tokens[row, : counts[row]].tolist()
      answers[i] = chat.answer(tok, prompts[i], ids)
  return answers


def embed_images(
  model: siglip.Model,
  params: dict[str, Any],
  images: Picture | Sequence[Picture],
  *,
  batch_size: int = 32,
  preprocessing: str | None = None,
) -> Float32[np.ndarray, "N E"]:
  """Embeds pictures with the image tower of a SigLIP.

  Args:
    model, params: From `load`, on one device or sharded over a mesh.
    images: Any number of pictures as of `generate`. NaFlex keeps their aspect
      ratio, others are resized to the square of the checkpoint.
    batch_size: Pictures at a time.
    preprocessing: As of `generate`.

  Returns:
    Embeddings of L2 norm 1.

  Raises:
    ValueError: A picture cannot be read, or the model is no SigLIP.
  """
  _check_siglip(model)
  if preprocessing is None:
    preprocessing = model.metadata.get("preprocessing", "reference")
  to_model = registry.lookup(
    image_lib.PREPROCESSING, preprocessing, "preprocessing"
  )
  images = _elements(images)

  def example(i):
    pixels = _pixels(images[i], f"images[{i}]")
    if siglip.is_naflex(model):
      patch, most = model.img.patch_size, model.img.grid**2
      rows, columns = naflex.grid(pixels.shape[:2], patch, most)
      image = to_model(pixels, (rows * patch, columns * patch))
      return naflex.patchify(image, patch, most), None
    side = siglip.resolution(model, params)
    return to_model(pixels, (side, side)), None

  return embedding.in_batches(
    model, params, example, count=len(images), batch_size=batch_size
  )


def embed_texts(
  model: siglip.Model,
  params: dict[str, Any],
  tok: siglip_tokenizer.SiglipTokenizer,
  texts: str | Sequence[str],
  *,
  batch_size: int = 256,
) -> Float32[np.ndarray, "N E"]:
  """Embeds texts with the text tower of a SigLIP.

  Args:
    model, params: From `load`, on one device or sharded over a mesh.
    tok: Tokenizer of the checkpoint.
    texts: Any number of texts, or one alone. They are canonicalized as the
      tokenizer says, and cut where they are longer than the tower, with a
      warning in the log.
    batch_size: Texts at a time.

  Returns:
    Embeddings of L2 norm 1.

  Raises:
    ValueError: The tokenizer is of another model, something is no text, or the
      model is no SigLIP.
  """
  texts = [texts] if isinstance(texts, str) else list(texts)
  for i, text in enumerate(texts):
    if not isinstance(text, str):
      raise ValueError(f"texts[{i}] is {type(text).__name__}, expected a text")
  _check_siglip(model, tok)
  texts = [tok.canonicalize(x) for x in texts]
  return embedding.embed_texts(model, params, tok, texts, batch_size=batch_size)


def classify(
  model: siglip.Model,
  params: dict[str, Any],
  tok: siglip_tokenizer.SiglipTokenizer,
  images: Picture | Sequence[Picture],
  class_names: Sequence[str],
  *,
  templates: str | Sequence[str] = "a photo of a {}",
  batch_size: int = 32,
  preprocessing: str | None = None,
) -> Float32[np.ndarray, "N C"]:
  """Returns the probability of every class for every picture, without training.

  A class is the mean of the embeddings of its name in all templates,
  normalized. The probability is the sigmoid of the logit, so classes do not
  exclude each other; of a model without bias the softmax over the classes.

  Args:
    model, params, tok, images, batch_size, preprocessing: As of `embed_images`
      and `embed_texts`.
    class_names: "_" is read as a space, commas stay.
    templates: Texts with "{}" for the name, or the name of a set of them in
      class_texts.TEMPLATES: "short", "long".

  Raises:
    ValueError: As `embed_images` and `embed_texts`; there is no class, two of
      them are equal or one is empty; or a template lacks "{}".
  """
  _check_siglip(model, tok)
  classes = zero_shot.embed_classes(model, params, tok, class_names, templates)
  zimg = embed_images(
    model, params, images, batch_size=batch_size, preprocessing=preprocessing
  )
  return np.exp(zero_shot.log_probabilities(params, zimg @ classes.T))


def parse(
  answer: str,
  size: image_lib.Size,
  *,
  codec: mask_codec.Params | None = None,
  scores: Sequence[float] | None = None,
) -> list[objects.Object]:
  """Reads the objects in an answer to "detect cat ; dog" or "segment cat".

      [{"box": (y0, x0, y1, x1), "label": "cat", "mask": bool[H, W]}, ...]

  Text without boxes, and malformed boxes, are left out.

  Args:
    answer: As `generate` returns it.
    size: (height, width) of the image in pixels, in which boxes are returned.
    codec: As `load_mask_codec` returns it. Default: objects have no "mask".
    scores: One per box, as "confidences" in a file of predictions. Default:
      objects have no "score".

  Raises:
    ValueError: The numbers of boxes and scores differ, or the size is not above
      0.
  """
  return objects.parse(answer, size, decode=_decoder(codec), scores=scores)


def draw(
  image: Picture,
  answer: str | Sequence[objects.Object],
  *,
  codec: mask_codec.Params | None = None,
  scores: Sequence[float] | None = None,
) -> Image.Image:
  """Draws the boxes, masks and labels of an answer into a picture.

  An answer without boxes is written below the picture. A picture whose longer
  side has less than 480 pixels is enlarged by a whole number.

  Args:
    image: A picture as of `generate`.
    answer: As `generate` returns it; or objects of `parse`.
    codec, scores: As of `parse`, for an answer that is a text.

  Returns:
    A picture of PIL, RGB; `.save("out.png")` writes it.

  Raises:
    ValueError: The picture cannot be read; or as `parse`.
  """
  pixels = _pixels(image, "image")
  text = ""
  if isinstance(answer, str):
    size = pixels.shape[:2]
    found = parse(answer, size, codec=codec, scores=scores)
    text = "" if found else answer
  else:
    found = answer
  return drawing.draw(Image.fromarray(pixels), found, text)


def _check_siglip(model, tok=None):
  if not isinstance(model, siglip.Model):
    raise ValueError(
      "the model has no text tower to compare images with, expected a SigLIP, "
      'such as paligemma.load("siglip2_b16_224")'
    )
  if tok is None:
    return
  if not isinstance(tok, siglip_tokenizer.SiglipTokenizer):
    raise ValueError(
      f"tok is a {type(tok).__name__}, expected a paligemma.SiglipTokenizer of "
      "the same file"
    )
  siglip_tokenizer.check_size(tok, model.txt.vocab_size)


def _decoder(codec):
  return None if codec is None else functools.partial(mask_codec.decode, codec)


def _read_prompts(tok, prompts, images, *, rows):
  """The prompts as the layout takes them, see spelling, and its length."""
  read, first, text_len = [], {}, 1
  for i, (prompt, pictures_of_it) in enumerate(
    zip(prompts, images, strict=True)
  ):
    if not isinstance(prompt, str):
      raise ValueError(
        f"prompts[{i}] is {type(prompt).__name__}, expected a text"
      )
    try:
      text, removed = spelling.read_prompt(prompt, len(pictures_of_it))
      ids = tok.encode(text, bos=True)
      sequence.check_rows(ids, rows)
      text_len = max(text_len, len(ids) + 1)
    except ValueError as error:
      raise ValueError(f"prompts[{i}]: {error}") from None
    read.append(text)
    for what in removed:
      first.setdefault(what, i)
  for what, i in first.items():
    _log.warning("prompts[%d], and perhaps others: %s taken off", i, what)
  return read, text_len


def _list(images):
  """The pictures of each prompt, a list of lists."""
  if images is None:
    raise ValueError(
      "images is None, but the model has an image tower: give a picture for "
      "each prompt"
    )
  found = [_elements(several) for several in _elements(images)]
  for i, several in enumerate(found):
    if not several:
      raise ValueError(f"images[{i}] is an empty list, expected a picture")
  return found


def _elements(images):
  """A list of the elements of what is a list; [images] of anything else."""
  if isinstance(images, str | os.PathLike | bytes | bytearray | memoryview):
    return [images]
  if pictures.is_array(images):
    # [H, W] and [H, W, C] are one picture; paths in an array have one axis.
    return [images] if images.ndim in (0, 2, 3) else list(images)
  return list(images) if isinstance(images, Sequence) else [images]


def _batches(images, batch_size):
  """Yields indices of prompts with equally many pictures, and the padding.

  Batches with the same number of pictures have one shape, compiled once.
  """
  alike = {}
  for i, several in enumerate(images):
    alike.setdefault(len(several), []).append(i)
  for group in alike.values():
    size = min(batch_size, len(group))
    for start in range(0, len(group), size):
      chosen = group[start : start + size]
      yield chosen, size - len(chosen)


def _image(model, params, images, where, preprocessing):
  """The image of a prompt; none for a decoder alone."""
  if model.img is None:
    return {}
  res = paligemma_model.resolution(model, params)
  to_model = registry.lookup(
    image_lib.PREPROCESSING, preprocessing, "preprocessing"
  )
  frames = []
  for k, picture in enumerate(images):
    name = where if len(images) == 1 else f"{where}[{k}]"
    frames.append(to_model(_pixels(picture, name), (res, res)))
  return {"image": frames[0] if len(frames) == 1 else np.stack(frames)}


def _pixels(picture, where):
  if isinstance(picture, str | os.PathLike):
    picture, where = pictures.read(picture), os.fspath(picture)
  return pictures.pixels(picture, where=where)
