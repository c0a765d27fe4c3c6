"""Adapters of a model in files: `save_adapter`, `load_adapter`."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from absl import logging
from etils import epath

from paligemma import messages, parameters, quantization, registry, tree
from paligemma.checkpoints import errors, layouts, leaves, samples
from paligemma.checkpoints.huggingface import layout
from paligemma.checkpoints.lora import files as lora_files
from paligemma.checkpoints.lora import peft
from paligemma.lora import apply as lora

# Format -> suffix of the name that it has by default.
FORMATS = {"paligemma": lora_files.SUFFIX, "peft": ""}


def save_adapter(
  path: epath.PathLike,
  model: nn.Module,
  params: Mapping[str, Any],
  *,
  format: str | None = None,
) -> None:
  """Writes the adapters of a model, without the model.

  Args:
    path: file or local folder to write; it appears when it is complete.
    model, params: with adapters, as `enable_lora` returns them.
    format: key of FORMATS: "paligemma", one file of ours, or "peft", a folder
      that peft loads on the model that `save` writes for Hugging Face.
      Default: "paligemma" for *.safetensors, "peft" for a name without suffix.

  Raises:
    ValueError: the model has no adapters, the format is unknown, or `path`
      cannot be written.
  """
  if lora.lora_of(model) is None:
    raise ValueError(
      f"{path}: the model has no adapters to save; paligemma.save writes the "
      "model itself"
    )
  flat = tree.flatten(params)
  arrays, weights = tree.partition(flat, lora.is_adapter(flat))
  found = samples.take(weights, lora.sharding_of(weights))
  base = _kind(weights)
  write(path, model, arrays, base=base, weights=found, format=format)


def write(
  path: epath.PathLike,
  model: nn.Module,
  arrays: Mapping[str, Any],
  *,
  base: str,
  weights: samples.Samples | None = None,
  format: str | None = None,
) -> None:
  """Does what `save_adapter` does, with the adapters alone.

  Args:
    path, model, format: as in `save_adapter`.
    arrays: name -> array of every adapter.
    base: one of quantization.KINDS in which they see the matrices of the model,
      "" for full precision.
    weights: samples.take of the model without adapters. Default: not written.
  """
  if format is None:
    by_suffix = {suffix: name for name, suffix in FORMATS.items()}
    format = by_suffix.get(epath.Path(path).suffix)
    if format is None:
      raise ValueError(
        f"{path}: cannot tell the format from the name, expected format=one "
        f"of: {', '.join(FORMATS)}, a name that ends in {lora_files.SUFFIX}, "
        "or a folder's without suffix"
      )
  registry.lookup(FORMATS, format, "format of adapters")
  arrays = {name: np.asarray(x) for name, x in arrays.items()}
  arrays = layouts.stack(arrays, lambda _, x: np.stack(x))
  adapters = lora.lora_of(model)
  if format == "peft":
    peft.save(path, arrays, adapters, towers=model.towers)
  else:
    lora_files.save(path, arrays, adapters, _sizes(model), base, weights)


def load_adapter(
  path: epath.PathLike, model: nn.Module, params: Mapping[str, Any]
) -> tuple[nn.Module, dict[str, Any]]:
  """Puts adapters from files beside the matrices of a model.

  Of peft also the biases and modules that were trained beside the adapters:
  these take the place of the model's own, in its dtype.

  Args:
    path: what `save_adapter` wrote, or a folder of peft; or the folder, such as
      the workdir of a run, in which there is one of them.
    model, params: the model that they are for; adapters that it has already are
      exchanged. A warning is logged if its matrices are in other bits than
      those that the adapters were trained beside, or are others. Folders of
      peft do not tell.

  Returns:
    The Model and its parameters, adapters in float32 included.

  Raises:
    ValueError: unreadable, or adapters of another model; one line that names
      the file and what differs.
  """
  sizes = _sizes(model)
  depths = {tower: x["depth"] for tower, x in sizes.items() if x}
  found = lora_files.open(path, depths=depths)
  with errors.named(path):
    if found.sizes is not None:
      _check_sizes(found.sizes, sizes)
    model = lora.with_lora(model, found.lora)
    shapes = {name: x.shape for name, x in lora.adapter_shapes(model).items()}
    stacked = layouts.stack(shapes, layouts.stack_shapes)
    if lines := tree.compare(stacked, found.leaves):
      raise ValueError(
        f"adapters of another model, {len(lines)} arrays differ: "
        f"{messages.listed(lines)}"
      )
    either = {**leaves.unstack_layers(found.leaves), **found.leaves}
    sharding = lora.sharding_of(params)
    loaded = {
      name: leaves.place(either[name], jnp.float32, sharding) for name in shapes
    }
  flat = tree.flatten(params)
  _, weights = tree.partition(flat, lora.is_adapter(flat))
  base, full = _kind(weights), "full precision"
  if found.base not in (None, base):
    logging.warning(
      f"{path}: was trained beside matrices in {found.base or full} and is "
      f"used beside {base or full}"
    )
  if found.weights is not None:
    ours = samples.take(weights, sharding)
    if names := samples.differing(ours, found.weights):
      logging.warning(
        f"{path}: was trained beside another base, {len(names)} of "
        f"{len(found.weights.keys() & ours.keys())} parameters differ, such as "
        f"{names[0]}; load the one that it was trained on"
      )
  if found.replaced:
    with errors.named(path):
      weights = _replaced(weights, model, found.replaced)
    logging.warning(
      f"{path}: replaces {len(found.replaced)} tensors of the model itself, "
      "which are not written by save_adapter, but by merge_lora and save"
    )
  return model, tree.unflatten(tree.merge(weights, loaded))


def _sizes(model):
  """What the shapes of adapters depend on, {"img": ... or None, "llm": ...}."""
  found, others = {"img": None}, ("patch_size", "vocab_size", "text_len")
  for tower, module in model.towers.items():
    fields = [x for x in parameters.SIZES[tower] if x not in others]
    found[tower] = {x: getattr(module, x) for x in fields}
  return found


def _check_sizes(found, expected):
  towers = {"img": "image tower", "txt": "text tower", "llm": "decoder"}
  for tower, what in towers.items():
    theirs, ours = found.get(tower), expected.get(tower)
    if theirs != ours:
      raise ValueError(
        f"adapters of another model: its {what} is {_listed(theirs)}, that of "
        f"the model given is {_listed(ours)}"
      )


def _listed(sizes):
  if not isinstance(sizes, dict):
    return "missing"
  return "(" + ", ".join(f"{k} {v}" for k, v in sorted(sizes.items())) + ")"


def _kind(weights):
  """In which of quantization.KINDS matrices are, "" in none.

  In 4 bits the vocabulary table is in int8 beside them, and counts last.
  """
  found = [part for name in weights if (part := quantization.split(name))]
  kinds = {kind for _, kind in found}
  return next((k for k in quantization.KINDS[::-1] if k in kinds), "")


def _replaced(weights, model, tensors):
  """Parameters with tensors of transformers in the place of some."""
  sizes = {
    tower: {x: getattr(module, x) for x in parameters.SIZES[tower]}
    for tower, module in model.towers.items()
  }
  if "llm" in sizes:
    sizes["llm"]["post_norms"] = model.llm.post_norms
  positions = getattr(weights.get(parameters.POSITIONS), "shape", (1, None, 1))
  found = layout.entries(
    *(sizes.get(tower) for tower in ("img", "llm")),
    positions[1] if positions[0] == 1 else None,
    sizes.get("txt"),
  )
  entries = {entry.key: entry for entry in found}
  weights = dict(weights)
  dtype = next(reversed(model.towers.values())).dtype
  for key, tensor in tensors.items():
    entry = entries.get(key)
    if entry is None:
      raise ValueError(f"{key}: the model has no such tensor")
    shape, rows = entry.their_shape, tensor.shape[0]
    if key == layout.TABLE:  # padded there, and cut here
      rows = min(rows, shape[0])
    if (rows, *tensor.shape[1:]) != shape:
      raise ValueError(f"{key}: {list(tensor.shape)}, expected {list(shape)}")
    part = entry.to_ours(np.asarray(tensor[:rows]))
    name, at, joined = entry.leaf, entry.at, lora.joined(weights)
    if name not in joined:
      name, at = layouts.layer_name(name, at[0]), at[1:]
    old = joined[name]
    if quantization.is_quantized(old):
      for kind in old:
        del weights[f"{name}/{kind}"]
      old = quantization.dequantize(old, dtype)
    weights[name] = jnp.asarray(old).at[at].set(part.astype(old.dtype))
  return weights
