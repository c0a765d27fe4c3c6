"""Ask a model about images, or a decoder alone about text."""

import math

import jax
import numpy as np
from etils import epath

from paligemma import decode, tree
from paligemma.data import image as image_lib
from paligemma.data import sequence


def generate(
  model,
  params,
  tok,
  images,
  prompts,
  *,
  max_decode_len=64,
  sampler="greedy",
  rng=None,
  batch_size=32,
  preprocessing=None,
):
  """Answers one prompt per image; a decoder alone continues its prompts.

  Args:
    model, params: as `load` returns them.
    tok: Tokenizer of the checkpoint.
    images: list of pictures: a path, encoded bytes, or uint8[H, W, 3]. None
      for a decoder alone.
    prompts: list of as many str, e.g. "caption en"; or one str for all.
    preprocessing: key of image.PREPROCESSING. Default: what the checkpoint says
      (Model.metadata): of most Hugging Face folders "hf", which is what
      transformers' processor does; of a run what it was trained with; else
      "reference".
    max_decode_len: int, most tokens of an answer.
    sampler: a sampler of paligemma.samplers, or a string for samplers.make:
      "greedy", "nucleus(p=0.9)", "beam(beam_size=4)", "best_of(n=8)".
    rng: JAX key, for samplers that draw.
    batch_size: int, pictures decoded at a time.

  Returns:
    list of str.

  Raises:
    ValueError: a picture cannot be read, or the numbers of pictures and
      prompts differ.
  """
  if model.img is None:
    images = _no_images(images, prompts)
    layout = sequence.text_prompt
  else:
    layout = sequence.prompt
  if isinstance(prompts, str):
    prompts = [prompts] * len(images)
  if len(images) != len(prompts):
    raise ValueError(
      f"{len(images)} images but {len(prompts)} prompts; give one prompt per "
      "image, or a single one for all"
    )
  lengths = (len(tok.encode(prompt, bos=True)) for prompt in prompts)
  text_len = max(lengths, default=0) + 1
  if preprocessing is None:
    preprocessing = model.metadata.get("preprocessing", "reference")
  answers = []
  for start in range(0, len(prompts), batch_size):
    rows = [
      {
        **_image(model, params, picture, preprocessing),
        **layout(tok, prompt, text_len),
      }
      for picture, prompt in zip(
        images[start : start + batch_size],
        prompts[start : start + batch_size],
        strict=True,
      )
    ]
    filling = min(batch_size, len(prompts)) - len(rows)
    rows += [rows[0]] * filling  # one shape for all, compiled once
    batch = {key: np.stack([row[key] for row in rows]) for key in rows[0]}
    batch["_mask"] = np.arange(len(rows)) < len(rows) - filling
    decoded = decode.generate(
      model,
      params,
      batch,
      max_decode_len=max_decode_len,
      sampler=sampler,
      rng=None if rng is None else jax.random.fold_in(rng, start),
      eos_id=tok.eos_id,
      pad_id=tok.pad_id,
    )
    answers += [
      tok.decode(ids[:n].tolist())
      for ids, n in zip(
        np.asarray(decoded.tokens), np.asarray(decoded.num_tokens), strict=True
      )
    ]
  return answers[: len(prompts)]


def _no_images(images, prompts):
  if images is not None:
    raise ValueError(
      f"{len(images)} images for a decoder without image tower, expected None"
    )
  return [None] * (1 if isinstance(prompts, str) else len(prompts))


def _image(model, params, picture, preprocessing):
  """The image of a row; none for a decoder alone."""
  if model.img is None:
    return {}
  side = math.isqrt(params["img"]["pos_embedding"].shape[1])
  res = side * model.img.patch_size
  to_model = tree.lookup(
    image_lib.PREPROCESSING, preprocessing, "preprocessing"
  )
  return {"image": to_model(_pixels(picture), (res, res))}


def _pixels(picture):
  if isinstance(picture, bytes):
    return image_lib.decode(picture)
  if not isinstance(picture, np.ndarray):
    return image_lib.decode(_read(picture), where=str(picture))
  if picture.dtype != np.uint8 or picture.shape[2:] != (3,):
    raise ValueError(
      f"image array is {picture.dtype}{list(picture.shape)}, expected "
      "uint8[H, W, 3]"
    )
  return picture


def _read(path):
  try:
    return epath.Path(path).read_bytes()
  except OSError as error:
    reason = error.strerror or error
    raise ValueError(f"{path}: cannot read image: {reason}") from None
