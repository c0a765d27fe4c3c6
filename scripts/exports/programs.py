"""What is exported of a model that answers: two functions of fixed shapes.

    prefill(params, inputs)      -> (logits float32[B, V], cache)
    step(params, token, cache)   -> the same

params and cache are dicts of arrays by name, token is int32[B], and inputs are
{"text": int32[B, T], "image": float32[B, H, W, 3]}, where text is [bos] prompt,
then 0. The step is called at most max_decode_len - 1 times.
"""

import dataclasses
import datetime
import functools
import hashlib
import json
import math
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import paligemma
from paligemma import io, registry, tree
from paligemma.checkpoints import model_card
from paligemma.data.tokenizer import Tokenizer
from paligemma.models import paligemma as paligemma_model

# Key of image.PREPROCESSING -> what run.py does; options of jax.image.resize.
_LINEAR = {"method": "linear", "antialias": True}
_ALIASED = _LINEAR | {"antialias": False}
PREPROCESSING = {
  "hf": {"method": "pillow_bicubic"},
  "reference": {"method": "resize", "options": _LINEAR},
  "bilinear": {"method": "resize", "options": _LINEAR},
  "reference_uint8": {"method": "truncated", "options": _LINEAR},
  "aliased": {"method": "resize", "options": _ALIASED},
  "aliased_uint8": {"method": "truncated", "options": _ALIASED},
  "bicubic": {
    "method": "resize",
    "options": {"method": "cubic", "antialias": True},
  },
}


@dataclasses.dataclass(frozen=True)
class Programs:
  """Both functions, and the shapes of what they take.

  Attributes:
    model: For every platform, without kernels.
    tok: Of a SentencePiece file.
    params: By name.
    sizes: batch_size, text_len and max_decode_len.
    inputs, token, cache: Shapes and dtypes.
    image: How a picture is prepared; None of a decoder alone.
  """

  model: paligemma_model.Model
  tok: Tokenizer
  params: Mapping[str, jax.Array]
  sizes: Mapping[str, int]
  inputs: Mapping[str, jax.ShapeDtypeStruct]
  token: jax.ShapeDtypeStruct
  image: Mapping[str, Any] | None
  prefill: Callable
  step: Callable

  @functools.cached_property
  def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
    """Of params."""
    return {
      name: jax.ShapeDtypeStruct(x.shape, x.dtype)
      for name, x in self.params.items()
    }

  @functools.cached_property
  def cache(self) -> dict[str, jax.ShapeDtypeStruct]:
    return jax.eval_shape(self.prefill, self.shapes, self.inputs)[1]


def make(
  model: paligemma_model.Model,
  params: Mapping[str, Any],
  tok: Tokenizer,
  *,
  batch_size: int,
  text_len: int,
  max_decode_len: int,
) -> Programs:
  """Returns the programs of a model without adapters, on one device.

  Args:
    batch_size: B, prompts at a time.
    text_len: T, most tokens of a prompt, with bos and the line break.
    max_decode_len: Most tokens of an answer.

  Raises:
    ValueError: The tokenizer is no SentencePiece file, or the preprocessing is
      unknown.
  """
  if not tok.file_name.endswith(".model"):
    raise ValueError(
      f"the tokenizer is a {tok.file_name}, expected a SentencePiece file, "
      "which programs in other languages can read"
    )
  text = jax.ShapeDtypeStruct((batch_size, text_len), np.int32)
  inputs, image = {"text": text}, None
  if model.img is not None:
    side = paligemma_model.resolution(model, params)
    name = model.metadata.get("preprocessing", "reference")
    how = registry.lookup(PREPROCESSING, name, "preprocessing")
    image = {"side": side, **how}
    pixels = (batch_size, side, side, 3)
    inputs["image"] = jax.ShapeDtypeStruct(pixels, np.float32)
  towers = {
    name: tower.clone(attention="chunked")
    for name, tower in model.towers.items()
  }
  model = model.clone(**towers)
  prefill, step = _functions(model, max_decode_len)
  return Programs(
    model,
    tok,
    {name: jnp.asarray(x) for name, x in tree.flatten(params).items()},
    {
      "batch_size": batch_size,
      "text_len": text_len,
      "max_decode_len": max_decode_len,
    },
    inputs,
    jax.ShapeDtypeStruct((batch_size,), np.int32),
    image,
    prefill,
    step,
  )


def write(
  folder: pathlib.Path,
  programs: Programs,
  about: model_card.About | None,
  *,
  name: str,
  format: str,
  version: int,
  library: str,
  use: str,
  **more: Any,
) -> None:
  """Writes tokenizer, manifest and model card into a folder.

  Args:
    about, name, library, use: As of model_card.documents.
    format, version: Of the folder.
    **more: For the manifest, as JSON values.
  """
  model = programs.model
  programs.tok.save(folder / "tokenizer.model")
  tokenizer = (folder / "tokenizer.model").read_bytes()
  manifest = {
    "format": format,
    "version": version,
    "exported": datetime.date.today().isoformat(),
    "paligemma": paligemma.__version__,
    "jax": jax.__version__,
    **more,
    **programs.sizes,
    "prompt_end": "" if model.img is None else "\n",
    "image": programs.image,
    "inputs": _described(programs.inputs),
    "cache": _described(programs.cache),
    "vocab_size": model.llm.vocab_size,
    "computes_in": io.computes_in(model),
    "tokenizer_sha256": hashlib.sha256(tokenizer).hexdigest(),
    "parameters": {n: str(x.dtype) for n, x in programs.params.items()},
  }
  documents = model_card.documents(
    name,
    io.model_fields(model),
    sum(math.prod(x.shape) for x in programs.params.values()),
    about,
    library=library,
    use=use,
  )
  documents["manifest.json"] = json.dumps(manifest, indent=2) + "\n"
  for file, text in documents.items():
    (folder / file).write_text(text, encoding="utf-8")


def _functions(model, max_decode_len):
  """Returns prefill and step."""

  def apply(variables, *args, **options):
    logits, cache = model.apply(variables, *args, mutable=["cache"], **options)
    return logits[:, 0].astype(jnp.float32), tree.flatten(cache["cache"])

  def prefill(params, inputs):
    variables = {"params": tree.unflatten(params)}
    text, is_causal = inputs["text"], model.img is None
    is_prompt = text != Tokenizer.pad_id
    prompt, _ = model.apply(
      variables,
      inputs.get("image"),
      text,
      input_mask=is_prompt,
      mask_ar=(is_causal | ~is_prompt).astype(jnp.int32),
      method="embed_image_and_text",
    )
    size = prompt[0].shape[1] + max_decode_len - 1
    return apply(variables, *prompt, cache_size=size, method="prefill_cache")

  def step(params, token, cache):
    variables = {"params": tree.unflatten(params)}
    x, _ = model.apply(variables, token[:, None], method="embed_text")
    variables["cache"] = tree.unflatten(cache)
    return apply(variables, x, method="extend_cache")

  return prefill, step


def _described(shapes):
  return {
    name: {"shape": list(x.shape), "dtype": str(x.dtype)}
    for name, x in sorted(shapes.items())
  }
