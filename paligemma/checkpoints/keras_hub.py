"""Preset folders of keras-hub: PaliGemma 1 and 2, and the decoder of Gemma.

    config.json                         class and sizes of the backbone
    model.weights.h5                    its variables; or, if they are many,
    model.weights.json                    which file holds which variable of
    model_00000.weights.h5, ...           these

HDF5 keeps a variable under the attributes that lead to its layer and its number
there (kernel 0, bias 1; scale 0 and shift 1 of a norm). Layers of a model and
of a list are named after their class and counted, the first one without number:

    layers/pali_gemma_decoder_block/attention/query_dense/vars/0     layer 0
    layers/pali_gemma_decoder_block_1/attention/query_dense/vars/0   layer 1

Kernels have big_vision's axes, but for the image tower, which joins heads and
head dim. bfloat16 is stored as void of two bytes.

Sources: keras-hub 0.32 (models/gemma, models/pali_gemma, utils/preset_utils.py)
and keras 3.15 (saving/saving_lib.py); what older ones wrote, from their history
and from readers of the published files. keras-hub computes otherwise than its
config says, or than we do, where

- `query_head_dim_normalize` is false (Gemma 2 27B): its blocks drop the field
  and divide by the root of the head dim, 128. We do as the config says, and as
  Gemma was trained: by the root of 144.
- a prefix is longer than the sliding window (PaliGemma 2 at 896 pixels): it
  cuts off what is further away in either direction. Here a prefix sees all of
  itself. big_vision, which trained the model, has no window at all.
"""

import contextlib
import dataclasses
import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
from etils import epath

from paligemma import disk, registry, tree
from paligemma.checkpoints import names
from paligemma.checkpoints.checkpoint import Checkpoint
from paligemma.parameters import LAYERS

CONFIG = "config.json"
WEIGHTS = "model.weights.h5"
SHARDS = "model.weights.json"

# Backbone -> the name of its decoder layers.
_BACKBONES = {
  "GemmaBackbone": "gemma_decoder_block",
  "PaliGemmaBackbone": "pali_gemma_decoder_block",
}
_DTYPES = tuple(
  map(np.dtype, (np.float32, np.float16, np.float64, ml_dtypes.bfloat16))
)
# In early presets of Gemma.
_OPTIMIZER = "optimizer/"
_NORM_EPS = 1e-6
_LISTED = 10

_DECODER_LAYER = (
  ("attn/q_einsum", "N D H", "attention/query_dense"),
  ("attn/kv_einsum", "K D H", "attention/key_dense", "attention/value_dense"),
  (
    "attn/qkv_einsum",
    "N D H",
    "attention/query_dense",
    "attention/key_dense",
    "attention/value_dense",
  ),
  ("attn/attn_vec_einsum", "N H D", "attention/output_dense"),
  ("mlp/gating_einsum", "D F", "gating_ffw", "gating_ffw_2"),
  ("mlp/linear", "F D", "ffw_linear"),
  ("pre_attention_norm", "D", "pre_attention_norm"),
  ("pre_ffw_norm", "D", "pre_ffw_norm"),
  ("post_attention_norm", "D", "post_attention_norm"),
  ("post_ffw_norm", "D", "post_ffw_norm"),
)
_DECODER = (
  ("llm/embedder/input_embedding", "V D", "layers/reversible_embedding"),
  ("llm/final_norm", "D", "layers/rms_normalization"),
)
_MHA = "MultiHeadDotProductAttention_0"
_VIT = "layers/pali_gemma_vit/layers"
_ENCODER = f"{_VIT}/pali_gemma_vit_encoder"
_IMAGE_TOWER = (
  ("img/embedding", "h w C D", f"{_ENCODER}/vision_embeddings/patch_embedding"),
  (
    "img/pos_embedding",
    "P D",
    f"{_ENCODER}/vision_embeddings/position_embedding",
  ),
  ("img/Transformer/encoder_norm", "D", f"{_ENCODER}/encoder_layer_norm"),
  ("img/head", "M E", f"{_VIT}/dense"),
  *names.under(
    f"{LAYERS['img'][0]}/",
    f"{_ENCODER}/resblocks/pali_gemma_vit_encoder_block*/",
    (
      ("LayerNorm_0", "D", "layer_norm_1"),
      ("LayerNorm_1", "D", "layer_norm_2"),
      (f"{_MHA}/query", "D (N H)", "attn/query_proj"),
      (f"{_MHA}/key", "D (N H)", "attn/key_proj"),
      (f"{_MHA}/value", "D (N H)", "attn/value_proj"),
      (f"{_MHA}/out", "(N H) D", "attn/out_proj"),
      ("MlpBlock_0/Dense_0", "D F", "mlp_dense_1"),
      ("MlpBlock_0/Dense_1", "F D", "mlp_dense_2"),
    ),
  ),
)

# Sizes of both towers -> fields of config.json. The hidden width there is that
# of gate and linear part together.
_DECODER_FIELDS = {
  "vocab_size": "vocabulary_size",
  "depth": "num_layers",
  "num_heads": "num_query_heads",
  "num_kv_heads": "num_key_value_heads",
  "width": "hidden_dim",
  "mlp_dim": "intermediate_dim",
  "head_dim": "head_dim",
}
_IMAGE_TOWER_FIELDS = {
  "patch_size": "vit_patch_size",
  "num_heads": "vit_num_heads",
  "width": "vit_hidden_dim",
  "depth": "vit_num_layers",
  "mlp_dim": "vit_intermediate_dim",
}


@dataclasses.dataclass(frozen=True)
class Dataset:
  """A tensor in an HDF5 file, which is opened anew for each access."""

  path: str
  key: str
  shape: tuple[int, ...]
  dtype: np.dtype

  def __getitem__(self, index: Any) -> np.ndarray:
    with _opened(self.path, self.key) as file:
      array = file[self.key][index]
    return array.view(self.dtype) if array.dtype.kind == "V" else array


def open(path: epath.PathLike) -> Checkpoint:
  """Opens a preset; reads its config and the headers of its HDF5 files.

  Args:
    path: Local folder of a PaliGemmaBackbone, or of a GemmaBackbone, which
      gives "llm/..." alone.

  Returns:
    Checkpoint, in scan layout. All fields of the decoder are as the config says
    (see above for what keras-hub makes of them).

  Raises:
    ValueError: h5py is not installed; a file is missing, corrupt or cut short;
      another class; quantized; variables are missing, left over or of another
      shape than the config says.
  """
  folder = pathlib.Path(path)
  where = folder / CONFIG
  backbone, config = _read_config(where)
  llm = _decoder_fields(where, config)
  found = _read_headers(folder)
  ignored = sorted(key for key in found if key.startswith(_OPTIMIZER))
  found = {key: x for key, x in found.items() if key not in ignored}
  # Before anything is counted up to it.
  layers = max(config["num_layers"], config.get("vit_num_layers", 0))
  if layers > len(found):
    raise ValueError(
      f"{where}: {layers} layers, but the weights have {len(found)} variables"
    )
  entries = _entries(config, backbone, llm["post_norms"])
  _check(folder, {entry.key: entry.their_shape for entry in entries}, found)
  return Checkpoint(
    path=str(path),
    format=f"keras-hub {backbone}",
    leaves=dict(sorted(names.leaves(entries, found).items())),
    llm=llm,
    ignored=tuple(ignored),
  )


def _read_config(path) -> tuple[str, dict[str, Any]]:
  """Returns the class of the backbone and its fields, sizes checked."""
  found = _read_json(path)
  backbone, config = found.get("class_name"), found.get("config")
  if not isinstance(backbone, str) or not isinstance(config, dict):
    raise ValueError(
      f'{path}: no "class_name" and "config", expected a preset of keras-hub'
    )
  try:
    registry.lookup(_BACKBONES, backbone, "backbone")
  except ValueError as e:
    raise ValueError(f"{path}: {e}") from None
  sizes = list(_DECODER_FIELDS.values())
  if backbone == "PaliGemmaBackbone":
    # Older presets left it out; keras-hub takes this for it.
    config = {**config}
    config["vit_intermediate_dim"] = config.get("vit_intermediate_dim") or 4304
    sizes += ["image_size", *_IMAGE_TOWER_FIELDS.values()]
    for field in ("vit_pooling", "vit_classifier_activation"):
      if config.get(field) is not None:
        raise ValueError(
          f"{path}: {field} is {config[field]!r}, a PaliGemma has none"
        )
  if config.get("use_sliding_window_attention"):
    sizes.append("sliding_window_size")
  for field in sizes:
    value = config.get(field)
    if type(value) is not int or not 0 < value < 2**31:
      raise ValueError(f"{path}: {field} is {value!r}, expected a size")
  if config["intermediate_dim"] % 2:
    raise ValueError(
      f"{path}: intermediate_dim is {config['intermediate_dim']}, expected an "
      "even number: the hidden width of gate and linear part together"
    )
  if config.get("vit_hidden_dim", 0) % config.get("vit_num_heads", 1):
    raise ValueError(
      f"{path}: vit_hidden_dim {config['vit_hidden_dim']} does not divide into "
      f"{config['vit_num_heads']} heads"
    )
  return backbone, config


def _decoder_fields(where, config) -> dict[str, Any]:
  """What array shapes do not tell about the decoder."""

  def flag(field, default):
    value = config.get(field, default)
    if type(value) is not bool:
      raise ValueError(f"{where}: {field} is {value!r}, expected true or false")
    return value

  def positive(field, default):
    value = config.get(field, default)
    if type(value) not in (int, float) or not 0 < value < math.inf:
      raise ValueError(f"{where}: {field} is {value!r}, expected a number > 0")
    return value

  def cap(field):
    return None if config.get(field) is None else float(positive(field, None))

  # Its decoder blocks are made without it and take the default.
  epsilon = positive("layer_norm_epsilon", _NORM_EPS)
  if epsilon != _NORM_EPS:
    raise ValueError(
      f"{where}: layer_norm_epsilon is {epsilon}, which keras-hub gives to the "
      f"last norm alone; expected {_NORM_EPS} for all"
    )
  post_norms = flag("use_post_attention_norm", False)
  if flag("use_post_ffw_norm", False) != post_norms:
    raise ValueError(
      f"{where}: use_post_ffw_norm and use_post_attention_norm differ, "
      "expected both (Gemma 2) or none"
    )
  by_head_dim = flag("query_head_dim_normalize", True)
  has_window = flag("use_sliding_window_attention", False)
  return {
    "norm_eps": epsilon,
    "query_scale": "head_dim" if by_head_dim else "width_per_head",
    "post_norms": post_norms,
    "attn_logits_softcap": cap("attention_logit_soft_cap"),
    "final_logits_softcap": cap("final_logit_soft_cap"),
    "sliding_window": config["sliding_window_size"] if has_window else None,
  }


def _entries(config, backbone: str, post_norms: bool) -> list[names.Entry]:
  """The variables of a backbone."""

  def sizes(tower, fields):
    stated = {field: config[key] for field, key in fields.items()}
    return names.letters(tower, stated)

  def spell(name, layer, is_bias):
    number = "" if not layer else f"_{layer}"
    return f"{name.replace('*', number)}/vars/{int(is_bias)}"

  llm = sizes("llm", _DECODER_FIELDS)
  llm["F"] //= 2
  table = names.under(
    f"{LAYERS['llm'][0]}/", f"layers/{_BACKBONES[backbone]}*/", _DECODER_LAYER
  )
  found = [*names.entries(_DECODER + table, llm, spell, post_norms=post_norms)]
  if backbone == "PaliGemmaBackbone":
    img = sizes("img", _IMAGE_TOWER_FIELDS) | {"E": llm["D"]}
    img["P"] = (config["image_size"] // img["h"]) ** 2
    found += names.entries(_IMAGE_TOWER, img, spell, output_axis=-1)
  return found


def _check(folder, shapes, found: Mapping[str, Dataset]) -> None:
  """Every variable once, of the shape that the config says, and a number."""
  lines = tree.compare(shapes, found) or [
    f"{key}: found dtype {x.dtype}, expected one of: "
    + ", ".join(map(str, _DTYPES))
    for key, x in found.items()
    if x.dtype not in _DTYPES
  ]
  dtypes = {x.dtype for x in found.values()}
  if not lines and {_DTYPES[1], _DTYPES[3]} <= dtypes:
    lines = ["float16 and bfloat16 are mixed, expected one of them"]
  if lines:
    listed = "; ".join(lines[:_LISTED])
    more = f"; and {len(lines) - _LISTED} more" if len(lines) > _LISTED else ""
    raise ValueError(
      f"{folder}: the weights do not fit {CONFIG}, {len(lines)} variables "
      f"differ: {listed}{more}"
    )


def _read_headers(folder) -> dict[str, Dataset]:
  """Returns the variables of all HDF5 files by name."""
  if (folder / WEIGHTS).exists() or not (folder / SHARDS).exists():
    return _read_header(folder / WEIGHTS)
  where = folder / SHARDS
  files = _read_shards(where)
  found = {}
  for file in sorted({file for listed in files.values() for file in listed}):
    for key, dataset in _read_header(folder / file).items():
      if key in found:
        raise ValueError(f"{where}: {key} is in two files, {file} is one")
      if file not in files.get(key.rpartition("/")[0], ()):
        raise ValueError(f"{where}: does not say that {key} is in {file}")
      found[key] = dataset
  return found


def _read_shards(path) -> dict[str, list[str]]:
  """Returns the group of a layer's variables -> the files that hold them."""
  weight_map = _read_json(path).get("weight_map")
  if not isinstance(weight_map, dict):
    raise ValueError(f'{path}: no "weight_map", expected group -> file')
  files = {}
  for group, listed in weight_map.items():
    listed = listed if isinstance(listed, list) else [listed]
    for file in listed:
      if not isinstance(file, str) or pathlib.Path(file).name != file:
        raise ValueError(f"{path}: {group}: {file!r}, expected a file here")
    files[_current(group.lstrip("/"))] = listed
  return files


def _read_header(path) -> dict[str, Dataset]:
  objects = {}
  with _opened(path) as file:
    # Links to other places and other files are not followed.
    file.visititems(objects.__setitem__)
    datasets = {
      _printable(key): (
        x.shape,
        x.dtype,
        x.external or x.is_virtual,
        _stored(x),
      )
      for key, x in objects.items()
      if hasattr(x, "is_virtual")
    }
  found = {}
  for key, (shape, dtype, is_elsewhere, stored) in datasets.items():
    where = f"{path}: {key}"
    if shape is None:
      raise ValueError(f"{where}: holds nothing, expected an array")
    if is_elsewhere:
      raise ValueError(f"{where}: lies in another file, expected it here")
    nbytes = math.prod(shape) * dtype.itemsize
    if stored is not None and stored != nbytes:
      raise ValueError(f"{where}: holds {stored} bytes, expected {nbytes}")
    if dtype == np.dtype("V2"):
      dtype = np.dtype(ml_dtypes.bfloat16)
    if _current(key) in found:
      raise ValueError(f"{where}: stands there twice")
    found[_current(key)] = Dataset(str(path), key, tuple(shape), dtype)
  return found


def _printable(key: str | bytes) -> str:
  """A name as it is, if keras may have written it; h5py gives others too."""
  return key if isinstance(key, str) and key.isprintable() else repr(key)


def _stored(dataset) -> int | None:
  """Bytes in the file; None if they are compressed or in chunks."""
  return dataset.id.get_storage_size() if dataset.chunks is None else None


def _current(key: str) -> str:
  """The name that keras 3 gives to what keras 2.13 wrote."""
  return key.replace("_layer_checkpoint_dependencies", "layers")


def _read_json(path) -> dict[str, Any]:
  try:
    found = json.loads(disk.path(path).read_text("utf-8"))
  except OSError as e:
    raise ValueError(
      f"{path}: {e.strerror or e}, expected a preset of keras-hub"
    ) from None
  except (ValueError, RecursionError) as e:
    reason = str(e).splitlines()[0]
    raise ValueError(f"{path}: not JSON, or cut short ({reason})") from None
  if not isinstance(found, dict):
    raise ValueError(f"{path}: no JSON object, expected a preset of keras-hub")
  return found


@contextlib.contextmanager
def _opened(path, key=None):
  """Opens an HDF5 file; one ValueError for whatever h5py raises of it."""
  try:
    import h5py
  except ImportError:
    raise ValueError(
      f"{path}: h5py is needed to read it, pip install h5py"
    ) from None
  where = f"{path}: {key}" if key else f"{path}"
  try:
    with h5py.File(path, "r") as file:
      yield file
  except FileNotFoundError:
    raise ValueError(
      f"{where}: no such file, expected the weights of a preset"
    ) from None
  except Exception as e:  # h5py raises nearly everything on a corrupt file
    reason = " ".join(str(e).split()) or type(e).__name__
    raise ValueError(
      f"{where}: not an HDF5 file, or corrupt or cut short ({reason})"
    ) from None
