"""Tells the format of a checkpoint, and opens it."""

import dataclasses
import os
import zipfile
from collections.abc import Mapping, Sequence

from etils import epath

from paligemma import disk, parameters, registry
from paligemma.checkpoints import errors, keras_hub, npz, presets, towers
from paligemma.checkpoints.checkpoint import Checkpoint
from paligemma.checkpoints.huggingface import read as huggingface
from paligemma.checkpoints.lora import files as lora_files
from paligemma.checkpoints.lora import peft
from paligemma.checkpoints.orbax import big_vision
from paligemma.checkpoints.orbax import folder as orbax
from paligemma.checkpoints.orbax import gemma as gemma_orbax
from paligemma.checkpoints.training import fingerprint as fingerprints
from paligemma.checkpoints.training import runs


def _has(*patterns):
  return lambda path: any(next(iter(path.glob(p)), None) for p in patterns)


def _is_npz(path):
  if path.suffix.partition(":")[0] == ".npz":
    return True
  return path.is_file() and zipfile.is_zipfile(path)


# Name -> whether a path has this format, by the names of its files; what opens
# it; what it looks like. The first that recognises a path opens it: a keras-hub
# preset, for example, has a config.json as well, a training run perhaps an
# adapter.safetensors.
FORMATS = {
  "big_vision npz": (_is_npz, npz.open, "a .npz file"),
  "keras-hub": (
    _has(keras_hub.WEIGHTS, keras_hub.SHARDS),
    keras_hub.open,
    f"a folder with {keras_hub.WEIGHTS}",
  ),
  "training run": (
    runs.find,
    lambda path: runs.open(path, open),
    "the workdir of a training run",
  ),
  "Hugging Face": (
    _has("*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin"),
    huggingface.open,
    "a folder with config.json and *.safetensors",
  ),
  "big_vision workdir": (
    big_vision.find,
    big_vision.open,
    "a folder with checkpoint.bv-LAST",
  ),
  "Gemma Orbax": (
    gemma_orbax.holds,
    gemma_orbax.open,
    "Orbax with Gemma's names",
  ),
  "Orbax": (orbax.find, orbax.open, "a folder with _METADATA"),
}


def open(
  path: epath.PathLike | Mapping[str, epath.PathLike],
  *,
  directory: epath.PathLike | None = None,
  keep: Sequence[str] = (),
) -> Checkpoint:
  """Opens a checkpoint of any format; reads only what tells names and shapes.

  Args:
    path: A file or folder of any format in FORMATS, the name of a preset (see
      presets.PRESETS), {"img": path, "llm": path} for the image tower of one
      and the decoder of another, or {"img": path} or {"txt": path} for one
      tower of a SigLIP alone.
    directory: Where presets are looked for first, see presets.find.
    keep: Those of parameters.LOSS_HEADS that are not left out.

  Raises:
    ValueError: No such file, an unknown or damaged format.
  """
  if isinstance(path, Mapping):
    if len(path) == 1 and path.keys() <= {"img", "txt"}:
      ((tower, of),) = path.items()
      return towers.alone(open(of, directory=directory), tower)
    if set(path) != {"img", "llm"}:
      raise ValueError(
        f'towers of a checkpoint are {sorted(path)}, expected "img" and "llm", '
        'or one of "img" and "txt" for a SigLIP'
      )
    return towers.combine(
      *(open(path[tower], directory=directory) for tower in ("img", "llm"))
    )
  if not isinstance(path, str | os.PathLike):
    raise ValueError(
      f'checkpoint is {path!r:.80}, expected a path, or {{"img": one, "llm": '
      "one} for the towers of two"
    )
  if not _path(path).exists() and presets.is_name(path):
    path = presets.find(path, directory=directory)
  with errors.named(path):
    _, open_format, _ = FORMATS[detect(path)]
    return _without_heads(open_format(str(path)), keep)


def _without_heads(found, keep):
  heads = set(parameters.LOSS_HEADS).difference(keep)
  left_out = [n for n in found.leaves if n.partition("/")[0] in heads]
  leaves = {n: x for n, x in found.leaves.items() if n not in left_out}
  ignored = (*found.ignored, *left_out)
  return dataclasses.replace(found, leaves=leaves, ignored=ignored)


def fingerprint(
  path: epath.PathLike | Mapping[str, epath.PathLike],
) -> str | dict[str, str]:
  """The fingerprint of what `open` takes; of two towers, one each."""
  if isinstance(path, Mapping):
    return {tower: fingerprint(x) for tower, x in path.items()}
  return fingerprints.of(open(path).path)


def _path(path):
  try:
    return disk.path(path)
  except OSError as e:
    raise ValueError(f"{path}: {e.strerror}") from None


def detect(path: epath.PathLike) -> str:
  """Returns the key in FORMATS of what lies at a path.

  Raises:
    ValueError: There is nothing, or nothing that is known.
  """
  path = _path(path)
  if _is_adapter(path):
    raise ValueError(
      f"{path}: is an adapter; load the model that it is for, then "
      "paligemma.load_adapter(path, model, params)"
    )
  if (name := _recognise(path)) is not None:
    return name
  if not path.exists():
    raise ValueError(
      f"{path}: no such file or folder, nor the name of a preset."
      + registry.did_you_mean(str(path), presets.PRESETS)
    )
  if below := _checkpoints_in(path):
    raise ValueError(f"{path}: no checkpoint, but {' and '.join(below)} in it")
  known = "; ".join(looks_like for _, _, looks_like in FORMATS.values())
  raise ValueError(f"{path}: no checkpoint, expected one of: {known}")


def _recognise(path):
  for name, (recognises, _, _) in FORMATS.items():
    if recognises(path):
      return name
  return None


def _is_adapter(path):
  if path.suffix == lora_files.SUFFIX:
    return path.is_file() and runs.find(path) is None
  return (path / peft.CONFIG).exists() and not (path / "config.json").exists()


def _checkpoints_in(path):
  children = sorted(path.iterdir())[:100] if path.is_dir() else []
  return [
    f'"{child.name}"'
    for child in children
    if child.is_dir() and (_is_adapter(child) or _recognise(child))
  ][:10]
