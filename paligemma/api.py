"""Load a checkpoint and ask it about images, in three calls."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from paligemma import decode, tree
from paligemma.checkpoints import infer, npz, precision
from paligemma.data import image as image_lib
from paligemma.data import sequence
from paligemma.models import paligemma as paligemma_model

# Prompts are padded to a multiple of this, so that few lengths get compiled.
_BUCKET = 32


def load(path, dtype=None):
  """Reads a model: its sizes come from the shapes of its arrays.

  Args:
    path: .npz file with big_vision's names; whatever etils.epath opens.
    dtype: "float32", "bfloat16" or "float16", for storage (see
      checkpoints/precision.py) and for computing. Default: stored as in the
      file, computed in the dtype of the file's embedding table.

  Returns:
    Tuple of the Model and its parameters {"img": ..., "llm": ...}, on the
    default device.

  Raises:
    ValueError: the file is unreadable or holds no PaliGemma; names the leaves.
  """
  shapes = npz.shapes(path)
  try:
    sizes = infer.sizes(shapes)
  except ValueError as error:
    raise ValueError(f"{path}: {error}") from None
  res = sizes["img"].pop("res")
  expected = _param_shapes(paligemma_model.from_sizes(**sizes), res)
  if differences := tree.compare(expected, shapes):
    raise ValueError(
      f"{path}: does not hold a whole PaliGemma, {len(differences)} leaves "
      f"differ: {'; '.join(differences)}"
    )
  dtypes = precision.storage_dtypes(shapes, dtype) if dtype else {}
  params = {
    name: jnp.asarray(array, dtypes.get(name, array.dtype))
    for name, array in npz.iterate(path)
  }
  compute_dtype = dtype or str(params["llm/embedder/input_embedding"].dtype)
  model = paligemma_model.from_sizes(**sizes, dtype=compute_dtype)
  return model, tree.unflatten(params)


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
):
  """Answers one prompt per image.

  Args:
    model, params: as `load` returns them.
    tok: Tokenizer of the checkpoint.
    images: list of pictures: a path, encoded bytes, or uint8[H, W, 3].
    prompts: list of as many str, e.g. "caption en"; or one str for all.
    max_decode_len: int, most tokens of an answer.
    sampler: "greedy", "temperature", "top_k", "nucleus", or a sampler of
      paligemma.samplers with its settings.
    rng: JAX key, for samplers that draw.
    batch_size: int, pictures decoded at a time.

  Returns:
    list of str.

  Raises:
    ValueError: a picture cannot be read, or the numbers of pictures and
      prompts differ.
  """
  if isinstance(prompts, str):
    prompts = [prompts] * len(images)
  if len(images) != len(prompts):
    raise ValueError(
      f"{len(images)} images but {len(prompts)} prompts; give one prompt per "
      "image, or a single one for all"
    )
  longest = max((len(tok.encode(p, bos=True)) for p in prompts), default=0) + 1
  text_len = math.ceil(longest / _BUCKET) * _BUCKET
  res = _resolution(model, params)
  answers = []
  for start in range(0, len(prompts), batch_size):
    rows = [
      {
        "image": _pixels(picture, res),
        **sequence.prompt(tok, prompt, text_len),
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


def _param_shapes(model, res):
  """name -> shape; without a position embedding res is None."""
  res = res or model.img.patch_size
  image = np.zeros((1, res, res, 3), np.float32)
  text = np.zeros((1, 1), np.int32)
  shapes = jax.eval_shape(model.init, jax.random.key(0), image, text, text)
  return tree.flatten(shapes["params"])


def _resolution(model, params):
  side = math.isqrt(params["img"]["pos_embedding"].shape[1])
  return side * model.img.patch_size


def _pixels(picture, res):
  if isinstance(picture, bytes):
    picture = image_lib.decode(picture)
  elif not isinstance(picture, np.ndarray):
    picture = image_lib.decode(_read(picture), where=str(picture))
  elif picture.dtype != np.uint8 or picture.shape[2:] != (3,):
    raise ValueError(
      f"image array is {picture.dtype}{list(picture.shape)}, expected "
      "uint8[H, W, 3]"
    )
  return image_lib.to_model_range(image_lib.resize(picture, (res, res)))


def _read(path):
  try:
    return epath.Path(path).read_bytes()
  except OSError as error:
    reason = error.strerror or error
    raise ValueError(f"{path}: cannot read image: {reason}") from None
