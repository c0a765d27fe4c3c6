"""Models from checkpoints of any format, and back into them."""

from collections.abc import Callable, Mapping
from typing import Any

import flax
import jax
import jax.numpy as jnp
from absl import logging
from etils import epath

from paligemma import init, quantization, registry, tree, variants
from paligemma.checkpoints import (
  errors,
  fit,
  formats,
  infer,
  model_card,
  npz,
  presets,
  quantized_leaves,
)
from paligemma.checkpoints.checkpoint import Checkpoint
from paligemma.checkpoints.huggingface import bitsandbytes
from paligemma.checkpoints.huggingface import write as huggingface_write
from paligemma.checkpoints.orbax import folder as orbax
from paligemma.lora import apply as lora
from paligemma.models import gemma, mask_codec, siglip
from paligemma.models import paligemma as paligemma_model
from paligemma.parameters import (
  EMBEDDING,
  FINAL_NORM,
  LOGIT_BIAS,
  TEXT_EMBEDDING,
  TEXT_NORM,
)
from paligemma.training import sharding

Model = paligemma_model.Model | siglip.Model

# How a model runs, not what it is.
_OF_THE_RUN = {
  *("attention", "lora", "dtype", "remat_policy", "dropout"),
  *("parent", "name"),
}


def load(
  path: epath.PathLike | Mapping[str, epath.PathLike],
  dtype: str | None = None,
  *,
  quantize: str | None = None,
  res: int | None = None,
  img: Mapping[str, Any] | None = None,
  llm: Mapping[str, Any] | None = None,
  txt: Mapping[str, Any] | None = None,
  mesh: jax.sharding.Mesh | None = None,
  load_weights: bool = True,
  seed: int = 0,
  directory: epath.PathLike | None = None,
  progress: Callable[[int, int], None] | None = None,
) -> tuple[Model, dict[str, Any]]:
  """Reads a PaliGemma, a Gemma or a SigLIP from a checkpoint of any format.

  Tensor by tensor: beside the parameters themselves there is never more than
  one of them in host memory, and of a file that can be mapped only a block.

  Args:
    path: What formats.open takes: an .npz with big_vision's names, a folder of
      Hugging Face, Orbax, a training run, Gemma or keras-hub; the name of a
      preset such as "paligemma2_3b_pt_224"; or {"img": path, "llm": path} for
      two towers that were never trained together.
    dtype: "float32", "bfloat16" or "float16", for storage (see
      parameters.stays_float32) and for computing. Default: stored as in the
      file, computed in what the file says, else in the dtype of its embedding
      table, or of the norm before it where the table is quantized.
    quantize: "int8", "int4" or "nf4" rounds the matrices to so few bits while
      they are read, see quantization.py; `dtype` is then that of all the rest,
      and of computing. Default: as in the file, which may be quantized.
    res: Side of the images in pixels; the position embedding is resampled to
      it. Default: that of the checkpoint.
    img: Fields of vit.Model, or of naflex.Model, to override.
    llm: Fields of gemma.Model to override. What shapes cannot tell comes from
      here, else from the files (the config of a Hugging Face folder gives
      PaliGemma 2 a sliding window of 4096), else from the variant of those
      sizes (the reference trained PaliGemma 2 without window). What was chosen
      is logged at INFO and is in the model that is returned.
    txt: Fields of text_tower.Model to override, of a SigLIP.
    mesh: From sharding.make_mesh, to split the parameters over (FSDP).
      Default: all on the default device.
    load_weights: False draws random weights; a preset then needs no file.
    seed: Of what is drawn.
    directory: Where presets are looked for, see presets.find.
    progress: Called with the number of bytes read so far, as they are stored,
      and that of all. Default: nothing.

  Returns:
    The Model and its parameters {"img": ..., "llm": ...}; a decoder alone has
    `img` None and no "img". Of a SigLIP the parameters are {"img": ..., "txt":
    ..., "t": ..., "b": ...}. Model.metadata keeps what the files say beside the
    towers, such as how images are prepared.

  Raises:
    ValueError: The checkpoint is unreadable, of an unknown format, holds other
      leaves than the model, or is quantized in another way than asked for; one
      line that names file and leaves.
  """
  if quantize is not None:
    quantization.check_kind(quantize)
  if not load_weights and presets.is_name(path):
    preset = presets.get(path)
    if preset.variant in variants.SIGLIP:
      model = siglip.make(preset.variant, img=img, txt=txt)
    elif preset.res is None:
      decoder = gemma.make(preset.variant, **(llm or {}))
      model = paligemma_model.Model(img=None, llm=decoder)
    else:
      model = paligemma_model.make(preset.variant, img=img, llm=llm)
    found = init.shapes(model, res := res or preset.res)
    stored = quantized_leaves.storage_dtypes(found, dtype or "float32")
    stated = "float32"
    arrays = quantized_leaves.storage(found, stored, quantize)
  else:
    checkpoint = formats.open(path, directory=directory)
    model, res = model_of(checkpoint, res=res, img=img, llm=llm, txt=txt)
    with errors.named(checkpoint.path):
      found = fit.fit(checkpoint, init.shapes(model, res))
    stored = {name: leaf.dtype for name, leaf in found.items()}
    stated = checkpoint.compute_dtype
    table, norm = EMBEDDING, FINAL_NORM
    if TEXT_EMBEDDING in found:
      table, norm = TEXT_EMBEDDING, TEXT_NORM
    if isinstance(found[table], quantized_leaves.Pair):
      stored[table] = stored[norm]
    stated = stated or str(stored[table])
    if dtype is not None:
      stored = quantized_leaves.storage_dtypes(found, dtype)
    with errors.named(checkpoint.path):
      arrays = quantized_leaves.storage(found, stored, quantize)
    logging.info("%s", checkpoint.describe())
  model = _compute_in(model, dtype or stated)
  logging.info("%s", model)
  arrays = _with_sharding(arrays, mesh)
  if load_weights:
    with errors.named(checkpoint.path):
      params = quantized_leaves.place_all(found, arrays, progress=progress)
  else:
    params = init.random_params(model, res, arrays, seed=seed)
  return model, tree.unflatten(params)


def save(
  path: epath.PathLike,
  model: Model,
  params: Mapping[str, Any],
  *,
  format: str | None = None,
  dtype: str | None = None,
  tokenizer: Any = None,
) -> None:
  """Writes a model for other programs, or for `load`.

  Args:
    path: File or folder to write; it appears when it is complete.
    model: Without adapters: see merge_lora and save_adapter.
    params: Its parameters, sharded in any way; over several processes for
      "orbax" alone.
    format: Key of WRITERS: "npz" (big_vision), "huggingface" (transformers,
      vLLM; of a decoder alone also llama.cpp) or "orbax". Default: npz where
      the path ends in .npz. A Hugging Face folder holds the values of matrices
      that are quantized in full precision: the same answers, more bytes.
    dtype: Every parameter is cast to it but those that are quantized. Default:
      as they are.
    tokenizer: Tokenizer or path of a SentencePiece file, for the tokenizer
      files of a Hugging Face folder. Default: none are written.

  Raises:
    ValueError: Unknown format, or one that cannot hold this model, such as one
      with adapters.
  """
  write(
    path,
    tree.flatten(params),
    model_fields(model),
    format=format,
    dtype=dtype,
    tokenizer=tokenizer,
    compute_dtype=str(jnp.dtype(dtype or computes_in(model))),
  )


def load_mask_codec(path: epath.PathLike) -> mask_codec.Params:
  """Reads the codec of segmentation masks, for models/mask_codec.py.

  Args:
    path: The published "vae-oid.npz", or one with its names.

  Raises:
    ValueError: Unreadable, or other names or shapes in it.
  """
  return mask_codec.from_arrays(npz.load(path), path)


def model_of(
  checkpoint: Checkpoint,
  *,
  res: int | None = None,
  img: Mapping[str, Any] | None = None,
  llm: Mapping[str, Any] | None = None,
  txt: Mapping[str, Any] | None = None,
) -> tuple[Model, int | None]:
  """The model of a checkpoint that was opened.

  Args:
    checkpoint: From formats.open.
    res, img, llm, txt: As in `load`.

  Returns:
    The Model, in float32, and the side of its images in pixels.

  Raises:
    ValueError: The leaves do not tell the sizes, or a field is unknown.
  """
  with errors.named(checkpoint.path):
    sizes = infer.sizes(checkpoint.leaves)
    if "txt" in sizes:
      return _siglip_of(checkpoint, sizes, res=res, img=img, llm=llm, txt=txt)
    if txt:
      raise ValueError(f"has no text tower to give {sorted(txt)}")
    if "llm" not in sizes:
      raise ValueError(
        'holds no decoder; combine it with one: {"img": path, "llm": path}'
      )
    llm = {**sizes["llm"], **checkpoint.llm, **(llm or {})}
    if "img" in sizes:
      res = sizes["img"].pop("res") if res is None else res
      sizes["img"].pop("res", None)
      img = {**sizes["img"], **checkpoint.img, **(img or {})}
    elif img:
      raise ValueError(f"has no image tower to give {sorted(img)}")
    model = paligemma_model.from_sizes(img or None, llm)
    llm = model.llm
    if llm.num_heads % llm.num_kv_heads:
      raise ValueError(
        f"{llm.num_heads} heads share {llm.num_kv_heads} key/value heads, "
        "expected a divisor"
      )
    if llm.head_dim % 2:
      raise ValueError(
        f"head dim {llm.head_dim}, expected an even one for RoPE"
      )
  return model.clone(metadata=checkpoint.metadata), res


def _siglip_of(checkpoint, sizes, *, res, img, llm, txt):
  """`model_of` for a SigLIP, of the sizes that its leaves tell."""
  if "img" not in sizes:
    raise ValueError(
      'holds the text tower of a SigLIP alone, nothing under "img/"; give the '
      "checkpoint of both towers"
    )
  if llm:
    raise ValueError(
      f"holds a SigLIP, which has no decoder to give {sorted(llm)}"
    )
  found = sizes["img"].pop("res", None)
  if res is not None and "grid" in sizes["img"]:
    raise ValueError(
      f"is a NaFlex, whose images have any size, but res is {res}"
    )
  model = siglip.from_sizes(
    {**sizes["img"], **checkpoint.img, **(img or {})},
    {**sizes["txt"], **checkpoint.txt, **(txt or {})},
    has_bias=LOGIT_BIAS in checkpoint.leaves,
  )
  return model.clone(metadata=checkpoint.metadata), res or found


def model_fields(model: Model) -> dict[str, Any]:
  """What a model is: fields of its towers (None: no such tower), metadata."""

  def fields(tower):
    names = set(type(tower).__annotations__) - _OF_THE_RUN
    return {name: getattr(tower, name) for name in sorted(names)}

  return {
    "img": None,
    **{name: fields(tower) for name, tower in model.towers.items()},
    "metadata": flax.core.unfreeze(model.metadata),
  }


def write(
  path: epath.PathLike,
  arrays: Mapping[str, Any],
  fields: Mapping[str, Any],
  *,
  format: str | None = None,
  dtype: str | None = None,
  quantize: str | None = None,
  tokenizer: Any = None,
  compute_dtype: str | None = None,
  about: model_card.About | None = None,
) -> None:
  """Writes arrays or leaves, one at a time.

  Args:
    path, format, dtype, tokenizer: As in `save`.
    arrays: Name -> array, Leaf or Pair.
    fields: From `model_fields`.
    quantize: As in `load`, of leaves; of a Hugging Face folder "nf4" alone.
    compute_dtype: What the model computes in, where the format can say it.
      Default: what `load` infers from the arrays.
    about: How the model came to be, for the card of a Hugging Face folder.

  Raises:
    ValueError: See `save`.
  """
  if format is None:
    if epath.Path(path).suffix != ".npz":
      raise ValueError(
        f"{path}: cannot tell the format from the name, expected format=one "
        f"of: {', '.join(sorted(WRITERS))}, or a name that ends in .npz"
      )
    format = "npz"
  writer = registry.lookup(WRITERS, format, "format")
  if any(lora.is_adapter(arrays).values()):
    raise ValueError(
      f"{path}: the model has adapters; merge_lora makes them part of its "
      "matrices, then save it, or save_adapter writes them alone"
    )
  if tokenizer is not None and format != "huggingface":
    raise ValueError(
      f"{path}: a tokenizer is written beside a Hugging Face folder alone, not "
      f'beside "{format}"; copy its file, or leave tokenizer out'
    )
  if quantize and format == "huggingface":
    with errors.named(path):
      bitsandbytes.check(arrays, quantize)
    arrays = dict(quantized_leaves.each_array(arrays, quantize))
  if format != "orbax":
    _check_addressable(path, arrays)
  if format == "huggingface":
    arrays = quantized_leaves.restored(arrays)
    more = {"about": about, "quantize": quantize}
    writer(path, arrays, **fields, dtype=dtype, tokenizer=tokenizer, **more)
  else:
    arrays = quantized_leaves.each_array(arrays, quantize)
    writer(path, arrays, **fields, dtype=dtype, compute_dtype=compute_dtype)


# format -> function that writes it.
WRITERS = {
  "npz": npz.save,
  "huggingface": huggingface_write.save,
  "orbax": orbax.save,
}


def _check_addressable(path, arrays):
  for name, array in arrays.items():
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
      raise ValueError(
        f"{path}: {name} is spread over several processes; save it with "
        'format="orbax", which all of them write, and convert that'
      )


def _compute_in(model, dtype):
  towers = {n: tower.clone(dtype=dtype) for n, tower in model.towers.items()}
  return model.clone(**towers)


def computes_in(model: Model) -> str:
  """Returns the dtype that a model computes in."""
  return next(reversed(model.towers.values())).dtype


def _with_sharding(arrays, mesh):
  if mesh is None:
    shardings = dict.fromkeys(arrays, jnp.zeros(()).sharding)
  else:
    shardings = sharding.infer(arrays, mesh)
  return {
    name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=shardings[name])
    for name, x in arrays.items()
  }
