"""Low-rank adapters in the folders of peft, in and out.

    adapter_config.json         rank, alpha, which modules, and the kind of LoRA
    adapter_model.safetensors   two matrices per module:

    base_model.model.model.language_model.layers.0.self_attn.q_proj
      .lora_A.weight  float[R, I]
      .lora_B.weight  float[O, R]

That is how peft 0.21 names them with transformers 5.23. Releases of
transformers differ in "model." and "vision_model.": all spellings are read. In
a decoder alone nothing stands for "language_model.".

Heads are one axis (N H) here and there, so that a matrix is a transposed one.
"""

import json
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from paligemma import atomic
from paligemma import lora as lora_lib
from paligemma.checkpoints import (
  huggingface,
  huggingface_config,
  layouts,
  leaves,
  safetensors,
)
from paligemma.checkpoints.leaves import Leaf, Piece

CONFIG = "adapter_config.json"
FILE = "adapter_model.safetensors"

# Target -> its module in transformers, for every layer.
_MODULES = {
  "llm/attn/q": "language_model.layers.*.self_attn.q_proj",
  "llm/attn/k": "language_model.layers.*.self_attn.k_proj",
  "llm/attn/v": "language_model.layers.*.self_attn.v_proj",
  "llm/attn/out": "language_model.layers.*.self_attn.o_proj",
  "llm/mlp/gate": "language_model.layers.*.mlp.gate_proj",
  "llm/mlp/up": "language_model.layers.*.mlp.up_proj",
  "llm/mlp/down": "language_model.layers.*.mlp.down_proj",
  "img/attn/q": "vision_tower.encoder.layers.*.self_attn.q_proj",
  "img/attn/k": "vision_tower.encoder.layers.*.self_attn.k_proj",
  "img/attn/v": "vision_tower.encoder.layers.*.self_attn.v_proj",
  "img/attn/out": "vision_tower.encoder.layers.*.self_attn.out_proj",
  "img/mlp/up": "vision_tower.encoder.layers.*.mlp.fc1",
  "img/mlp/down": "vision_tower.encoder.layers.*.mlp.fc2",
  "img/head": "multi_modal_projector.linear",
}
_TARGETS = {module: target for target, module in _MODULES.items()}
_PREFIX = "base_model.model.model."
_KEY = (
  r"base_model\.model\.(model\.)?"
  r"((?P<tower>language_model|vision_tower|multi_modal_projector)\."
  r"(model\.|vision_model\.)?|(?=layers\.))"
  r"(?P<module>.+)\.lora_(?P<matrix>[AB])\.weight"
)
_LAYER = r"(?<=layers\.)\d+(?=\.)"

# Fields of the config that change nothing once an adapter is trained, or that
# the tensors tell as well. Of those left over each must be off.
_READ = {
  "peft_type",
  "r",
  "lora_alpha",
  "lora_dropout",
  "use_rslora",
  "init_lora_weights",
}
_IGNORED = {
  "auto_mapping",
  "base_model_name_or_path",
  "corda_config",
  "eva_config",
  "exclude_modules",
  "inference_mode",
  "layers_pattern",
  "layers_to_transform",
  "loftq_config",
  "lora_ga_config",
  "megatron_config",
  "megatron_core",
  "peft_version",
  "qalora_group_size",
  "revision",
  "target_modules",
  "task_type",
}
_OFF = (None, False, "none", {}, [])
# The others change the matrices that the adapter is for.
_INITS = (True, False, "gaussian", "eva", "orthogonal")


def open(path: epath.PathLike) -> tuple[lora_lib.Lora, dict[str, Leaf]]:
  """Opens a local folder; reads the config and the header alone.

  Args:
    path: Folder that peft's `save_pretrained` wrote, of an adapter of PaliGemma
      1 or 2, or of a Gemma alone.

  Returns:
    Tuple of the Lora, whose targets are those that the tensors are of, and name
    -> leaf with stacked layers.

  Raises:
    ValueError: A file is missing or corrupt; the config asks for more than
      plain LoRA of one rank; a tensor is of a module that cannot be adapted
      here; or a layer lacks what another one has.
  """
  path = pathlib.Path(path)
  config = huggingface_config.read_json(path / CONFIG)
  _check_config(path / CONFIG, config)
  if not (path / FILE).exists() and (path / "adapter_model.bin").exists():
    raise ValueError(
      f"{path / 'adapter_model.bin'}: pickled weights are refused, they can "
      "run code; where you trust them, save the adapter again with peft"
    )
  found, targets = _open_tensors(path / FILE)
  try:
    lora = lora_lib.Lora(
      rank=config.get("r"),
      alpha=config.get("lora_alpha"),
      rslora=config.get("use_rslora", False),
      dropout=config.get("lora_dropout", 0.0),
      targets=[target for target in lora_lib.TARGETS if target in targets],
    )
  except ValueError as e:
    raise ValueError(f"{path / CONFIG}: {e}") from None
  return lora, found


def _check_config(file: pathlib.Path, config: Mapping[str, Any]) -> None:
  if config.get("peft_type") != "LORA":
    raise ValueError(
      f'{file}: peft_type is {config.get("peft_type")!r}, expected "LORA"'
    )
  init = config.get("init_lora_weights", True)
  if init not in _INITS:
    raise ValueError(
      f"{file}: init_lora_weights is {init!r}, which changes the matrices "
      "beside the adapter; convert it with peft's save_pretrained(..., "
      "path_initial_model_for_weight_conversion=...)"
    )
  for field in sorted(config.keys() - _READ - _IGNORED):
    if config[field] not in _OFF:
      raise ValueError(
        f"{file}: {field} is {config[field]!r}, which an adapter here cannot "
        "do; expected plain LoRA with one rank and one alpha"
      )


def _open_tensors(file: pathlib.Path) -> tuple[dict[str, Leaf], set[str]]:
  """Name -> leaf with stacked layers, and the targets."""
  found, keys, targets, unknown = {}, {}, set(), []
  for key, tensor in safetensors.open(file).items():
    m = re.fullmatch(_KEY, key)
    module = m and f"{m['tower'] or 'language_model'}.{m['module']}"
    target = m and _TARGETS.get(re.sub(_LAYER, "*", module))
    if target is None:
      unknown.append(key)
      continue
    if tensor.dtype not in huggingface.FLOATS or len(tensor.shape) != 2:
      raise ValueError(
        f"{file}: {key}: {tensor.dtype}{list(tensor.shape)}, expected a matrix "
        "of floats"
      )
    layer = re.search(_LAYER, module)
    name = f"{lora_lib.TARGETS[target]}/{m['matrix'].lower()}"
    if layer is not None:
      stem, joint, rest = layouts.split_stacked(name)
      name = f"{stem}{joint}{int(layer[0])}/{rest}"
    if name in found:
      raise ValueError(f"{file}: {keys[name]} and {key} are one matrix")
    keys[name] = key
    targets.add(target)
    piece = Piece((), tensor, np.transpose)
    found[name] = Leaf(tensor.shape[::-1], tensor.dtype, (piece,))
  if unknown:
    raise ValueError(
      f"{file}: {len(unknown)} tensors are left over, of no module that can be "
      f"adapted here: {', '.join(unknown[:5])}"
    )
  if not found:
    raise ValueError(f"{file}: holds no tensors, expected an adapter")
  try:
    return leaves.stack_layers(found), targets
  except ValueError as e:
    raise ValueError(
      f"{file}: {e}; expected an adapter of every layer"
    ) from None


def save(
  path: epath.PathLike,
  arrays: Mapping[str, Any],
  lora: lora_lib.Lora,
  *,
  has_img: bool,
) -> None:
  """Writes a folder for peft's `PeftModel.from_pretrained(model, path)`.

  Args:
    path: Local folder to make, with its parents. It may not exist.
    arrays: Name -> array, of the adapters with stacked layers.
    lora: Of the adapters.
    has_img: Whether the model is a PaliGemma, or a Gemma alone.

  Raises:
    ValueError: `path` exists or is not local.
  """
  if "://" in str(path):
    raise ValueError(f"{path}: expected a folder of the local file system")
  path = pathlib.Path(path)
  if path.exists():
    raise ValueError(f"{path}: exists, expected a new folder to write to")
  tensors, targets = {}, []
  for target, module in _MODULES.items():
    name = lora_lib.TARGETS[target]
    if f"{name}/a" not in arrays:
      continue
    targets.append(target)
    if not has_img:
      module = module.removeprefix("language_model.")
    for matrix in "ab":
      array = np.asarray(arrays[f"{name}/{matrix}"])
      key = f"{_PREFIX}{module}.lora_{matrix.upper()}.weight"
      if "*" not in key:
        tensors[key] = array.T
        continue
      for i, layer in enumerate(array):
        tensors[key.replace("*", str(i))] = layer.T
  config = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "base_model_name_or_path": None,
    "inference_mode": True,
    "r": lora.rank,
    "lora_alpha": lora.alpha,
    "lora_dropout": lora.dropout,
    "use_rslora": lora.rslora,
    "use_dora": False,
    "target_modules": _target_modules(targets, has_img),
    "modules_to_save": None,
    "bias": "none",
    "fan_in_fan_out": False,
    "init_lora_weights": True,
  }
  with atomic.folder(path) as folder:
    text = json.dumps(config, indent=2, sort_keys=True)
    (folder / CONFIG).write_text(text + "\n")
    safetensors.save(folder / FILE, tensors, {"format": "pt"})


def _target_modules(targets, has_img) -> str:
  """A regex: a list of names could not tell the towers apart."""
  names = {}
  for target in targets:
    module = _MODULES[target]
    tower, last = module.split(".")[0], module.rpartition(".")[2]
    names.setdefault(tower, []).append(last)
  return "|".join(
    (rf".*{tower}\..*" if has_img else r".*\.") + f"({'|'.join(lasts)})"
    for tower, lasts in names.items()
  )
