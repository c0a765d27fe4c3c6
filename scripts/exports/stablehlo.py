"""A model as StableHLO programs of jax.export, with weights beside them.

    prefill.bin          (params, inputs) -> (logits float32[B, V], cache)
    step.bin             (params, token int32[B], cache) -> the same
    weights.safetensors  params, a dict by name
    tokenizer.model      text -> ids
    manifest.json        format, shapes, dtypes, versions, preprocessing
    run.py               pictures and a prompt -> answers

inputs are {"text": int32[B, T], "image": float32[B, H, W, 3]}, where text is
[bos] prompt, then 0. The step is called at most max_decode_len - 1 times.
"""

import datetime
import hashlib
import importlib.util
import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from etils import epath

import paligemma
from paligemma import disk, io, registry, tree
from paligemma.checkpoints import formats, model_card, safetensors
from paligemma.data.tokenizer import Tokenizer
from paligemma.models import paligemma as paligemma_model
from paligemma.models import siglip

FORMAT, VERSION = "paligemma stablehlo", 1
PLATFORMS = ("cpu", "cuda", "tpu")
# What jax.export promises, docs.jax.dev/en/latest/export/export.html.
_PROMISE = (
  "jax and jaxlib released up to 6 months after, or up to 3 weeks before, the "
  "versions named here"
)
_RUNNER = pathlib.Path(__file__).with_name("run.py")

# Key of image.PREPROCESSING -> what run.py does; options of jax.image.resize.
_LINEAR = {"method": "linear", "antialias": True}
_ALIASED = _LINEAR | {"antialias": False}
_PREPROCESSING = {
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
_USE = """\
```bash
pip install jax flatbuffers numpy pillow sentencepiece  # jax[cuda13], jax[tpu]
python run.py "caption en" photo.jpg
```

The programs are StableHLO of fixed shapes, see manifest.json. jax.export keeps
them running with {promise}."""


def check(out: epath.PathLike, ckpt: epath.PathLike, **sizes: int) -> None:
  """Raises a ValueError for what would stop `save`, before weights are read."""
  if importlib.util.find_spec("flatbuffers") is None:
    raise ValueError(
      'jax.export writes with flatbuffers, which is missing: pip install "'
      'paligemma[export]"'
    )
  if epath.Path(out).exists():
    raise ValueError(f"{out}: exists already, expected a new name")
  for name, size in sizes.items():
    if size < 1:
      raise ValueError(f"{name} is {size}, expected at least 1")
  model, _ = io.model_of(formats.open(ckpt))
  if isinstance(model, siglip.Model):
    raise ValueError(
      f"{ckpt}: holds a SigLIP, which compares and does not answer, expected a "
      "PaliGemma or a Gemma"
    )


def save(
  out: epath.PathLike,
  model: paligemma_model.Model,
  params: Mapping[str, Any],
  tok: Tokenizer,
  *,
  batch_size: int,
  text_len: int,
  max_decode_len: int,
  about: model_card.About | None = None,
) -> None:
  """Writes the folder, which appears when it is complete.

  Args:
    out: Folder to make.
    model, params: As io.load returns them, without adapters, on one device.
    tok: Of a SentencePiece file.
    batch_size: B, prompts at a time.
    text_len: T, most tokens of a prompt, with bos and the line break.
    max_decode_len: Most tokens of an answer.
    about: For the model card.

  Raises:
    ValueError: The tokenizer is no SentencePiece file, or the preprocessing is
      unknown.
  """
  if not tok.file_name.endswith(".model"):
    raise ValueError(
      f"{out}: the tokenizer is a {tok.file_name}, expected a SentencePiece "
      "file, which run.py reads"
    )
  sees = model.img is not None
  flat = {n: jnp.asarray(x) for n, x in tree.flatten(params).items()}
  shapes = {n: jax.ShapeDtypeStruct(x.shape, x.dtype) for n, x in flat.items()}
  text = jax.ShapeDtypeStruct((batch_size, text_len), np.int32)
  inputs, image = {"text": text}, None
  if sees:
    side = paligemma_model.resolution(model, params)
    name = model.metadata.get("preprocessing", "reference")
    how = registry.lookup(_PREPROCESSING, name, "preprocessing")
    image = {"side": side, **how}
    pixels = (batch_size, side, side, 3)
    inputs["image"] = jax.ShapeDtypeStruct(pixels, np.float32)
  prefill, step = _programs(model, max_decode_len)
  exported = {"prefill": _export(prefill, shapes, inputs)}
  token = jax.ShapeDtypeStruct((batch_size,), np.int32)
  _, cache = jax.eval_shape(prefill, shapes, inputs)
  exported["step"] = _export(step, shapes, token, cache)
  with disk.folder(out) as folder:
    for name, program in exported.items():
      (folder / f"{name}.bin").write_bytes(program.serialize())
    safetensors.save(folder / "weights.safetensors", flat)
    tok.save(folder / "tokenizer.model")
    manifest = {
      "format": FORMAT,
      "version": VERSION,
      "exported": datetime.date.today().isoformat(),
      "paligemma": paligemma.__version__,
      "jax": {
        "jax": jax.__version__,
        "jaxlib": jax.lib.__version__,
        "calling_convention": exported["step"].calling_convention_version,
        "promise": _PROMISE,
      },
      "platforms": PLATFORMS,
      "batch_size": batch_size,
      "text_len": text_len,
      "max_decode_len": max_decode_len,
      "prompt_end": "\n" if sees else "",
      "image": image,
      "inputs": _described(inputs),
      "cache": _described(cache),
      "vocab_size": model.llm.vocab_size,
      "computes_in": io.computes_in(model),
      "tokenizer_sha256": _sha256(folder / "tokenizer.model"),
      "parameters": {name: str(x.dtype) for name, x in flat.items()},
    }
    text = json.dumps(manifest, indent=2)
    (folder / "manifest.json").write_text(f"{text}\n")
    (folder / "run.py").write_bytes(_RUNNER.read_bytes())
    card = model_card.documents(
      epath.Path(out).name,
      io.model_fields(model),
      sum(math.prod(x.shape) for x in flat.values()),
      about,
      library="jax",
      use=_USE.format(promise=_PROMISE),
    )
    for name, text in card.items():
      (folder / name).write_text(text, encoding="utf-8")


def _programs(model, max_decode_len):
  """Functions of flat parameters, for every platform."""
  # Kernels are of one platform each.
  towers = {
    name: tower.clone(attention="chunked")
    for name, tower in model.towers.items()
  }
  model = model.clone(**towers)

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


def _export(function, *shapes):
  return jax.export.export(jax.jit(function), platforms=PLATFORMS)(*shapes)


def _described(shapes):
  return {
    name: {"shape": list(x.shape), "dtype": str(x.dtype)}
    for name, x in sorted(shapes.items())
  }


def _sha256(path):
  return hashlib.sha256(path.read_bytes()).hexdigest()
