"""Parameters of one of our training runs, of its last step or another.

Trained parameters are in the step's checkpoint (see steps.py). Frozen ones are
written nowhere: they are read from the checkpoint that the run started from.
"""

import contextlib
import dataclasses
import json
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from etils import epath

from paligemma import disk, parameters, quantization, registry, tree, variants
from paligemma.checkpoints import errors, quantized_leaves, resample, towers
from paligemma.checkpoints.checkpoint import Checkpoint
from paligemma.checkpoints.leaves import Leaf, cast, layered_like
from paligemma.checkpoints.lora import files as lora_files
from paligemma.checkpoints.orbax import folder as orbax
from paligemma.checkpoints.orbax import zarr
from paligemma.checkpoints.training import fingerprint
from paligemma.lora.config import Lora

# Fields of the towers that array shapes cannot tell, other than of a decoder.
_FIELDS = {"img": ("posemb", "pool_type"), "txt": ("pool_type",)}


def find(path: epath.PathLike) -> epath.Path | None:
  """The folder of a step, or None if there is no run of ours.

  Args:
    path: "runs/x", "runs/x/checkpoints" or adapters such as
      "runs/x/best.safetensors", all for the last step; or
      "runs/x/checkpoints/300".
  """
  path = epath.Path(path)
  if _are_adapters(path):
    path = path.parent
  if (path / "checkpoints").is_dir():
    path = path / "checkpoints"
  if path.is_dir() and (step := orbax.last_step(path)) is not None:
    path = path / str(step)
  is_step = (path / "state").is_dir() and (path / "info" / "metadata").exists()
  return path if is_step else None


def open(
  path: epath.PathLike,
  open_source: Callable[[str], Checkpoint],
  *,
  above: tuple[epath.Path, ...] = (),
) -> Checkpoint:
  """Opens a step: its EMA, else its weights, together with the frozen ones.

  Args:
    path: See `find`. Adapters take the place of those of the step.
    open_source: Opens what the run started from, in any format. A relative path
      is looked for in the current folder, then in that of the step and upwards;
      if it is nowhere, it may be a name that `open_source` knows.
    above: Steps that started from this one, the nearest last.

  Returns:
    Checkpoint of the step, with the settings of the run's config. Frozen
    weights are rounded as in the run: to few bits in a QLoRA run.

  Raises:
    ValueError: No step, unreadable, or the frozen weights were random, are not
      those that the run started from, or are the run's own.
  """
  step = find(path)
  if step is None:
    raise ValueError(
      f"{path}: holds no step of a training run, expected its workdir, the "
      'folder "checkpoints" in it or one of the steps in there'
    )
  if step.resolve() in [other.resolve() for other in above]:
    raise ValueError(f"{step}: says that it started from itself")
  file = step / "info" / "metadata"
  with zarr.one_line(str(file)):
    metadata = json.loads(disk.path(file).read_text())["metadata"]
    config, init = metadata["config"], metadata["init"]
    source, expected = init["path"], init["fingerprint"]
    if not isinstance(source, Mapping):
      source = str(source)
    trains_all = ".*" in config["trainable"]
    res = int(config["res"])
    held_in = config.get("frozen_dtype", "float32")
    registry.lookup(quantized_leaves.HELD_IN, held_in, "frozen_dtype")
    preprocessing = {"preprocessing": str(config["train"]["resize"])}
    computed_in = config["model"].get("dtype")
  stated = _settings(file, config)
  trained, ignored = _trained(step / "state")
  if _are_adapters(epath.Path(path)):
    trained = lora_files.open(path, depths={}).leaves
  else:
    path = step
  found = Checkpoint(
    path=str(path),
    format="training run",
    leaves=trained,
    **stated,
    ignored=ignored,
    metadata=preprocessing,
    compute_dtype=computed_in,
  )
  if source == "random" and not trains_all:
    way_out = 'convert its "final.npz"'
    if "lora" in stated["img"]:
      way_out = "a run whose adapters are to be used needs an init"
    raise ValueError(
      f"{step}: the frozen weights of this run were random ({expected}) and "
      f"are stored nowhere; {way_out}"
    )
  if trains_all:
    metadata = {}
    with contextlib.suppress(ValueError):  # the source may be gone
      if not isinstance(source, Mapping):  # two towers have none
        metadata = open_source(_locate(source, step)).metadata
    return dataclasses.replace(found, metadata=metadata | preprocessing)
  with errors.named(step):
    frozen, given = _open_source(source, step, open_source, above)
  if given != expected:
    raise ValueError(
      f"{step}: was trained on top of {init['path']} with {expected}, but "
      f"{frozen.path} has {given}; put the former weights there"
    )
  leaves = _laid_over(frozen, trained, step)
  positions, kernel = parameters.POSITIONS, parameters.PATCH_KERNEL
  # A NaFlex has no resolution, and one kernel for all pixels of a patch.
  if positions in leaves and len(leaves[kernel].shape) == 4:
    count = (res // leaves[kernel].shape[0]) ** 2
    leaves[positions] = resample.resample(leaves[positions], count)
  below = {name: leaf for name, leaf in leaves.items() if name not in trained}
  with errors.named(step):
    held = _held(below, held_in)
  return dataclasses.replace(
    found,
    format=f"training run on {frozen.path} in {held_in}",
    leaves=dict(sorted({**held, **trained}.items())),
    ignored=found.ignored + frozen.ignored,
    created=tuple(name for name in frozen.created if name not in trained),
    metadata=frozen.metadata | preprocessing,
  )


def _open_source(source, step, open_source, above):
  """What a run started from, and its fingerprint; of two towers one each."""
  if isinstance(source, Mapping):
    opened = {
      tower: _open_source(str(path), step, open_source, above)
      for tower, path in source.items()
    }
    (img, _), (llm, _) = opened["img"], opened["llm"]
    given = {tower: given for tower, (_, given) in opened.items()}
    return towers.combine(img, llm), given
  source = _locate(source, step)
  if find(source) is None:
    found = open_source(source)
  else:
    found = open(source, open_source, above=(*above, step))
  return found, fingerprint.of(found.path)


def _are_adapters(path):
  return path.suffix == lora_files.SUFFIX and path.is_file()


def _held(frozen, dtype):
  """Frozen leaves in the dtype or quantization of the run."""
  if dtype in quantization.KINDS:
    return quantized_leaves.rounded(frozen, dtype)
  dtypes = quantized_leaves.storage_dtypes(frozen, dtype)
  return {
    name: leaf
    if dtypes[name] in (leaf.dtype, np.float32) or quantization.split(name)
    else cast(leaf, dtypes[name])
    for name, leaf in frozen.items()
  }


def _settings(file, config):
  """Fields of each tower, as paligemma.make and siglip.make have them."""
  with zarr.one_line(str(file)):
    model = config["model"]
    variant = str(model["variant"])
    given = {name: dict(model.get(name) or {}) for name in parameters.SIZES}
    lora = model.get("lora")
    adapted = {} if lora is None else {"lora": Lora(**lora)}
  towers = {
    name: {x: given[name][x] for x in fields if x in given[name]} | adapted
    for name, fields in _FIELDS.items()
  }
  if variant in variants.SIGLIP:
    return towers
  try:
    known = {**variants.PALIGEMMA, **variants.GEMMA}
    registry.lookup(known, variant, "variant")
    llm = {**variants.decoder(variant), **given["llm"]}
    decoder = registry.lookup(variants.GEMMA, llm["variant"], "decoder")
  except ValueError as e:
    raise ValueError(f"{file}: {e}") from None
  llm = {**vars(decoder), **llm}
  llm = {field: llm[field] for field in parameters.STATED} | adapted
  return {"img": towers["img"], "llm": llm}


def _trained(state) -> tuple[dict[str, Leaf], tuple[str, ...]]:
  """The trained leaves, from the EMA if there is one, and all other names."""
  arrays = orbax.tensors(state)
  kind = "ema/" if any(n.startswith("ema/") for n in arrays) else "trainable/"
  found = sorted(tree.under(kind, arrays).items())
  leaves = {name: Leaf.of(array) for name, array in found}
  orbax.check_names(state, leaves)
  return leaves, tuple(n for n in arrays if not n.startswith(kind))


def _locate(source: str, step: epath.Path) -> str:
  folders = [epath.Path(), *(epath.Path(p) for p in step.resolve().parents)]
  for folder in folders:
    # Without ":sub/tree", and without the colon of "gs://".
    path = folder / source
    if path.exists() or (folder / source.rpartition(":")[0]).is_file():
      return str(path)
  return source


def _laid_over(
  frozen: Checkpoint, trained: Mapping[str, Leaf], step: epath.Path
) -> dict[str, Any]:
  """Frozen leaves in the layout of the run, and the trained ones."""
  leaves = layered_like(frozen.leaves, trained)
  foreign = {n for n in trained if not re.fullmatch(parameters.ADAPTERS, n)}
  if foreign := foreign - leaves.keys():
    raise ValueError(
      f"{step}: trained {orbax.listed(foreign)}, which {frozen.path} lacks"
    )
  return dict(sorted({**leaves, **trained}.items()))
