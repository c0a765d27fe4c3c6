"""Low-rank adapters in files: one of our own, or a folder of peft.

One safetensors file of a few megabytes, with stacked layers under our names,

    llm/layers/attn/lora_q/a   float[L, I, R]
    llm/layers/attn/lora_q/b   float[L, R, O]

and as metadata what the adapters are ("lora") and the sizes of the model that
they are for ("model").
"""

import dataclasses
import json
import pathlib
import tempfile
from collections.abc import Mapping
from typing import Any

from etils import epath

from paligemma import atomic
from paligemma import lora as lora_lib
from paligemma.checkpoints import errors, peft, safetensors
from paligemma.checkpoints.leaves import Leaf

SUFFIX = ".safetensors"
_FORMAT = {"format": "paligemma adapter", "version": "1"}


@dataclasses.dataclass(frozen=True)
class Adapters:
  """Adapters that were opened but not read.

  Attributes:
    lora: What they are.
    leaves: Name -> leaf, with stacked layers.
    sizes: Of the model, as `save` was given them. None: the files do not tell.
  """

  lora: lora_lib.Lora
  leaves: Mapping[str, Leaf]
  sizes: Mapping[str, Any] | None = None


def open(path: epath.PathLike) -> Adapters:
  """Opens a local file that `save` wrote, or a folder that peft wrote.

  Raises:
    ValueError: There is no such file; it is corrupt, or no adapter; or as
      peft.open.
  """
  with errors.named(path):
    if "://" in str(path):
      raise ValueError("expected adapters in the local file system")
    if pathlib.Path(path).is_dir():
      return Adapters(*peft.open(path))
    tensors = safetensors.open(path)
    metadata = safetensors.read_metadata(path)
    if metadata.get("format") != _FORMAT["format"]:
      raise ValueError(
        "is no adapter of paligemma; expected a file of save_adapter, or a "
        f"folder of peft with {peft.CONFIG}"
      )
    if metadata.get("version") != _FORMAT["version"]:
      raise ValueError(
        f"version {metadata.get('version')!r} of adapter files, expected "
        f"{_FORMAT['version']!r}"
      )
    lora = _read_object(metadata, "lora")
    fields = [field.name for field in dataclasses.fields(lora_lib.Lora)]
    if sorted(lora) != sorted(fields):
      raise ValueError(
        f"lora has the fields {sorted(lora)}, expected {sorted(fields)}"
      )
    return Adapters(
      lora_lib.Lora(**lora),
      {name: Leaf.of(tensor) for name, tensor in tensors.items()},
      _read_object(metadata, "model"),
    )


def save(
  path: epath.PathLike,
  arrays: Mapping[str, Any],
  lora: lora_lib.Lora,
  sizes: Mapping[str, Any],
) -> None:
  """Writes one file, which appears when it is complete.

  Args:
    path: File to write, with its parents; replaced if it exists.
    arrays: Name -> array, with stacked layers.
    lora: What they are.
    sizes: Of the model that they are for, as JSON can hold them.
  """
  metadata = {
    **_FORMAT,
    "lora": json.dumps(dataclasses.asdict(lora)),
    "model": json.dumps(sizes),
  }
  with atomic.file(path) as temporary, tempfile.NamedTemporaryFile() as local:
    safetensors.save(local.name, arrays, metadata)
    temporary.write_bytes(local.read())


def _read_object(metadata, name) -> dict[str, Any]:
  try:
    found = json.loads(metadata.get(name, ""))
  except (ValueError, RecursionError):
    found = None
  if not isinstance(found, dict):
    raise ValueError(f"{name} in the metadata is no JSON object")
  return found
