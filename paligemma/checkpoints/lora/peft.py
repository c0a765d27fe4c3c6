"""Low-rank adapters in the folders of peft, in and out.

    adapter_config.json         rank, alpha, which modules, and the kind of LoRA
    adapter_model.safetensors   two matrices per module:

    base_model.model.model.language_model.layers.0.self_attn.q_proj
      .lora_A.weight  float[R, I]
      .lora_B.weight  float[O, R]

That is how peft 0.21 names them with transformers 5.23. All spellings of other
releases are read. A Gemma alone has no "language_model.", and a SigLIP begins
with "base_model.model.text_model.encoder." and "...vision_model.encoder.".
Heads are one axis (N H) here and there, so that our matrices are these
transposed.

Our adapters have every layer, one rank and one scale. For layers without
adapter, and for ranks and alphas that differ between modules, zeros are added
to a matrix, and B is multiplied by its own scale over ours. Biases and whole
modules that were trained beside the adapter replace those of the model.

Source: peft 0.21, tuners/tuners_utils.py (which modules), tuners/lora/layer.py
(scale), utils/save_and_load.py (keys).
"""

import dataclasses
import functools
import pathlib
import re
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from etils import epath

from paligemma import disk, messages
from paligemma.checkpoints import errors, leaves, names, safetensors
from paligemma.checkpoints.huggingface import layout
from paligemma.checkpoints.huggingface import metadata as huggingface_metadata
from paligemma.checkpoints.huggingface import read as huggingface
from paligemma.checkpoints.leaves import Leaf, Mapped, Piece
from paligemma.lora import config as lora_lib

CONFIG = "adapter_config.json"
FILE = "adapter_model.safetensors"

# Target -> its module in huggingface/layout.py, "*" for a layer.
_MODULES = {
  target: module
  for row, _, modules in names.rows(
    layout.DECODER + layout.IMAGE_TOWER + layout.PROJECTOR + layout.TEXT_TOWER,
    ["grouped"],
  )
  for target, module in zip(row.targets, modules, strict=False)
}
_TARGETS = {module: target for target, module in _MODULES.items()}
_TOWERS = {"img": "image tower", "txt": "text tower", "llm": "decoder"}
_PREFIX = "base_model.model."
_ADAPTER = r"base_model\.model\.(.+)\.lora_([AB])\.weight"
# A tensor of the model itself: the bias of an adapted module, or one saved.
_WHOLE = r"base_model\.model\.(?!.*lora_)(.+\.(?:weight|bias))"
_WRAPPERS = r"\.(base_layer|modules_to_save(\.default)?)(?=\.)"
_LAYER = r"(?<=layers\.)\d+(?=\.)"

# Fields of the config that are read, and those that change nothing once an
# adapter is trained or that the tensors tell as well. All others must be off.
_READ = {
  *("peft_type", "init_lora_weights", "bias", "modules_to_save"),
  *("r", "lora_alpha", "use_rslora", "lora_dropout"),
  *("rank_pattern", "alpha_pattern", "target_modules", "exclude_modules"),
  *("layers_to_transform", "layers_pattern"),
}
_IGNORED = {
  *("base_model_name_or_path", "revision", "task_type", "auto_mapping"),
  *("corda_config", "eva_config", "loftq_config", "lora_ga_config"),
  *("megatron_config", "megatron_core", "qalora_group_size"),
  *("inference_mode", "peft_version"),
}
_OFF = (None, False, "none", {}, [])
# The others change the matrices that the adapter is for.
_INITS = (True, False, "gaussian", "eva", "orthogonal")
_MERGE = (
  "merge it in peft, model.merge_and_unload().save_pretrained(folder), and load"
  " that folder here"
)
# They add tokens or layers, which no matrix can take in.
_NOT_MERGED = (
  *("ADAPTION_PROMPT", "CPT", "MULTITASK_PROMPT_TUNING"),
  *("P_TUNING", "PREFIX_TUNING", "PROMPT_TUNING"),
)


def open(
  path: epath.PathLike, *, depths: Mapping[str, int]
) -> tuple[lora_lib.Lora, dict[str, Leaf], dict[str, Mapped]]:
  """Opens a local folder; reads the config and the header alone.

  Args:
    path: Folder that peft's `save_pretrained` wrote, of an adapter of PaliGemma
      1 or 2, of a Gemma alone, or of a SigLIP.
    depths: Number of layers of each tower of the model that it is for.

  Returns:
    The Lora, whose targets are those that the tensors are of; name -> leaf with
    stacked layers; and key of huggingface/layout.py -> tensor of the model that
    is replaced.

  Raises:
    ValueError: A file is missing or damaged; it is no LoRA, or one of modules
      that cannot be adapted here; or not all are there.
  """
  path = pathlib.Path(path)
  config = disk.read_json(path / CONFIG)
  with errors.named(path / CONFIG):
    _check_config(config)
  if not (path / FILE).exists() and (path / "adapter_model.bin").exists():
    raise ValueError(
      f"{path / 'adapter_model.bin'}: pickled weights are refused, they can "
      "run code; where you trust them, save the adapter again with peft"
    )
  with errors.named(path / FILE):
    modules, replaced = _open_tensors(path / FILE, depths)
  try:
    with errors.named(path / CONFIG):
      lora = _lora(config, modules)
    with errors.named(path / FILE):
      _check_complete(config, modules, depths)
      found = _leaves(config, modules, lora, depths)
  except (TypeError, re.error) as e:  # a pattern that is none
    raise ValueError(f"{path / CONFIG}: malformed: {e}") from None
  return lora, found, replaced


def _check_config(config: Mapping[str, Any]) -> None:
  def shown(field):
    return f"{field} is {messages.shown(repr(config.get(field)))}"

  kind = config.get("peft_type")
  if kind != "LORA":
    way = _MERGE
    if kind is None or kind in _NOT_MERGED:
      way = "its tokens or layers are none of the model; train LoRA"
    raise ValueError(f'{shown("peft_type")}, expected "LORA"; {way}')
  if config.get("init_lora_weights", True) not in _INITS:
    raise ValueError(
      f"{shown('init_lora_weights')}, which changes the matrices beside the "
      "adapter; convert it with peft's "
      "save_pretrained(..., path_initial_model_for_weight_conversion=...)"
    )
  if config.get("bias", "none") not in ("none", "all", "lora_only"):
    raise ValueError(f"{shown('bias')}, expected none, all or lora_only")
  for field in sorted(config.keys() - _READ - _IGNORED):
    if config[field] not in _OFF:
      raise ValueError(
        f"{shown(field)}, which an adapter here cannot do; {_MERGE}"
      )


@dataclasses.dataclass
class _Module:
  """An adapted linear map: its name in transformers, and "A" and "B" of it."""

  path: str
  tensors: dict[str, Mapped] = dataclasses.field(default_factory=dict)

  def key(self, matrix: str) -> str:
    return f"{_PREFIX}{self.path}.lora_{matrix}.weight"


def _open_tensors(file, depths):
  """(target, layer) -> module, and name -> tensor of the model itself."""
  modules, replaced, unknown = {}, {}, []
  for key, tensor in safetensors.open(file).items():
    m = re.fullmatch(_WHOLE, key)
    name = m and _name(re.sub(_WRAPPERS, "", m[1]))
    if m and name.partition(".")[0] in layout.TOWERS:
      if name in replaced:
        raise ValueError(f"{key}: stands there in another spelling as well")
      replaced[name] = tensor
      continue
    m = re.fullmatch(_ADAPTER, key)
    name = m and _name(m[1])
    target = m and _TARGETS.get(re.sub(_LAYER, "*", name))
    if target is None:
      unknown.append(key)
      continue
    if tensor.dtype not in names.FLOATS or len(tensor.shape) != 2:
      raise ValueError(
        f"{key}: {tensor.dtype}{list(tensor.shape)}, expected a matrix of "
        "floats"
      )
    tower = target.partition("/")[0]
    layer = re.search(_LAYER, name)
    layer = layer and int(layer[0])
    if tower not in depths:
      raise ValueError(f"{key}: the model has no {_TOWERS[tower]}")
    if layer is not None and layer >= depths[tower]:
      raise ValueError(
        f"{key}: the model has {depths[tower]} layers there, adapters of "
        "another model"
      )
    module = modules.setdefault((target, layer), _Module(m[1]))
    if m[2] in module.tensors:
      raise ValueError(f"{module.key(m[2])} and {key} are one matrix")
    module.tensors[m[2]] = tensor
  if unknown:
    raise ValueError(
      f"{len(unknown)} tensors are left over, of no module that can be adapted "
      f"here: {', '.join(unknown[:5])}; {_MERGE}"
    )
  if not modules:
    raise ValueError("holds no tensors, expected an adapter")
  for module in modules.values():
    for one, other in ("AB", "BA"):
      if one not in module.tensors:
        raise ValueError(f"{module.key(other)} has no lora_{one}")
  return modules, replaced


def _name(path: str) -> str:
  """The name in huggingface/layout.py of what transformers names by a path."""
  family = "paligemma"
  if re.match(r"(model\.)?(layers|norm|embed_tokens)\.", path):
    family = "gemma"
  elif re.match(r"(text|vision)_model\.", path):
    family = "siglip"
  return huggingface.normalize(path, family)


def _lora(config, modules) -> lora_lib.Lora:
  """One Lora for all of them: of the largest rank, with the config's alpha."""
  targets = {target for target, _ in modules}
  lora = lora_lib.Lora(
    rank=config.get("r"),
    alpha=config.get("lora_alpha"),
    rslora=config.get("use_rslora", False),
    dropout=config.get("lora_dropout", 0.0),
    targets=[target for target in lora_lib.TARGETS if target in targets],
  )
  rank = max(module.tensors["A"].shape[0] for module in modules.values())
  return dataclasses.replace(lora, rank=rank)


def _check_complete(config, modules, depths) -> None:
  """That nothing was dropped: what is targeted beside what is there, is there.

  A tower of which there is nothing tells no names of its modules.
  """
  prefixes = {}  # tower -> what precedes its modules in transformers
  for (target, layer), module in modules.items():
    tower, _, name = _MODULES[target].partition(".")
    name = name.replace("*", str(layer))
    prefixes[tower] = module.path.removesuffix(name)
  for target, module in _MODULES.items():
    tower, _, name = module.partition(".")
    depth = depths.get(target.partition("/")[0])
    if tower not in prefixes or depth is None:
      continue
    layers = range(depth) if "*" in name else [None]
    for layer in layers:
      path = prefixes[tower] + name.replace("*", str(layer))
      if (target, layer) not in modules and _is_targeted(config, path):
        raise ValueError(
          f"{path} has no adapter, though target_modules asks for one: "
          "tensors are missing, or it is of another model"
        )


def _is_targeted(config, path) -> bool:
  """Whether peft adapts a module, which is given by its name there."""
  saved = config.get("modules_to_save") or ()
  if _matches(config.get("exclude_modules"), path) or any(
    re.match(rf"(^|.*\.){name}($|\..*)", path) for name in saved
  ):
    return False
  targets = config.get("target_modules")
  if targets == "all-linear":
    return True
  if not _matches(targets, path):
    return False
  wanted = config.get("layers_to_transform")
  if isinstance(targets, str) or path in targets or wanted in (None, []):
    return True
  patterns = config.get("layers_pattern") or [r"[^.]*"]
  patterns = [patterns] if isinstance(patterns, str) else patterns
  found = (re.match(rf"(?:^|.*?\.){p}\.(\d+)\.", path) for p in patterns)
  layer = next((int(m[1]) for m in found if m), None)
  return layer in ([wanted] if isinstance(wanted, int) else wanted)


def _matches(names, path) -> bool:
  """Whether a regex matches a path, or a path ends in one of several names."""
  if isinstance(names, str):
    return re.fullmatch(names, path) is not None
  return any(path == x or path.endswith(f".{x}") for x in names or ())


def _pattern(patterns, path, default):
  """The value of the first pattern that a module's name ends in."""
  for pattern, value in (patterns or {}).items():
    if re.match(rf"(.*\.)?({pattern})$", path):
      return value
  return default


def _leaves(config, modules, lora, depths) -> dict[str, Leaf]:
  """Name -> leaf with stacked layers, zeros where there is no adapter."""
  found = {}
  for (target, layer), module in modules.items():
    for matrix, leaf in _pair(config, module, lora):
      name = f"{lora_lib.TARGETS[target]}/{matrix}"
      found.setdefault(name, {})[layer] = leaf
  for name, by_layer in found.items():
    leaf = next(iter(by_layer.values()))
    if None not in by_layer:
      zeros = Leaf.of(np.zeros(leaf.shape, leaf.dtype))
      layers = range(depths[name.partition("/")[0]])
      leaf = leaves.stack(name, [by_layer.get(i, zeros) for i in layers])
    found[name] = leaf
  return dict(sorted(found.items()))


def _pair(config, module, lora):
  """Yields ("a", leaf) and ("b", leaf), both of the rank of `lora`."""
  rank = _pattern(config.get("rank_pattern"), module.path, config["r"])
  alpha = _pattern(config.get("alpha_pattern"), module.path, lora.alpha)
  own = dataclasses.replace(lora, rank=rank, alpha=alpha)
  # Here the rank is the last axis of A and the first of B, there the other.
  for matrix, axis, factor in (("A", 1, 1.0), ("B", 0, own.scale / lora.scale)):
    tensor = module.tensors[matrix]
    if tensor.shape[1 - axis] != rank:
      raise ValueError(
        f"{module.key(matrix)}: rank {tensor.shape[1 - axis]}, expected {rank} "
        f"as in {CONFIG}"
      )
    shape = list(tensor.shape[::-1])
    shape[axis] = lora.rank
    arrange = functools.partial(
      _arranged, shape=tuple(shape), factor=np.float32(factor)
    )
    leaf = Leaf(tuple(shape), tensor.dtype, (Piece((), tensor, arrange),))
    yield matrix.lower(), leaf


def _arranged(tensor, *, shape, factor):
  """The transposed matrix times a factor, with zeros up to a shape."""
  ours = np.transpose(tensor)
  if factor != 1:
    ours = ours.astype(np.float32) * factor
  if ours.shape == shape:
    return ours
  return np.pad(
    ours, [(0, n - m) for n, m in zip(shape, ours.shape, strict=True)]
  )


def save(
  path: epath.PathLike,
  arrays: Mapping[str, Any],
  lora: lora_lib.Lora,
  *,
  towers: Collection[str],
) -> None:
  """Writes a folder for peft's `PeftModel.from_pretrained(model, path)`.

  Args:
    path: Local folder to make, with its parents. It may not exist.
    arrays: Name -> array, of the adapters with stacked layers.
    towers: Names of those of the model: of a PaliGemma, of a Gemma alone, or of
      a SigLIP.

  Raises:
    ValueError: `path` exists or is not local.
  """
  if "://" in str(path):
    raise ValueError(f"{path}: expected a folder of the local file system")
  path = pathlib.Path(path)
  if path.exists():
    raise ValueError(f"{path}: exists, expected a new folder to write to")
  tensors, targeted = {}, {}
  for target, module in _MODULES.items():
    name = lora_lib.TARGETS[target]
    if f"{name}/a" not in arrays:
      continue
    tower, _, inner = module.partition(".")
    if "txt" in towers:
      if tower == "projector":
        raise ValueError(
          f"{path}: transformers' SigLIP has no {target}, of which there are "
          "adapters; merge_lora, and save the model as npz"
        )
      path_there = layout.siglip_key(module)
      # All of the tower, but not of its pooling head.
      layers = r"encoder\..*" if "*" in module else ""
      within = rf".*{tower}_model\.{layers}"
    elif "img" in towers:
      path_there = f"model.{layout.TOWERS[tower]}.{inner}"
      within = rf".*{layout.TOWERS[tower]}\..*"
    else:
      path_there, within = f"model.{inner}", r".*\."
    targeted.setdefault(within, []).append(module.rpartition(".")[2])
    for matrix in "ab":
      array = np.asarray(arrays[f"{name}/{matrix}"])
      key = f"{_PREFIX}{path_there}.lora_{matrix.upper()}.weight"
      for i, layer in enumerate(array if "*" in key else [array]):
        tensors[key.replace("*", str(i))] = layer.T
  config = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM" if "llm" in towers else None,
    "base_model_name_or_path": None,
    "inference_mode": True,
    "r": lora.rank,
    "lora_alpha": lora.alpha,
    "lora_dropout": lora.dropout,
    "use_rslora": lora.rslora,
    "use_dora": False,
    # A regex: a list of names could not tell the towers apart.
    "target_modules": "|".join(
      f"{within}({'|'.join(names)})" for within, names in targeted.items()
    ),
    "modules_to_save": None,
    "bias": "none",
    "fan_in_fan_out": False,
    "init_lora_weights": True,
  }
  with disk.folder(path) as folder:
    huggingface_metadata.write_json(folder / CONFIG, config)
    safetensors.save(folder / FILE, tensors, {"format": "pt"})
