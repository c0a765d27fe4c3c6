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
import functools
import math
import pathlib
from typing import Any

import ml_dtypes
import numpy as np
from etils import epath

from paligemma import disk, messages
from paligemma.checkpoints import names
from paligemma.checkpoints.checkpoint import Checkpoint
from paligemma.checkpoints.json_config import Section
from paligemma.checkpoints.leaves import Computed
from paligemma.parameters import LAYERS

CONFIG = "config.json"
WEIGHTS = "model.weights.h5"
SHARDS = "model.weights.json"

# Backbone -> the name of its decoder layers.
_BACKBONES = {
  "GemmaBackbone": "gemma_decoder_block",
  "PaliGemmaBackbone": "pali_gemma_decoder_block",
}
# In early presets of Gemma.
_OPTIMIZER = "optimizer/"

_QKV = [f"attention/{name}_dense" for name in ("query", "key", "value")]
_DECODER_LAYER = (
  ("attn/q_einsum", "N D H", _QKV[0]),
  ("attn/kv_einsum", "K D H", *_QKV[1:]),
  ("attn/qkv_einsum", "N D H", *_QKV),
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
_EMBEDDINGS = f"{_ENCODER}/vision_embeddings"
_IMAGE_TOWER = (
  ("img/embedding", "h w C D", f"{_EMBEDDINGS}/patch_embedding"),
  ("img/pos_embedding", "P D", f"{_EMBEDDINGS}/position_embedding"),
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
# Of what older presets left out.
_DEFAULTS = {
  "layer_norm_epsilon": 1e-6,
  "query_head_dim_normalize": True,
  "use_post_attention_norm": False,
  "use_post_ffw_norm": False,
  "use_sliding_window_attention": False,
  "vit_intermediate_dim": 4304,
}


def open(path: epath.PathLike) -> Checkpoint:
  """Opens a preset; reads its config and the headers of its HDF5 files.

  Args:
    path: Local folder of a PaliGemmaBackbone, or of a GemmaBackbone, which
      gives "llm/..." alone.

  Returns:
    Checkpoint, in scan layout. All fields of the decoder are as the config says
    (see above for what keras-hub makes of them).

  Raises:
    ValueError: h5py is not installed; a file is missing or damaged; or the
      config is of another class, or does not fit the variables.
  """
  folder = pathlib.Path(path)
  file = Section(str(folder / CONFIG), disk.read_json(folder / CONFIG))
  block = file.lookup("class_name", _BACKBONES)
  backbone = file.values["class_name"]
  config = file.section("config").with_defaults(_DEFAULTS)
  sizes = {"llm": _decoder_sizes(config)}
  if backbone == "PaliGemmaBackbone":
    sizes["img"] = _image_tower_sizes(config)
  llm = _decoder_fields(config)
  found = _read_headers(folder)
  ignored = sorted(key for key in found if key.startswith(_OPTIMIZER))
  found = {key: x for key, x in found.items() if key not in ignored}
  # Before anything is counted up to it.
  depth = max(tower["depth"] for tower in sizes.values())
  if depth > len(found):
    raise ValueError(
      f"{config.where}: {depth} layers, but the weights have {len(found)} "
      "variables"
    )
  entries = _entries(sizes, block, llm["post_norms"])
  if lines := names.differences(entries, found):
    raise ValueError(
      f"{folder}: the weights do not fit {CONFIG}, {len(lines)} variables "
      f"differ: {messages.listed(lines)}"
    )
  return Checkpoint(
    path=str(path),
    format=f"keras-hub {backbone}",
    leaves=dict(sorted(names.leaves(entries, found).items())),
    llm=llm,
    ignored=tuple(ignored),
  )


def _decoder_sizes(config) -> dict[str, int]:
  sizes = config.sizes(_DECODER_FIELDS)
  if sizes["mlp_dim"] % 2:
    raise config.error(
      "intermediate_dim",
      "an even number: the hidden width of gate and linear part together",
    )
  return sizes | {"mlp_dim": sizes["mlp_dim"] // 2}


def _image_tower_sizes(config) -> dict[str, int]:
  config.check({"vit_pooling": None, "vit_classifier_activation": None})
  sizes = config.sizes(_IMAGE_TOWER_FIELDS)
  if sizes["width"] % sizes["num_heads"]:
    raise config.error("vit_num_heads", f"a divisor of {sizes['width']}")
  side = config.size("image_size") // sizes["patch_size"]
  return sizes | {"num_positions": side**2}


def _decoder_fields(config) -> dict[str, Any]:
  """What array shapes do not tell about the decoder."""
  epsilon = config.number("layer_norm_epsilon")
  # Its decoder blocks are made without it and take the default.
  if epsilon != _DEFAULTS["layer_norm_epsilon"]:
    raise config.error(
      "layer_norm_epsilon",
      f"{_DEFAULTS['layer_norm_epsilon']}: keras-hub gives another one to the "
      "last norm alone",
    )
  post_norms = config.flag("use_post_attention_norm")
  if config.flag("use_post_ffw_norm") != post_norms:
    raise config.error(
      "use_post_ffw_norm", "that of use_post_attention_norm, true in Gemma 2"
    )

  window = None
  if config.flag("use_sliding_window_attention"):
    window = config.size("sliding_window_size")
  by_head_dim = config.flag("query_head_dim_normalize")
  return {
    "norm_eps": epsilon,
    "query_scale": "head_dim" if by_head_dim else "width_per_head",
    "post_norms": post_norms,
    "attn_logits_softcap": config.cap("attention_logit_soft_cap"),
    "final_logits_softcap": config.cap("final_logit_soft_cap"),
    "sliding_window": window,
  }


def _entries(sizes, block: str, post_norms: bool) -> list[names.Entry]:
  def spell(name, layer, is_bias):
    number = f"_{layer}" if layer else ""
    return f"{name.replace('*', number)}/vars/{int(is_bias)}"

  llm = names.letters("llm", sizes["llm"])
  table = names.under(
    f"{LAYERS['llm'][0]}/", f"layers/{block}*/", _DECODER_LAYER
  )
  when = ["post_norms"] * post_norms
  found = [*names.entries(_DECODER + table, llm, spell, when=when)]
  if "img" in sizes:
    img = names.letters("img", sizes["img"])
    img |= {"E": llm["D"], "P": sizes["img"]["num_positions"]}
    found += names.entries(_IMAGE_TOWER, img, spell, output_axis=-1)
  return found


def _read_headers(folder) -> dict[str, Computed]:
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
  weight_map = disk.read_json(path).get("weight_map")
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


def _read_header(path) -> dict[str, Computed]:
  objects = {}
  with _opened(path) as file:
    # Links to other places and other files are not followed.
    file.visititems(objects.__setitem__)
    datasets = [
      (key, x.shape, x.dtype, x.external or x.is_virtual, _stored_bytes(x))
      for key, x in objects.items()
      if hasattr(x, "is_virtual")
    ]
  found = {}
  for key, shape, dtype, is_elsewhere, stored in datasets:
    # Names that keras has not written, h5py may give as bytes.
    if not (isinstance(key, str) and key.isprintable()):
      key = repr(key)
    where = f"{path}: {key}"
    if shape is None:
      raise ValueError(f"{where}: holds nothing, expected an array")
    if is_elsewhere:
      raise ValueError(f"{where}: lies in another file, expected it here")
    nbytes = math.prod(shape) * dtype.itemsize
    if stored not in (None, nbytes):
      raise ValueError(f"{where}: holds {stored} bytes, expected {nbytes}")
    if dtype == np.dtype("V2"):
      dtype = np.dtype(ml_dtypes.bfloat16)
    if _current(key) in found:
      raise ValueError(f"{where}: stands there twice")
    read = functools.partial(_read, path, key)
    found[_current(key)] = Computed(tuple(shape), dtype, read)
  return found


def _read(path, key, index):
  """A part of a variable; the file is opened anew for each access."""
  with _opened(path, key) as file:
    array = file[key][index]
  return array.view(ml_dtypes.bfloat16) if array.dtype.kind == "V" else array


def _stored_bytes(dataset) -> int | None:
  """Bytes in the file; None if they are compressed or in chunks."""
  return dataset.id.get_storage_size() if dataset.chunks is None else None


def _current(key: str) -> str:
  """The name that keras 3 gives to what keras 2.13 wrote."""
  return key.replace("_layer_checkpoint_dependencies", "layers")


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
