"""Reads and makes config.json of transformers.

A key that is absent has the default of transformers' config class; the official
PaliGemma 1 files, for example, leave out the head dim. What our models cannot
do is refused.

Sources: transformers 5.23 and 4.57,
models/{paligemma,gemma,gemma2,siglip}/configuration_*.py.
"""

import dataclasses
import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any

from paligemma import disk, registry

SPECIAL_IDS = {"bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0}

# Sizes of both towers -> fields.
_IMG_FIELDS = {
  "width": "hidden_size",
  "depth": "num_hidden_layers",
  "mlp_dim": "intermediate_size",
  "num_heads": "num_attention_heads",
}
_LLM_FIELDS = {
  **_IMG_FIELDS,
  "num_kv_heads": "num_key_value_heads",
  "head_dim": "head_dim",
}

_MAX_POSITIONS = 8192  # of every Gemma 1 and 2
_GEMMA1_DEFAULTS = {
  "vocab_size": 256_000,
  "hidden_size": 3072,
  "intermediate_size": 24_576,
  "num_hidden_layers": 28,
  "num_attention_heads": 16,
  "num_key_value_heads": 16,
  "head_dim": 256,
  "hidden_act": "gelu_pytorch_tanh",
  "hidden_activation": None,
  "rms_norm_eps": 1e-6,
  "tie_word_embeddings": True,
  "attention_bias": False,
  "rope_theta": 10_000.0,
  "rope_scaling": None,
  "rope_parameters": None,
}
_GEMMA2_DEFAULTS = {
  **_GEMMA1_DEFAULTS,
  "hidden_size": 2304,
  "intermediate_size": 9216,
  "num_hidden_layers": 26,
  "num_attention_heads": 8,
  "num_key_value_heads": 4,
  "hidden_activation": "gelu_pytorch_tanh",
  "query_pre_attn_scalar": 256,
  "sliding_window": 4096,
  "layer_types": None,
  "final_logit_softcapping": 30.0,
  "attn_logit_softcapping": 50.0,
}
_SIGLIP_DEFAULTS = {
  "hidden_size": 768,
  "intermediate_size": 3072,
  "num_hidden_layers": 12,
  "num_attention_heads": 12,
  "num_channels": 3,
  "image_size": 224,
  "patch_size": 16,
  "hidden_act": "gelu_pytorch_tanh",
  "layer_norm_eps": 1e-6,
}
# What a PaliGemma has whose config names a tower not at all.
_PALIGEMMA_DEFAULTS = {
  "image_token_index": 256_000,
  "tie_word_embeddings": True,
  "text_config": {
    "hidden_size": 2048,
    "num_hidden_layers": 18,
    "intermediate_size": 16_384,
    "num_attention_heads": 8,
    "num_key_value_heads": 1,
    "vocab_size": 257_152,
  },
  "vision_config": {
    "intermediate_size": 4096,
    "hidden_size": 1152,
    "patch_size": 14,
    "image_size": 224,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
  },
}


@dataclasses.dataclass(frozen=True)
class Description:
  """A model as config.json has it.

  Attributes:
    model_type: "paligemma", "gemma", "gemma2", "siglip", ...
    decoder: `llm` of layout.entries, None if there is none.
    image_tower: `img` and num_positions of it, None if there is none.
    llm: Fields of gemma.Model.
    image_token_id: int, None in a model for text alone.
    tied: bool, False if logits come from a table of their own.
  """

  model_type: str
  decoder: Mapping[str, Any] | None = None
  image_tower: Mapping[str, Any] | None = None
  llm: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  image_token_id: int | None = None
  tied: bool = True


def read(path: pathlib.Path) -> Description:
  """Reads a config.json.

  Raises:
    ValueError: The file is missing or malformed, or describes what our models
      cannot do.
  """
  config = _Section(str(path), read_json(path), {})
  readers = {
    "paligemma": _paligemma,
    "gemma": _gemma,
    "gemma2": _gemma,
    "siglip": _siglip,
    "siglip_vision_model": _siglip,
  }
  if config.values.get("quantization_config") is not None:
    raise ValueError(
      f"{path}: quantization_config says that weights are quantized, expected "
      "float32, float16 or bfloat16"
    )
  return config.lookup(readers, "model_type")(config)


def read_json(path: pathlib.Path) -> dict[str, Any]:
  """Reads a JSON object.

  Raises:
    ValueError: There is no such file, or it holds no JSON object.
  """
  try:
    values = json.loads(disk.path(path).read_bytes())
  except OSError as e:
    raise ValueError(f"{path}: {e.strerror or e}") from None
  except (ValueError, RecursionError) as e:
    reason = str(e).splitlines()[0]
    raise ValueError(f"{path}: is no JSON ({reason})") from None
  if not isinstance(values, dict):
    raise ValueError(f"{path}: is no JSON object")
  return values


class _Section:
  """A part of a config.json, with the defaults of its class."""

  def __init__(self, where, values, defaults):
    self.where = where
    self.values = values
    self.defaults = defaults

  def get(self, key):
    """The value or the default; None if the file says so."""
    return self.values.get(key, self.defaults.get(key))

  def filled(self, key):
    """The value, or the default if it is absent or None."""
    value = self.values.get(key)
    return self.defaults.get(key) if value is None else value

  def section(self, key, model_type):
    values = self.filled(key)
    if not isinstance(values, dict):
      raise self.error(key, values, "an object")
    values = {"model_type": model_type, **values}
    return _Section(f"{self.where}: {key}", values, {})

  def with_defaults(self, defaults):
    return _Section(self.where, self.values, defaults)

  def size(self, key):
    value = self.filled(key)
    if type(value) is not int or not 0 < value < 2**31:
      raise self.error(key, value, "a positive integer")
    return value

  def sizes(self, fields):
    return {field: self.size(key) for field, key in fields.items()}

  def side(self, key):
    """A size that may be given as two equal ones."""
    value = self.filled(key)
    if isinstance(value, list) and len(value) == 2 and value[0] == value[1]:
      return _Section(self.where, {key: value[0]}, {}).size(key)
    if isinstance(value, list):
      raise self.error(key, value, "a square")
    return self.size(key)

  def number(self, key):
    value = self.filled(key)
    if type(value) not in (int, float) or not 0 < value < float("inf"):
      raise self.error(key, value, "a positive number")
    return value

  def number_or_none(self, key):
    return None if self.get(key) is None else float(self.number(key))

  def must_be(self, key, expected):
    if (value := self.filled(key)) != expected:
      raise self.error(key, value, f"{expected!r}, our models know no other")

  def lookup(self, table, key):
    value = self.filled(key)
    if not isinstance(value, str) or value not in table:
      hint = registry.did_you_mean(str(value), table)
      options = ", ".join(sorted(table))
      raise self.error(key, value, f"one of: {options}.{hint}")
    return table[value]

  def error(self, key, value, expected):
    found = repr(value)
    if len(found) > 80:
      found = f"{found[:80]}..."
    return ValueError(f"{self.where}: {key} is {found}, expected {expected}")


def _paligemma(config) -> Description:
  config = config.with_defaults(_PALIGEMMA_DEFAULTS)
  text = _gemma(config.section("text_config", "gemma"))
  vision = config.section("vision_config", "siglip_vision_model")
  return dataclasses.replace(
    text,
    model_type="paligemma",
    image_tower=_siglip(vision).image_tower,
    image_token_id=_image_token_id(config),
    tied=text.tied and config.filled("tie_word_embeddings") is True,
  )


def _image_token_id(config):
  # Both names are one field to transformers.
  keys = ("image_token_index", "image_token_id")
  found = {config.size(k) for k in keys if config.values.get(k) is not None}
  if len(found) > 1:
    values = config.values["image_token_id"]
    raise config.error("image_token_id", values, "that of image_token_index")
  return found.pop() if found else config.size("image_token_index")


def _gemma(config) -> Description:
  generations = {"gemma": _GEMMA1_DEFAULTS, "gemma2": _GEMMA2_DEFAULTS}
  config = config.with_defaults(config.lookup(generations, "model_type"))
  post_norms = config.values["model_type"] == "gemma2"
  _check_gemma(config, post_norms)
  sizes = config.sizes(_LLM_FIELDS) | {
    "vocab_size": config.size("vocab_size"),
    "post_norms": post_norms,
  }
  if sizes["num_heads"] % sizes["num_kv_heads"]:
    raise config.error(
      "num_key_value_heads",
      sizes["num_kv_heads"],
      f"a divisor of {sizes['num_heads']} heads",
    )
  absent = ("attn_logits_softcap", "final_logits_softcap", "sliding_window")
  llm = {
    "norm_eps": config.number("rms_norm_eps"),
    "query_scale": "head_dim",
    "post_norms": post_norms,
    **dict.fromkeys(absent),
  }
  if post_norms:
    llm.update(
      query_scale=_query_scale(config, sizes),
      attn_logits_softcap=config.number_or_none("attn_logit_softcapping"),
      final_logits_softcap=config.number_or_none("final_logit_softcapping"),
      sliding_window=_sliding_window(config, sizes["depth"]),
    )
  return Description(
    model_type=config.values["model_type"],
    decoder=sizes,
    llm=llm,
    tied=config.filled("tie_word_embeddings") is True,
  )


def _check_gemma(config, post_norms):
  # Gemma 1 was published with "gelu" and meant the approximation by tanh.
  legacy = not post_norms and config.get("hidden_activation") is None
  key = "hidden_act" if legacy else "hidden_activation"
  if not (legacy and config.get("hidden_act") == "gelu"):
    config.must_be(key, "gelu_pytorch_tanh")
  config.must_be("attention_bias", False)
  config.must_be("rope_theta", 10_000.0)
  # A release names RoPE in the first way or in the second.
  for key in ("rope_scaling", "rope_parameters"):
    rope = config.filled(key) or {}
    plain = {"rope_theta": 10_000.0, "rope_type": "default", "type": "default"}
    if not (isinstance(rope, dict) and rope.items() <= plain.items()):
      raise config.error(
        key, rope, "RoPE as it is, of theta 10000, our models know no other"
      )


def _query_scale(config, sizes):
  scalar = config.number("query_pre_attn_scalar")
  if scalar == sizes["head_dim"]:
    return "head_dim"
  if scalar * sizes["num_heads"] == sizes["width"]:
    return "width_per_head"
  return scalar


def _sliding_window(config, depth):
  window = None
  if config.get("sliding_window") is not None:
    window = config.size("sliding_window")
  types = config.get("layer_types")
  full, sliding = "full_attention", "sliding_attention"
  alternating = [full if i % 2 else sliding for i in range(min(depth, 10_000))]
  if types is None or (types == alternating and window is not None):
    return window
  if types == len(alternating) * [full]:
    return None
  raise config.error(
    "layer_types",
    types,
    f"{full} in all {depth} layers, or {sliding} (of sliding_window {window}) "
    f"in layers 0, 2, ... and {full} in layers 1, 3, ...",
  )


def _siglip(config) -> Description:
  if config.filled("model_type") == "siglip":
    config = config.with_defaults({"vision_config": {}})
    config = config.section("vision_config", "siglip_vision_model")
  config.lookup({"siglip_vision_model": None}, "model_type")
  config = config.with_defaults(_SIGLIP_DEFAULTS)
  config.must_be("hidden_act", "gelu_pytorch_tanh")
  config.must_be("layer_norm_eps", 1e-6)
  config.must_be("num_channels", 3)
  sizes = config.sizes(_IMG_FIELDS)
  width, heads = sizes["width"], sizes["num_heads"]
  if width % heads:
    raise config.error(
      "num_attention_heads", heads, f"a divisor of the width {width}"
    )
  patch_size = config.side("patch_size")
  tower = sizes | {
    "patch_size": patch_size,
    # Pixels that fill no patch are not looked at.
    "num_positions": (config.side("image_size") // patch_size) ** 2,
  }
  return Description(model_type="siglip_vision_model", image_tower=tower)


def make(
  *,
  img: Mapping[str, Any] | None,
  llm: Mapping[str, Any],
  num_positions: int | None,
  rows: int,
  image_token_id: int | None,
  dtype: str,
) -> dict[str, Any]:
  """Returns the config.json of a model, for transformers 4.41 and later.

  Args:
    img: Fields of vit.Model; None: of a Gemma alone, without image tower.
    llm: Fields of gemma.Model.
    num_positions: Patches of an image; None of a Gemma.
    rows: Of the table of embeddings.
    image_token_id: The one that is replaced by an image; None of a Gemma.
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
      "model_type": "siglip_vision_model",
      **{key: img[field] for field, key in _IMG_FIELDS.items()},
      "hidden_act": "gelu_pytorch_tanh",
      "image_size": patch_size * math.isqrt(num_positions),
      "layer_norm_eps": 1e-6,
      "num_channels": 3,
      "num_image_tokens": num_positions,
      "patch_size": patch_size,
      "projection_dim": llm["width"],
      "torch_dtype": dtype,
      "vision_use_head": False,
    },
    "vocab_size": rows,
  }


def _make_gemma(llm):
  config = {
    "model_type": "gemma",
    **SPECIAL_IDS,
    **{key: llm[field] for field, key in _LLM_FIELDS.items()},
    "attention_bias": False,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": _MAX_POSITIONS,
    "rms_norm_eps": llm.get("norm_eps", 1e-6),
    "rope_theta": 10_000.0,
    "tie_word_embeddings": True,
  }
  scalar = llm.get("query_scale", "head_dim")
  if isinstance(scalar, str):
    divisors = {
      "head_dim": llm["head_dim"],
      "width_per_head": llm["width"] / llm["num_heads"],
    }
    scalar = registry.lookup(divisors, scalar, "query_scale")
  gemma2_fields = {
    "query_pre_attn_scalar": scalar,
    "attn_logit_softcapping": llm.get("attn_logits_softcap"),
    "final_logit_softcapping": llm.get("final_logits_softcap"),
    "sliding_window": llm.get("sliding_window"),
  }
  if not llm.get("post_norms", False):
    plain = dict.fromkeys(gemma2_fields, None)
    plain["query_pre_attn_scalar"] = llm["head_dim"]
    for name, value in gemma2_fields.items():
      if value != plain[name]:
        raise ValueError(
          f"{name} is {value}, expected {plain[name]} in a decoder without "
          "post norms: transformers' Gemma 1 has no other"
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
  window = gemma2_fields["sliding_window"]
  full, sliding = "full_attention", "sliding_attention"
  return {
    **config,
    **gemma2_fields,
    "model_type": "gemma2",
    "query_pre_attn_scalar": int(scalar),
    "layer_types": [
      full if window is None or i % 2 else sliding for i in range(llm["depth"])
    ],
    # transformers 5 wants a number also where no layer has a window, and
    # releases before 4.53 apply it without a look at layer_types: this one
    # reaches over all positions there are.
    "sliding_window": _MAX_POSITIONS if window is None else window,
  }
