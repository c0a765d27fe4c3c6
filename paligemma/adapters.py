"""Low-rank adapters of a model: added, merged, saved and loaded.

Axes: I inputs, R rank, O outputs, N heads, D width, H head dim.
"""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from etils import epath
from jax.sharding import NamedSharding, PartitionSpec

from paligemma import initial, quantized, tree
from paligemma import lora as lora_lib
from paligemma.checkpoints import (
  adapter_files,
  errors,
  huggingface,
  huggingface_layout,
  layouts,
  leaves,
  peft,
  samples,
)

# The matrix of a decoder's adapter, beside it: its name, and which part of it
# if it holds several. The first that there is counts.
_MATRICES = {
  "q": (("q_einsum/w", None), ("qkv_einsum/w", 0)),
  "k": (("kv_einsum/w", 0), ("qkv_einsum/w", 1)),
  "v": (("kv_einsum/w", 1), ("qkv_einsum/w", 2)),
  "out": (("attn_vec_einsum/w", None),),
  "gate": (("gating_einsum", 0),),
  "up": (("gating_einsum", 1),),
  "down": (("linear", None),),
}


_BASE = "base"  # in Model.metadata


def enable_lora(
  model,
  params,
  *,
  rank=8,
  alpha=16.0,
  rslora=False,
  dropout=0.0,
  targets=("llm/.*",),
  seed=0,
):
  """Puts adapters beside the matrices of a model, which answers as before.

  Args:
    model: Model.
    params: its parameters {"img": ..., "llm": ...}, quantized or not; they are
      shared with the result. On several devices each gets all of the adapters.
    rank, alpha, rslora, dropout, targets: see lora.Lora.
    seed: int; A is drawn as peft draws it, B is zero.

  Returns:
    Tuple of the Model and its parameters, adapters in float32 included.

  Raises:
    ValueError: a value that lora.Lora refuses, targets that this model does not
      have, or the model has adapters.
  """
  if lora_of(model) is not None:
    raise ValueError(
      "the model has adapters already; merge_lora makes them part of its "
      "matrices, load_adapter exchanges them"
    )
  lora = lora_lib.Lora(rank, alpha, rslora, dropout, targets)
  model = with_lora(model, lora)
  place = _place(params)
  wanted = {
    name: jax.ShapeDtypeStruct(x.shape, jnp.float32, sharding=place)
    for name, x in _adapter_shapes(model).items()
  }
  drawn = initial.random_params(model, None, wanted, seed=seed)
  return model, tree.unflatten(tree.merge(tree.flatten(params), drawn))


def merge_lora(model, params):
  """Adds the product of every adapter to its matrix.

  Args:
    model, params: with adapters, as `enable_lora` returns them.

  Returns:
    Tuple of the Model without adapters and its parameters, in the dtype that
    they had; a matrix that was quantized becomes one of the compute dtype.

  Raises:
    ValueError: the model has no adapters.
  """
  lora = lora_of(model)
  if lora is None:
    raise ValueError("the model has no adapters to merge")
  flat = tree.flatten(params)
  adapters, weights = tree.partition(flat, is_adapter(flat))
  merged = _joined(weights)
  for name in [name for name in adapters if name.endswith("/a")]:
    path = name.removesuffix("/a")
    a, b = adapters[f"{path}/a"], adapters[f"{path}/b"]
    matrix, part = matrix_of(path, merged)
    tower = model.llm if matrix.startswith("llm/") else model.img
    w = merged[matrix]
    if quantized.is_quantized(w):
      w = quantized.dequantize(w, tower.dtype)
    heads_first = re.fullmatch(r".*/(q|kv|qkv)_einsum/w", matrix) is not None
    merged[matrix] = _add(
      w, a, b, lora.scale, part=part, heads_first=heads_first
    )
  return with_lora(model, None), tree.unflatten(merged)


def save_adapter(path, model, params, *, format=None):
  """Writes the adapters of a model, without the model.

  Args:
    path: file or local folder to write; it appears when it is complete.
    model, params: with adapters, as `enable_lora` returns them.
    format: key of WRITERS: "paligemma", one file of ours, or "peft", a folder
      that peft loads on the model that `save` writes for Hugging Face.
      Default: "paligemma" for *.safetensors, "peft" for a name without suffix.

  Raises:
    ValueError: the model has no adapters, the format is unknown, or `path`
      cannot be written.
  """
  if lora_of(model) is None:
    raise ValueError(
      f"{path}: the model has no adapters to save; paligemma.save writes the "
      "model itself"
    )
  flat = tree.flatten(params)
  arrays, weights = tree.partition(flat, is_adapter(flat))
  model = knowing_base(model, weights)
  write(path, model, arrays, base=_kind(weights), format=format)


def write(path, model, arrays, *, base, format=None):
  """Does what `save_adapter` does, with the adapters alone.

  Args:
    path, model, format: as in `save_adapter`; what `knowing_base` returned, if
      the file is to tell the base.
    arrays: name -> array of every adapter.
    base: one of quantized.KINDS in which they see the matrices of the model,
      "" for full precision.
  """
  if format is None:
    formats = {adapter_files.SUFFIX: "paligemma", "": "peft"}
    format = formats.get(epath.Path(path).suffix)
    if format is None:
      raise ValueError(
        f"{path}: cannot tell the format from the name, expected format=one "
        f"of: {', '.join(sorted(WRITERS))}, a name that ends in "
        f"{adapter_files.SUFFIX}, or a folder's without suffix"
      )
  writer = tree.lookup(WRITERS, format, "format of adapters")
  arrays = {name: np.asarray(x) for name, x in arrays.items()}
  arrays = layouts.stack(arrays, lambda _, x: np.stack(x))
  writer(path, arrays, model, base)


def knowing_base(model, weights):
  """The model with numbers in its metadata by which `write` names its base.

  Args:
    model: Model.
    weights: name -> array of its parameters, adapters aside. All processes must
      call it.
  """
  found = samples.take(weights, _place(weights))
  return model.clone(metadata={**model.metadata, _BASE: found})


def load_adapter(path, model, params):
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
    Tuple of the Model and its parameters, adapters in float32 included.

  Raises:
    ValueError: unreadable, or adapters of another model; one line that names
      the file and what differs.
  """
  depths = {tower: x["depth"] for tower, x in _sizes(model).items() if x}
  found = adapter_files.open(path, depths=depths)
  with errors.named(path):
    _check_sizes(found.sizes, _sizes(model))
    model = with_lora(model, found.lora)
    shapes = {name: x.shape for name, x in _adapter_shapes(model).items()}
    stacked = layouts.stack(shapes, layouts.stack_shapes)
    if lines := tree.compare(stacked, found.leaves):
      raise ValueError(
        f"adapters of another model, {len(lines)} arrays differ: "
        f"{'; '.join(lines[:10])}"
      )
    either = {**leaves.unstack_layers(found.leaves), **found.leaves}
    place = _place(params)
    loaded = {
      name: leaves.place(either[name], jnp.float32, place) for name in shapes
    }
  flat = tree.flatten(params)
  _, weights = tree.partition(flat, is_adapter(flat))
  base = _kind(weights)
  if found.base is not None and found.base != base:
    logging.warning(
      "%s: was trained beside matrices in %s and is used beside %s",
      path,
      found.base or "full precision",
      base or "full precision",
    )
  if found.weights is not None:
    ours = samples.take(weights, place)
    if names := samples.differing(ours, found.weights):
      logging.warning(
        "%s: was trained beside another base, %d of %d parameters differ, such "
        "as %s; load the one that it was trained on",
        path,
        len(names),
        len(found.weights.keys() & ours.keys()),
        names[0],
      )
  if found.replaced:
    with errors.named(path):
      weights = _replaced(weights, model, found.replaced)
    logging.warning(
      "%s: replaces %d tensors of the model itself, which are not written by "
      "save_adapter, but by merge_lora and save",
      path,
      len(found.replaced),
    )
  return model, tree.unflatten(tree.merge(weights, loaded))


def lora_of(model):
  """The Lora of a model, or None."""
  return model.llm.lora


def with_lora(model, lora):
  """The model with other adapters, or None."""
  img = model.img
  return model.clone(
    llm=model.llm.clone(lora=lora),
    img=None if img is None else img.clone(lora=lora),
  )


def is_adapter(names):
  """name -> whether the parameter belongs to an adapter."""
  return {
    name: re.fullmatch(lora_lib.PARAMETERS, name) is not None for name in names
  }


def matrix_of(path, names):
  """The matrix beside which an adapter stands.

  Args:
    path: of the adapter, e.g. "llm/layers/attn/lora_k".
    names: of the matrices of the model.

  Returns:
    Tuple of a name, and the index of the part of it (behind the layer), or
    None for all of it: ("llm/layers/attn/kv_einsum/w", 0).
  """
  parent, _, target = path.rpartition(f"/{lora_lib.PREFIX}")
  if not parent.startswith("llm/"):
    return f"{parent}/kernel", None
  for matrix, part in _MATRICES[target]:
    if f"{parent}/{matrix}" in names:
      return f"{parent}/{matrix}", part
  raise AssertionError(f"no matrix for {path}")


def _adapter_shapes(model):
  """name -> shape and dtype of the adapters of a model.

  Raises:
    ValueError: a regex of its Lora matches none of its targets.
  """
  if model.img is None:
    has = [x for x in lora_lib.TARGETS if not x.startswith("img/")]
    for regex in lora_of(model).targets:
      if not any(re.fullmatch(regex, target) for target in has):
        raise ValueError(
          f'LoRA target "{regex}": the model has no image tower, expected one '
          f"of: {', '.join(has)}"
        )
  shapes = initial.shapes(model)
  return {n: shapes[n] for n, adapts in is_adapter(shapes).items() if adapts}


def _place(params):
  """Where adapters go: to every device that has a part of the parameters."""
  sharding = getattr(jax.tree.leaves(params)[0], "sharding", None)
  if isinstance(sharding, NamedSharding):
    return NamedSharding(sharding.mesh, PartitionSpec())
  return jnp.zeros(()).sharding


_IMG_SIZES = ("width", "depth", "mlp_dim", "num_heads")
_LLM_SIZES = (*_IMG_SIZES, "num_kv_heads", "head_dim")


def _sizes(model):
  """What the shapes of adapters depend on, {"img": ... or None, "llm": ...}."""
  img, llm = model.img, model.llm
  return {
    "img": None if img is None else {x: getattr(img, x) for x in _IMG_SIZES},
    "llm": {x: getattr(llm, x) for x in _LLM_SIZES},
  }


def _check_sizes(found, expected):
  """Whether adapters are for a model of these sizes, if their file tells."""
  if found is None or found == expected:
    return
  for tower, what in (("img", "image tower"), ("llm", "decoder")):
    theirs, ours = found.get(tower), expected[tower]
    if theirs != ours:
      raise ValueError(
        f"adapters of another model: its {what} is {_listed(theirs)}, that of "
        f"the model given is {_listed(ours)}"
      )


def _listed(sizes):
  if not isinstance(sizes, dict):
    return "missing"
  return "(" + ", ".join(f"{k} {v}" for k, v in sorted(sizes.items())) + ")"


@functools.partial(jax.jit, static_argnames=("part", "heads_first"))
def _add(w, a, b, scale, *, part, heads_first):
  """w + scale * a b, a layer at a time if there are several."""

  def one(layer):
    w, a, b = layer
    old = w if part is None else w[part]
    delta = scale * jnp.matmul(a, b, precision="highest")
    if heads_first:  # [I, N * H] -> [N, D, H]
      heads, width, head_dim = old.shape
      delta = delta.reshape(width, heads, head_dim).transpose(1, 0, 2)
    new = (old + delta.reshape(old.shape)).astype(w.dtype)
    return new if part is None else w.at[part].set(new)

  return one((w, a, b)) if a.ndim == 2 else jax.lax.map(one, (w, a, b))


def _joined(flat):
  """Both arrays of a quantized matrix under its name."""
  joined = {}
  for name, leaf in flat.items():
    if part := quantized.split(name):
      joined.setdefault(part[0], {})[part[1]] = leaf
    else:
      joined[name] = leaf
  return joined


def _kind(weights):
  """In which of quantized.KINDS matrices are, "" in none.

  In 4 bits the vocabulary table is in int8 beside them, and counts last.
  """
  found = [part for name in weights if (part := quantized.split(name))]
  kinds = {kind for _, kind in found}
  return next((k for k in quantized.KINDS[::-1] if k in kinds), "")


def _replaced(weights, model, tensors):
  """Parameters with tensors of transformers in the place of some."""
  img, llm = model.img, model.llm
  positions = weights["img/pos_embedding"].shape[1] if img else None
  entries = {
    entry.key: entry
    for entry in huggingface_layout.entries(
      img and {x: getattr(img, x) for x in (*_IMG_SIZES, "patch_size")},
      {x: getattr(llm, x) for x in (*_LLM_SIZES, "vocab_size", "post_norms")},
      positions,
    )
  }
  by_leaf = {}
  for key, tensor in tensors.items():
    entry = entries.get(key)
    if entry is None:
      raise ValueError(f"{key}: the model has no such tensor")
    shape, rows = entry.their_shape, tensor.shape[0]
    if key == huggingface.TABLE:  # padded there, and cut here
      rows = min(rows, shape[0])
    if (rows, *tensor.shape[1:]) != shape:
      raise ValueError(f"{key}: {list(tensor.shape)}, expected {list(shape)}")
    part = entry.to_ours(np.asarray(tensor[:rows]))
    by_leaf.setdefault(entry.leaf, []).append((entry.at, part))
  weights = dict(weights)
  for name, parts in by_leaf.items():
    _replace(weights, name, parts, llm.dtype)
  return weights


def _replace(weights, name, parts, dtype):
  """Writes parts of a leaf of stacked layers to it, or to those apart."""
  stem = layouts.split_stacked(name)
  for at, part in parts:
    joined, place, index = _joined(weights), name, at
    if name not in joined:
      prefix, joint, rest = stem
      place, index = f"{prefix}{joint}{at[0]}/{rest}", at[1:]
    old = joined[place]
    if quantized.is_quantized(old):
      for kind in old:
        del weights[f"{place}/{kind}"]
      old = quantized.dequantize(old, dtype)
    weights[place] = jnp.asarray(old).at[index].set(part.astype(old.dtype))


def _write_paligemma(path, arrays, model, base):
  weights = model.metadata.get(_BASE)
  adapter_files.save(path, arrays, lora_of(model), _sizes(model), base, weights)


def _write_peft(path, arrays, model, base):
  peft.save(path, arrays, lora_of(model), has_img=model.img is not None)


# format -> function that writes it.
WRITERS = {"paligemma": _write_paligemma, "peft": _write_peft}
