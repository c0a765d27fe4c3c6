"""Random small presets written by keras-hub, to compare ours with.

Needs keras-hub and one of its backends alone (KERAS_BACKEND=jax or torch). A
style and a seed name a model: sizes and weights are drawn from the seed, so
that a failure can be repeated.
"""

import random

import keras
import keras_hub
import numpy as np

# Which decoder, and what is peculiar about it:
#   gemma1       one key/value head for all queries
#   gemma1_mha   as many key/value heads as query heads (7B)
#   gemma2       grouped, post norms, both soft caps, a sliding window; 2B, 9B
STYLES = ("gemma1", "gemma1_mha", "gemma2")

# Positions that even layers of Gemma 2 look back; in a PaliGemma from the first
# text token, beside the image.
WINDOW = 5


def random_gemma(folder, style, seed=0, max_shard_size=10, **fields):
  """Saves a preset of GemmaBackbone; returns the backbone.

  Args:
    folder: Where; made.
    style: One of STYLES.
    seed: int, gives sizes and weights. No weight is at its initial value.
    max_shard_size: float, GB a file; a larger model is sharded.
    **fields: Of the backbone, that differ.
  """
  config = _decoder(style, random.Random(f"{style} {seed}"))
  backbone = keras_hub.models.GemmaBackbone(**(config | fields))
  return _save(backbone, folder, seed, max_shard_size)


def random_paligemma(folder, style, seed=0, max_shard_size=10, **fields):
  """Saves a preset of PaliGemmaBackbone; see `random_gemma`."""
  rng = random.Random(f"paligemma {style} {seed}")
  heads = rng.choice([1, 2, 3])
  patch = rng.choice([3, 5, 7])
  side = rng.choice([2, 3])
  config = _decoder(style, rng) | {
    "image_size": patch * side,
    "vit_patch_size": patch,
    "vit_num_heads": heads,
    "vit_hidden_dim": heads * rng.choice([5, 7, 11]),
    "vit_num_layers": rng.choice([1, 2, 3]),
    "vit_intermediate_dim": rng.choice([13, 17, 19]),
    "sliding_window_size": side**2 + WINDOW,
  }
  backbone = keras_hub.models.PaliGemmaBackbone(**(config | fields))
  return _save(backbone, folder, seed, max_shard_size)


def _decoder(style, rng):
  heads, kv_heads = {
    "gemma1": (rng.choice([2, 3, 5]), 1),
    "gemma1_mha": 2 * (rng.choice([2, 3]),),
    "gemma2": rng.choice([(4, 2), (6, 3), (6, 2)]),
  }[style]
  config = {
    "vocabulary_size": rng.choice([97, 101, 103]),
    "num_layers": rng.choice([2, 3, 11]),  # 11: 10 sorts before 2
    "num_query_heads": heads,
    "num_key_value_heads": kv_heads,
    "hidden_dim": heads * rng.choice([5, 7, 11]),
    "intermediate_dim": 2 * rng.choice([23, 29, 31]),
    "head_dim": rng.choice([6, 8, 10]),
  }
  if style == "gemma2":
    config |= {
      "use_post_ffw_norm": True,
      "use_post_attention_norm": True,
      # Small enough to bend the logits of so small a model.
      "attention_logit_soft_cap": rng.choice([0.5, 2.0, 50.0]),
      "final_logit_soft_cap": rng.choice([1.0, 30.0, None]),
      "use_sliding_window_attention": True,
      "sliding_window_size": WINDOW,
    }
  return config


def _save(backbone, folder, seed, max_shard_size):
  rng = np.random.default_rng(seed)
  for variable in backbone.variables:
    draw = rng.standard_normal(variable.shape).astype("float32")
    scale = 0.3 if len(variable.shape) == 1 else variable.shape[-1] ** -0.5
    variable.assign(keras.ops.cast(draw * scale, variable.dtype))
  backbone.save_to_preset(str(folder), max_shard_size=max_shard_size)
  return backbone
