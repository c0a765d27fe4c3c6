"""Low-rank adapters in files: one of our own, or a folder of peft.

One safetensors file of a few megabytes, with stacked layers under our names,

    llm/layers/attn/lora_q/a   float[L, I, R]
    llm/layers/attn/lora_q/b   float[L, R, O]

and as metadata what the adapters are ("lora"), the sizes of the model that they
are for ("model"), and a few numbers of it ("weights", see samples.py).
"""

import dataclasses
import json
import pathlib
import tempfile
from collections.abc import Mapping
from typing import Any

from etils import epath

from paligemma import disk
from paligemma.checkpoints import errors, safetensors, samples
from paligemma.checkpoints.leaves import Leaf, Mapped
from paligemma.checkpoints.lora import peft
from paligemma.lora import config as lora_lib

SUFFIX = ".safetensors"
# What a run that trained adapters writes at its end.
OF_A_RUN = f"adapter{SUFFIX}"
_FORMAT = {"format": "paligemma adapter", "version": "1"}


@dataclasses.dataclass(frozen=True)
class Adapters:
  """Adapters that were opened but not read; None: the files do not tell.

  Attributes:
    lora: What they are.
    leaves: Name -> leaf, with stacked layers.
    sizes: Of the model, as `save` was given them.
    replaced: Key of huggingface/layout.py -> tensor of the model itself that
      was trained beside the adapters.
    base: One of quantization.KINDS in which the adapters saw the matrices of
      the model, "" for full precision.
    weights: samples.take of the model beside which they were trained.
  """

  lora: lora_lib.Lora
  leaves: Mapping[str, Leaf]
  sizes: Mapping[str, Any] | None = None
  replaced: Mapping[str, Mapped] = dataclasses.field(default_factory=dict)
  base: str | None = None
  weights: samples.Samples | None = None


def open(path: epath.PathLike, *, depths: Mapping[str, int]) -> Adapters:
  """Opens a local file that `save` wrote, or a folder that peft wrote.

  Args:
    path: The file, the folder, or one in which there is one of them: the
      workdir of a run, or where peft put an adapter that is not "default".
    depths: As in peft.open.

  Raises:
    ValueError: As peft.open; or the file is missing, corrupt or no adapter.
  """
  with errors.named(path):
    if "://" in str(path):
      raise ValueError("expected adapters in the local file system")
    path = _find(pathlib.Path(path))
    if path.is_dir():
      lora, found, replaced = peft.open(path, depths=depths)
      return Adapters(lora, found, replaced=replaced)
    tensors = safetensors.open(path)
    metadata = safetensors.read_metadata(path)
    if metadata.get("format") != _FORMAT["format"]:
      raise ValueError(
        "is no adapter of paligemma; expected a file of save_adapter, or a "
        f"folder of peft with {peft.CONFIG}"
      )
    version = metadata.get("version")
    if version != _FORMAT["version"]:
      raise ValueError(
        f"version {version!r} of adapter files, expected {_FORMAT['version']!r}"
      )
    lora = _read_object(metadata, "lora")
    fields = sorted(lora_lib.Lora.__dataclass_fields__)
    if sorted(lora) != fields:
      raise ValueError(f"lora has the fields {sorted(lora)}, expected {fields}")
    weights = None
    if "weights" in metadata:
      weights = _read_object(metadata, "weights")
      if not samples.are(weights):
        raise ValueError("weights in the metadata are no samples of parameters")
    return Adapters(
      lora_lib.Lora(**lora),
      {name: Leaf.of(tensor) for name, tensor in tensors.items()},
      _read_object(metadata, "model"),
      base=metadata.get("base"),
      weights=weights,
    )


def save(
  path: epath.PathLike,
  arrays: Mapping[str, Any],
  lora: lora_lib.Lora,
  sizes: Mapping[str, Any],
  base: str = "",
  weights: samples.Samples | None = None,
) -> None:
  """Writes one file, which appears when it is complete.

  Args:
    arrays: Name -> array, with stacked layers.
    lora, sizes, base, weights: As in Adapters. None is not written.
  """
  metadata = {
    **_FORMAT,
    "lora": json.dumps(dataclasses.asdict(lora)),
    "model": json.dumps(sizes),
    "base": base,
  }
  if weights is not None:
    metadata["weights"] = json.dumps(weights)
  with disk.file(path) as temporary, tempfile.NamedTemporaryFile() as local:
    safetensors.save(local.name, arrays, metadata)
    temporary.write_bytes(local.read())


def _find(path: pathlib.Path) -> pathlib.Path:
  """The adapter at a path, or the only one in the folder there."""
  if not path.is_dir() or (path / peft.CONFIG).exists():
    return path
  if (path / OF_A_RUN).exists():
    return path / OF_A_RUN
  found = sorted(x.parent for x in path.glob(f"*/{peft.CONFIG}"))
  if len(found) > 1:
    names = ", ".join(x.name for x in found[:10])
    raise ValueError(
      f"{path}: holds {len(found)} adapters, name one of its folders: {names}"
    )
  return found[0] if found else path


def _read_object(metadata, name) -> dict[str, Any]:
  try:
    found = json.loads(metadata.get(name, ""))
  except (ValueError, RecursionError):
    found = None
  if not isinstance(found, dict):
    raise ValueError(f"{name} in the metadata is no JSON object")
  return found
