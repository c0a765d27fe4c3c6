"""Reads and makes config.json of transformers.

A key that is absent has the default of transformers' config class; the official
PaliGemma 1 files, for example, leave out the head dim. What our models cannot
do is refused.

Sources: transformers 5.23 and 4.57,
models/{paligemma,gemma,gemma2,siglip,siglip2}/configuration_*.py.
"""

import dataclasses
import math
import pathlib
from collections.abc import Mapping
from typing import Any

from paligemma import disk, registry, variants
from paligemma.checkpoints.json_config import Section

SPECIAL_IDS = {"bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0}

# Sizes of both towers -> keys.
_IMG_SIZES = {
  "width": "hidden_size",
  "depth": "num_hidden_layers",
  "mlp_dim": "intermediate_size",
  "num_heads": "num_attention_heads",
}
_LLM_SIZES = {
  **_IMG_SIZES,
  "num_kv_heads": "num_key_value_heads",
  "head_dim": "head_dim",
  "vocab_size": "vocab_size",
}
_TXT_SIZES = {
  **_IMG_SIZES,
  "vocab_size": "vocab_size",
  "text_len": "max_position_embeddings",
}
_SOFT_CAPS = {
  "attn_logits_softcap": "attn_logit_softcapping",
  "final_logits_softcap": "final_logit_softcapping",
}
# What only Gemma 2 has; null is none.
_GEMMA2_FIELDS = {**_SOFT_CAPS, "sliding_window": "sliding_window"}

_VISION = "siglip_vision_model"
# A SigLIP -> the model types of its towers; "siglip2" alone is NaFlex.
_TOWERS = {
  "siglip": (_VISION, "siglip_text_model"),
  "siglip2": ("siglip2_vision_model", "siglip2_text_model"),
}

# What our models do and no config may change.
_GELU = "gelu_pytorch_tanh"
_GEMMA = {"attention_bias": False, "rope_theta": 10_000.0}
_SIGLIP_TEXT = {"hidden_act": _GELU, "layer_norm_eps": 1e-6}
_SIGLIP = {**_SIGLIP_TEXT, "num_channels": 3}

_MAX_POSITIONS = 8192  # of every Gemma 1 and 2


def _by_key(variant, fields):
  return {key: getattr(variant, field) for field, key in fields.items()}


# The defaults of transformers' classes are published models, nearly.
_GEMMA1_DEFAULTS = {
  **_GEMMA,
  **_by_key(variants.GEMMA["gemma_7b"], _LLM_SIZES),
  "hidden_act": _GELU,
  "rms_norm_eps": 1e-6,
  "tie_word_embeddings": True,
}
_GEMMA2_DEFAULTS = {
  **_GEMMA1_DEFAULTS,
  **_by_key(variants.GEMMA["gemma2_2b"], _LLM_SIZES | _GEMMA2_FIELDS),
  "hidden_activation": _GELU,
  "query_pre_attn_scalar": 256,
}
_SIGLIP_DEFAULTS = {
  **_SIGLIP,
  **_by_key(variants.VIT["B"], _IMG_SIZES),
  "image_size": 224,
  "patch_size": 16,
  "num_patches": variants.NAFLEX_PATCHES,
}
_SIGLIP_TEXT_DEFAULTS = {
  **_SIGLIP_TEXT,
  **_by_key(variants.VIT["B"], _IMG_SIZES),
  "vocab_size": 32_000,
  "max_position_embeddings": 64,
}
# Of a PaliGemma whose config does not name a tower at all.
_PALIGEMMA_DEFAULTS = {
  "tie_word_embeddings": True,
  "text_config": {
    **_by_key(variants.GEMMA["gemma_2b"], _LLM_SIZES),
    "vocab_size": variants.VOCAB_SIZE,
  },
  "vision_config": {
    **_by_key(variants.VIT["So400m"], _IMG_SIZES),
    "intermediate_size": 4096,
    "image_size": 224,
    "patch_size": 14,
  },
}
_IMAGE_TOKEN_ID = 256_000


@dataclasses.dataclass(frozen=True)
class Description:
  """A model as config.json has it.

  Attributes:
    model_type: "paligemma", "gemma", "gemma2", "siglip", "siglip2",
      "siglip_vision_model".
    decoder: `llm` of layout.entries, None if there is none.
    image_tower: `img` and num_positions of it, None if there is none.
    text_tower: `txt` of it, None if there is none.
    llm: Fields of gemma.Model that shapes cannot tell.
    image_token_id: None in a model for text alone.
    tied: False if logits come from a table of their own.
  """

  model_type: str
  decoder: Mapping[str, Any] | None = None
  image_tower: Mapping[str, Any] | None = None
  text_tower: Mapping[str, Any] | None = None
  llm: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  image_token_id: int | None = None
  tied: bool = True


def read(path: pathlib.Path) -> Description:
  """Reads a config.json.

  Raises:
    ValueError: The file is missing or malformed, or describes what our models
      cannot do.
  """
  config = Section(str(path), disk.read_json(path))
  readers = {
    "paligemma": _paligemma,
    "gemma": _gemma,
    "gemma2": _gemma,
    "siglip": _siglip,
    "siglip2": _siglip,
    _VISION: _image_tower,
  }
  if "quantization_config" in config.values:
    raise ValueError(
      f"{path}: quantization_config says that weights are quantized, expected "
      "float32, float16 or bfloat16"
    )
  return config.lookup("model_type", readers)(config)


def _paligemma(config) -> Description:
  config = config.with_defaults(_PALIGEMMA_DEFAULTS)
  text = _gemma(config.section("text_config", model_type="gemma"))
  vision = config.section("vision_config", model_type=_VISION)
  vision.lookup("model_type", {_VISION: None})
  vision = _image_tower(vision)
  # Both names are one field to transformers.
  names = ("image_token_index", "image_token_id")
  ids = {config.size(name) for name in names if name in config.values}
  if len(ids) > 1:
    raise config.error("image_token_id", "that of image_token_index")
  return dataclasses.replace(
    text,
    model_type="paligemma",
    image_tower=vision.image_tower,
    image_token_id=ids.pop() if ids else _IMAGE_TOKEN_ID,
    tied=text.tied and config.values["tie_word_embeddings"] is True,
  )


def _gemma(config) -> Description:
  generations = {"gemma": _GEMMA1_DEFAULTS, "gemma2": _GEMMA2_DEFAULTS}
  config = config.with_defaults(config.lookup("model_type", generations))
  post_norms = config.values["model_type"] == "gemma2"
  if "hidden_activation" in config.values:
    config.check({"hidden_activation": _GELU})
  # Gemma 1 was published with "gelu" and meant the approximation by tanh.
  elif config.values["hidden_act"] != "gelu":
    config.check({"hidden_act": _GELU})
  config.check(_GEMMA)
  # A release names RoPE in the first way or in the second.
  for key in ("rope_scaling", "rope_parameters"):
    rope = config.values.get(key) or {}
    plain = {"rope_theta": 10_000.0, "rope_type": "default", "type": "default"}
    if not (isinstance(rope, dict) and rope.items() <= plain.items()):
      raise config.error(
        key, "RoPE as it is, of theta 10000, our models know no other"
      )
  sizes = config.sizes(_LLM_SIZES)
  if sizes["num_heads"] % sizes["num_kv_heads"]:
    raise config.error(
      "num_key_value_heads", f"a divisor of {sizes['num_heads']} heads"
    )
  llm = {
    "norm_eps": config.number("rms_norm_eps"),
    "query_scale": "head_dim",
    "post_norms": post_norms,
    **dict.fromkeys(_GEMMA2_FIELDS),
  }
  if post_norms:
    scalar = config.number("query_pre_attn_scalar")
    names = [n for n, x in _query_scalars(sizes).items() if x == scalar]
    llm["query_scale"] = names[0] if names else scalar
    llm |= {field: config.cap(key) for field, key in _SOFT_CAPS.items()}
    llm["sliding_window"] = _sliding_window(config, sizes["depth"])
  return Description(
    model_type=config.values["model_type"],
    decoder=sizes | {"post_norms": post_norms},
    llm=llm,
    tied=config.values["tie_word_embeddings"] is True,
  )


def _query_scalars(sizes):
  """The names of gemma.Model's query_scale -> what they stand for."""
  return {
    "head_dim": sizes["head_dim"],
    "width_per_head": sizes["width"] / sizes["num_heads"],
  }


def _sliding_window(config, depth):
  window = None
  if not config.is_null("sliding_window"):
    window = config.size("sliding_window")
  types = config.values.get("layer_types")
  # No more of them than a file may list.
  alternating = _layer_types(min(depth, 10_000), window)
  if types in (None, alternating):
    return window
  if types == _layer_types(len(alternating), None):
    return None
  raise config.error(
    "layer_types",
    f"full_attention in all {depth} layers, or sliding_attention (of "
    f"sliding_window {window}) in layers 0, 2, ... and full_attention in "
    "layers 1, 3, ...",
  )


def _layer_types(depth, window):
  full, sliding = "full_attention", "sliding_attention"
  return [full if window is None or i % 2 else sliding for i in range(depth)]


def _siglip(config) -> Description:
  vision_type, text_type = config.lookup("model_type", _TOWERS)
  config = config.with_defaults({"vision_config": {}, "text_config": {}})
  vision = config.section("vision_config", model_type=vision_type)
  vision = vision.with_defaults({"vision_use_head": True})
  vision.check({"vision_use_head": True})
  text = config.section("text_config", model_type=text_type)
  text.lookup("model_type", {text_type: None})
  text = text.with_defaults(_SIGLIP_TEXT_DEFAULTS)
  text.check(_SIGLIP_TEXT)
  sizes = text.sizes(_TXT_SIZES)
  _check_heads(text, sizes)
  is_default = text.values.get("projection_size") is None
  sizes["num_classes"] = (
    sizes["width"] if is_default else text.size("projection_size")
  )
  return dataclasses.replace(
    _image_tower(vision),
    model_type=config.values["model_type"],
    text_tower=sizes,
  )


def _image_tower(config) -> Description:
  types = dict.fromkeys(vision for vision, _ in _TOWERS.values())
  config.lookup("model_type", types)
  config = config.with_defaults(_SIGLIP_DEFAULTS)
  config.check(_SIGLIP)
  sizes = config.sizes(_IMG_SIZES)
  _check_heads(config, sizes)
  patch_size = _side(config, "patch_size")
  if config.values["model_type"] != _VISION:
    grid = math.isqrt(config.size("num_patches"))
    if grid**2 != config.size("num_patches"):
      raise config.error("num_patches", "a square")
    tower = sizes | {"patch_size": patch_size, "grid": grid}
    return Description(config.values["model_type"], image_tower=tower)
  # Pixels that fill no patch are not looked at.
  num_positions = (_side(config, "image_size") // patch_size) ** 2
  if not num_positions:
    raise config.error("image_size", f"at least the patch_size, {patch_size}")
  tower = sizes | {"patch_size": patch_size, "num_positions": num_positions}
  return Description(model_type=_VISION, image_tower=tower)


def _check_heads(config, sizes):
  if sizes["width"] % sizes["num_heads"]:
    raise config.error(
      "num_attention_heads", f"a divisor of the width {sizes['width']}"
    )


def _side(config, key):
  """A size that may be given as two equal ones."""
  value = config.values[key]
  if not isinstance(value, list):
    return config.size(key)
  if len(value) != 2 or value[0] != value[1]:
    raise config.error(key, "a square")
  return Section(config.where, {key: value[0]}).size(key)


def make(
  *,
  img: Mapping[str, Any] | None,
  num_positions: int | None,
  image_token_id: int | None,
  llm: Mapping[str, Any],
  rows: int,
  dtype: str,
) -> dict[str, Any]:
  """Returns the config.json of a model, for transformers 4.41 and later.

  Args:
    img: Fields of vit.Model; None, as the next two, of a Gemma alone.
    num_positions: Patches of an image.
    image_token_id: The one that is replaced by an image.
    llm: Fields of gemma.Model.
    rows: Of the table of embeddings.
    dtype: In which transformers holds the weights.

  Raises:
    ValueError: transformers has no such decoder; names the field.
  """
  text = {**_make_gemma(llm), "vocab_size": rows, "torch_dtype": dtype}
  if img is None:
    family = "Gemma2" if text["model_type"] == "gemma2" else "Gemma"
    return {**text, "architectures": [f"{family}ForCausalLM"]}
  patch_size = img["patch_size"]
  return {
    "architectures": ["PaliGemmaForConditionalGeneration"],
    "model_type": "paligemma",
    **SPECIAL_IDS,
    "hidden_size": llm["width"],
    "image_token_index": image_token_id,
    "projection_dim": llm["width"],
    "text_config": {**text, "num_image_tokens": num_positions},
    "tie_word_embeddings": True,
    "torch_dtype": dtype,
    "vision_config": {
      "model_type": _VISION,
      **{key: img[field] for field, key in _IMG_SIZES.items()},
      **_SIGLIP,
      "image_size": patch_size * math.isqrt(num_positions),
      "num_image_tokens": num_positions,
      "patch_size": patch_size,
      "projection_dim": llm["width"],
      "torch_dtype": dtype,
      "vision_use_head": False,
    },
    "vocab_size": rows,
  }


def make_siglip(
  *,
  img: Mapping[str, Any],
  txt: Mapping[str, Any],
  num_positions: int | None,
  dtype: str,
) -> dict[str, Any]:
  """Returns the config.json of a SigLIP, for transformers 4.37 and later.

  Args:
    img: Fields of vit.Model or naflex.Model.
    txt: Fields of text_tower.Model.
    num_positions: Patches of an image; None for NaFlex.
    dtype: In which transformers holds the weights.
  """
  family = "siglip" if num_positions else "siglip2"
  vision_type, text_type = _TOWERS[family]
  if num_positions:
    side = variants.siglip_side(img["patch_size"], math.isqrt(num_positions))
    of_images = {"image_size": side}
  else:
    of_images = {"num_patches": img["grid"] ** 2}
  return {
    "architectures": [f"{family.capitalize()}Model"],
    "model_type": family,
    "initializer_factor": 1.0,
    "torch_dtype": dtype,
    "vision_config": {
      "model_type": vision_type,
      **{key: img[field] for field, key in _IMG_SIZES.items()},
      **_SIGLIP,
      **of_images,
      "patch_size": img["patch_size"],
      "torch_dtype": dtype,
      "vision_use_head": True,
    },
    "text_config": {
      "model_type": text_type,
      **{key: txt[field] for field, key in _TXT_SIZES.items()},
      **_SIGLIP_TEXT,
      "projection_size": txt["num_classes"],
      "torch_dtype": dtype,
    },
  }


def _make_gemma(llm):
  config = {
    "model_type": "gemma",
    **SPECIAL_IDS,
    **{key: llm[field] for field, key in _LLM_SIZES.items()},
    **_GEMMA,
    "hidden_act": _GELU,
    "hidden_activation": _GELU,
    "max_position_embeddings": _MAX_POSITIONS,
    "rms_norm_eps": llm.get("norm_eps", 1e-6),
    "tie_word_embeddings": True,
  }
  scalar = llm.get("query_scale", "head_dim")
  if isinstance(scalar, str):
    scalar = registry.lookup(_query_scalars(llm), scalar, "query_scale")
  gemma2 = {
    "query_pre_attn_scalar": scalar,
    **{key: llm.get(field) for field, key in _GEMMA2_FIELDS.items()},
  }
  if not llm.get("post_norms", False):
    plain = {**dict.fromkeys(gemma2), "query_pre_attn_scalar": llm["head_dim"]}
    for key, value in gemma2.items():
      if value != plain[key]:
        raise ValueError(
          f"{key} is {value}, expected {plain[key]} in a decoder without post "
          "norms: transformers' Gemma 1 has no other"
        )
    return config
  if scalar != int(scalar):
    raise ValueError(
      f"query_scale divides by the root of {scalar}, expected an integer: "
      "transformers keeps no other"
    )
  if llm["width"] % llm["num_heads"]:
    raise ValueError(
      f"width {llm['width']} is not divisible by {llm['num_heads']} heads, "
      "which transformers expects of a Gemma 2"
    )
  window = gemma2["sliding_window"]
  return {
    **config,
    **gemma2,
    "model_type": "gemma2",
    "query_pre_attn_scalar": int(scalar),
    "layer_types": _layer_types(llm["depth"], window),
    # transformers 5 wants a number also where no layer has a window, and
    # releases before 4.53 apply it without a look at layer_types: this one
    # reaches over all positions there are.
    "sliding_window": _MAX_POSITIONS if window is None else window,
  }
