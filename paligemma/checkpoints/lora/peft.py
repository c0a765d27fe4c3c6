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

Layers without adapter, and ranks and alphas that differ between modules, are
arithmetic: our adapters have every layer, one rank and one scale, so zeros are
added to a matrix, and B is multiplied by its own scale over ours. Biases and
whole modules that were trained beside the adapter replace those of the model.

Source: peft 0.21, tuners/tuners_utils.py (which modules), tuners/lora/layer.py
(scale), utils/save_and_load.py (keys).
"""

import dataclasses
import functools
import json
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from etils import epath

from paligemma import disk
from paligemma.checkpoints import leaves, safetensors
from paligemma.checkpoints.huggingface import layout
from paligemma.checkpoints.huggingface import read as huggingface
from paligemma.checkpoints.leaves import Leaf, Mapped, Piece
from paligemma.checkpoints.names import rows
from paligemma.lora import config as lora_lib

CONFIG = "adapter_config.json"
FILE = "adapter_model.safetensors"

_TOWERS = {
  "text": "language_model",
  "vision": "vision_tower",
  "projector": "multi_modal_projector",
}


def _modules() -> Iterator[tuple[str, str]]:
  table = layout.DECODER + layout.IMAGE_TOWER + layout.PROJECTOR
  for row, _, modules in rows(table, ["grouped"]):
    if row.targets:
      for target, module in zip(row.targets, modules, strict=True):
        tower, _, rest = module.partition(".")
        yield target, f"{_TOWERS[tower]}.{rest}"


# Target -> its module in transformers, "*" for a layer.
_MODULES = dict(_modules())
_TARGETS = {module: target for target, module in _MODULES.items()}
_PREFIX = "base_model.model.model."
_KEY = (
  r"base_model\.model\.(?P<head>(model\.)?"
  r"((?P<tower>language_model|vision_tower|multi_modal_projector)\."
  r"(model\.|vision_model\.)?|(?=layers\.)))"
  r"(?P<module>.+)\.lora_(?P<matrix>[AB])\.weight"
)
_LAYER = r"(?<=layers\.)\d+(?=\.)"
# A tensor of the model itself: the bias of an adapted module, or one saved.
_WHOLE = r"base_model\.model\.(?!.*lora_)(?P<name>.+\.(weight|bias))"
_WHOLE_TOWERS = ("text.", "vision.", "projector.")
_WRAPPERS = r"\.(base_layer|modules_to_save(\.default)?)(?=\.)"

# Fields of the config that change nothing once an adapter is trained, or that
# the tensors tell as well. Of those left over each must be off.
_READ = {
  "peft_type",
  "r",
  "lora_alpha",
  "lora_dropout",
  "use_rslora",
  "init_lora_weights",
  "alpha_pattern",
  "bias",
  "exclude_modules",
  "layers_pattern",
  "layers_to_transform",
  "modules_to_save",
  "rank_pattern",
  "target_modules",
}
_IGNORED = {
  "auto_mapping",
  "base_model_name_or_path",
  "corda_config",
  "eva_config",
  "inference_mode",
  "loftq_config",
  "lora_ga_config",
  "megatron_config",
  "megatron_core",
  "peft_version",
  "qalora_group_size",
  "revision",
  "task_type",
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
  "ADAPTION_PROMPT",
  "CPT",
  "MULTITASK_PROMPT_TUNING",
  "P_TUNING",
  "PREFIX_TUNING",
  "PROMPT_TUNING",
)


def open(
  path: epath.PathLike, *, depths: Mapping[str, int]
) -> tuple[lora_lib.Lora, dict[str, Leaf], dict[str, Mapped]]:
  """Opens a local folder; reads the config and the header alone.

  Args:
    path: Folder that peft's `save_pretrained` wrote, of an adapter of PaliGemma
      1 or 2, or of a Gemma alone.
    depths: Layers of the model that it is for: {"llm": int}, and "img" unless
      it has no image tower.

  Returns:
    Tuple of the Lora, whose targets are those that the tensors are of; name ->
    leaf with stacked layers; and key of huggingface/layout.py -> tensor of the
    model that is replaced.

  Raises:
    ValueError: A file is missing or corrupt; the config asks for what is no
      LoRA; a tensor is of a module that cannot be adapted here; or a module
      lacks an adapter that the config says it has.
  """
  path = pathlib.Path(path)
  config = disk.read_json(path / CONFIG)
  _check_config(path / CONFIG, config)
  if not (path / FILE).exists() and (path / "adapter_model.bin").exists():
    raise ValueError(
      f"{path / 'adapter_model.bin'}: pickled weights are refused, they can "
      "run code; where you trust them, save the adapter again with peft"
    )
  modules, replaced = _open_tensors(path / FILE, depths)
  try:
    lora = _lora(config, modules)
    _check_complete(path / FILE, config, modules, depths)
    found = _leaves(path / FILE, config, modules, lora, depths)
  except (TypeError, re.error) as e:  # a pattern that is none
    raise ValueError(f"{path / CONFIG}: malformed: {e}") from None
  except ValueError as e:
    where = path / CONFIG
    raise ValueError(f"{where}: {e}" if FILE not in str(e) else e) from None
  return lora, found, replaced


def _check_config(file: pathlib.Path, config: Mapping[str, Any]) -> None:
  kind = config.get("peft_type")
  if kind != "LORA":
    way = _MERGE
    if kind is None or kind in _NOT_MERGED:
      way = "its tokens or layers are none of the model; train LoRA"
    raise ValueError(
      f'{file}: peft_type is {_shown(kind)}, expected "LORA"; {way}'
    )
  init = config.get("init_lora_weights", True)
  if init not in _INITS:
    raise ValueError(
      f"{file}: init_lora_weights is {_shown(init)}, which changes the "
      "matrices beside the adapter; convert it with peft's "
      "save_pretrained(..., path_initial_model_for_weight_conversion=...)"
    )
  if config.get("bias", "none") not in ("none", "all", "lora_only"):
    raise ValueError(
      f"{file}: bias is {_shown(config['bias'])}, expected none, all or "
      "lora_only"
    )
  for field in sorted(config.keys() - _READ - _IGNORED):
    if config[field] not in _OFF:
      raise ValueError(
        f"{file}: {field} is {_shown(config[field])}, which an adapter here "
        f"cannot do; {_MERGE}"
      )


def _shown(value: Any) -> str:
  found = repr(value)
  return found if len(found) <= 80 else f"{found[:80]}..."


@dataclasses.dataclass
class _Module:
  """An adapted linear map.

  Attributes:
    target: Key of parameters.TARGETS.
    layer: int, None of the projector.
    head: What stands in front of its name in transformers: "model.language_".
    name: The rest of its name: "layers.3.self_attn.q_proj".
    keys, tensors: By "A" and "B".
  """

  target: str
  layer: int | None
  head: str
  name: str
  keys: dict[str, str] = dataclasses.field(default_factory=dict)
  tensors: dict[str, Mapped] = dataclasses.field(default_factory=dict)

  @property
  def path(self) -> str:
    return f"{self.head}{self.name}"

  @property
  def rank(self) -> int:
    return self.tensors["A"].shape[0]


def _open_tensors(
  file: pathlib.Path, depths: Mapping[str, int]
) -> tuple[dict[tuple[str, int | None], _Module], dict[str, Mapped]]:
  """(target, layer) -> module, and key -> tensor of the model itself."""
  modules, whole, unknown = {}, {}, []
  for key, tensor in safetensors.open(file).items():
    m = re.fullmatch(_KEY, key)
    module = m and f"{m['tower'] or 'language_model'}.{m['module']}"
    target = m and _TARGETS.get(re.sub(_LAYER, "*", module))
    if target is None:
      if w := re.fullmatch(_WHOLE, key):
        whole[re.sub(_WRAPPERS, "", w["name"])] = (key, tensor)
      else:
        unknown.append(key)
      continue
    if tensor.dtype not in huggingface.FLOATS or len(tensor.shape) != 2:
      raise ValueError(
        f"{file}: {key}: {tensor.dtype}{list(tensor.shape)}, expected a matrix "
        "of floats"
      )
    layer = re.search(_LAYER, module)
    layer = layer and int(layer[0])
    _check_layer(file, key, target, layer, depths)
    made = _Module(target, layer, m["head"], m["module"])
    found = modules.setdefault((target, layer), made)
    if m["matrix"] in found.keys:
      raise ValueError(
        f"{file}: {found.keys[m['matrix']]} and {key} are one matrix"
      )
    found.keys[m["matrix"]] = key
    found.tensors[m["matrix"]] = tensor
  kind = "paligemma" if "img" in depths else "gemma"
  names = huggingface.normalize(file, whole, kind)
  foreign = [n for n in names if not n.startswith(_WHOLE_TOWERS)]
  unknown += [whole[names.pop(name)][0] for name in foreign]
  if unknown:
    raise ValueError(
      f"{file}: {len(unknown)} tensors are left over, of no module that can be "
      f"adapted here: {', '.join(unknown[:5])}; {_MERGE}"
    )
  if not modules:
    raise ValueError(f"{file}: holds no tensors, expected an adapter")
  return modules, {name: whole[key][1] for name, key in names.items()}


def _check_layer(file, key, target, layer, depths):
  tower = target.partition("/")[0]
  if tower not in depths:
    raise ValueError(f"{file}: {key}: the model has no image tower")
  if layer is not None and layer >= depths[tower]:
    raise ValueError(
      f"{file}: {key}: the model has {depths[tower]} layers there, adapters of "
      "another model"
    )


def _lora(config, modules) -> lora_lib.Lora:
  """One Lora for all of them: of the largest rank, with the config's alpha."""
  for module in modules.values():
    for one, other in ("AB", "BA"):
      if one not in module.tensors:
        raise ValueError(f"{FILE}: {module.keys[other]} has no lora_{one}")
  targets = {target for target, _ in modules}
  lora = lora_lib.Lora(
    rank=config.get("r"),
    alpha=config.get("lora_alpha"),
    rslora=config.get("use_rslora", False),
    dropout=config.get("lora_dropout", 0.0),
    targets=[target for target in lora_lib.TARGETS if target in targets],
  )
  rank = max(module.rank for module in modules.values())
  return dataclasses.replace(lora, rank=rank)


def _check_complete(file, config, modules, depths) -> None:
  """That nothing was dropped: what is targeted beside what is there, is there.

  A tower of which there is nothing tells no names of its modules.
  """
  heads = {}
  for (target, _), module in modules.items():
    tower = _MODULES[target].partition(".")[0]
    heads[tower] = module.head
  for target, name in _MODULES.items():
    tower, _, rest = name.partition(".")
    if tower not in heads:
      continue
    layers = range(depths[target.partition("/")[0]]) if "*" in rest else [None]
    for layer in layers:
      path = heads[tower] + rest.replace("*", str(layer))
      if (target, layer) not in modules and _is_targeted(config, path):
        raise ValueError(
          f"{file}: {path} has no adapter, though target_modules asks for one: "
          "tensors are missing, or it is of another model"
        )


def _is_targeted(config: Mapping[str, Any], path: str) -> bool:
  """Whether peft adapts a module, which is given by its name there."""
  excluded = config.get("exclude_modules") or ()
  if isinstance(excluded, str):
    if re.fullmatch(excluded, path):
      return False
  elif any(_ends_in(path, name) for name in excluded):
    return False
  for name in config.get("modules_to_save") or ():
    if re.match(rf"(^|.*\.){name}($|\..*)", path):
      return False
  targets = config.get("target_modules")
  if targets is None:
    return False
  if isinstance(targets, str):
    if targets == "all-linear":
      return True
    return re.fullmatch(targets, path) is not None
  if path in targets:
    return True
  if not any(_ends_in(path, name) for name in targets):
    return False
  wanted = config.get("layers_to_transform")
  if wanted is None or wanted == []:
    return True
  patterns = config.get("layers_pattern") or [r"[^.]*"]
  patterns = [patterns] if isinstance(patterns, str) else patterns
  found = (re.match(rf"(?:^|.*?\.){p}\.(\d+)\.", path) for p in patterns)
  layer = next((int(m[1]) for m in found if m), None)
  return layer in ([wanted] if isinstance(wanted, int) else wanted)


def _ends_in(path, name):
  return path == name or path.endswith(f".{name}")


def _pattern(
  patterns: Mapping[str, Any] | None, path: str, default: Any
) -> Any:
  """The value of the first pattern that a module's name ends in."""
  for pattern, value in (patterns or {}).items():
    if re.match(rf"(.*\.)?({pattern})$", path):
      return value
  return default


def _leaves(file, config, modules, lora, depths) -> dict[str, Leaf]:
  """Name -> leaf with stacked layers, zeros where there is no adapter."""
  parts = {}
  for (target, layer), module in modules.items():
    for matrix in "AB":
      name = f"{lora_lib.TARGETS[target]}/{matrix.lower()}"
      leaf = _leaf(file, config, module, matrix, lora)
      parts.setdefault(name, {})[layer] = leaf
  return {
    name: by_layer[None]
    if None in by_layer
    else _stacked(name, by_layer, depths[name.partition("/")[0]])
    for name, by_layer in sorted(parts.items())
  }


def _stacked(name, by_layer, depth) -> Leaf:
  like = next(iter(by_layer.values()))
  zeros = Leaf.of(np.zeros(like.shape, like.dtype))
  return leaves.stack(name, [by_layer.get(i, zeros) for i in range(depth)])


def _leaf(file, config, module, matrix, lora) -> Leaf:
  expected = _pattern(config.get("rank_pattern"), module.path, config["r"])
  a, b = (module.tensors[x] for x in "AB")
  for key, rank in (
    (module.keys["A"], a.shape[0]),
    (module.keys["B"], b.shape[1]),
  ):
    if rank != expected:
      raise ValueError(
        f"{file}: {key}: rank {rank}, expected {expected} as in {CONFIG}"
      )
  alpha = _pattern(config.get("alpha_pattern"), module.path, lora.alpha)
  own = dataclasses.replace(lora, rank=expected, alpha=alpha)
  tensor = module.tensors[matrix]
  arrange = functools.partial(
    _arranged,
    rank_axis="BA".index(matrix),
    rank=lora.rank,
    factor=own.scale / lora.scale if matrix == "B" else 1.0,
  )
  shape = list(tensor.shape[::-1])
  shape["BA".index(matrix)] = lora.rank
  return Leaf(tuple(shape), tensor.dtype, (Piece((), tensor, arrange),))


def _arranged(tensor, *, rank_axis, rank, factor):
  """The transposed matrix with zeros up to `rank`, times a factor."""
  ours = np.transpose(tensor)
  if factor != 1:
    ours = ours.astype(np.float32) * np.float32(factor)
  if missing := rank - ours.shape[rank_axis]:
    room = [(0, missing if axis == rank_axis else 0) for axis in range(2)]
    ours = np.pad(ours, room)
  return ours


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
  with disk.folder(path) as folder:
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
