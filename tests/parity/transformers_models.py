"""Random small PaliGemma models of transformers, to compare ours with.

Needs torch and transformers alone. A style and a seed name a model: sizes and
weights are drawn from the seed, so that a failure can be repeated.
"""

import random

import torch
import transformers

# Which decoder, and what is peculiar about it:
#   paligemma1       Gemma 1, one key/value head for all queries
#   paligemma1_mha   Gemma 1, as many key/value heads as query heads (7B)
#   paligemma2_2b    Gemma 2, grouped; queries divided by the root of the head
#                    dim, or of 256, the default of transformers
#   paligemma2_27b   Gemma 2, grouped; queries divided by the root of the width
#                    per head, which is not the head dim
STYLES = (
  "paligemma1",
  "paligemma1_mha",
  "paligemma2_2b",
  "paligemma2_27b",
)


def random_model(style, seed=0, sliding_window=None, image_token_inside=False):
  """Returns PaliGemmaForConditionalGeneration, float32, eager, in eval mode.

  Args:
    style: One of STYLES.
    seed: int, gives sizes and weights. No weight is at its initial value: norm
      scales and biases are random too.
    sliding_window: int, positions that even layers of Gemma 2 look back.
      Default None: all layers attend to everything.
    image_token_inside: bool. Default False, as in the official models: the
      image token follows the last piece and the table is padded to the next
      multiple of 64 rows. True: its row lies among the others.
  """
  rng = random.Random(f"{style} {seed}")
  text = _text_config(style, rng, sliding_window)
  config = transformers.PaliGemmaConfig(
    vision_config=_vision_config(rng),
    text_config=text,
    image_token_index=_image_token_id(rng, text, image_token_inside),
    hidden_size=text["hidden_size"],
    projection_dim=text["hidden_size"],
    vocab_size=text["vocab_size"],
    pad_token_id=0,
    eos_token_id=1,
    bos_token_id=2,
  )
  config._attn_implementation = "eager"
  model = transformers.PaliGemmaForConditionalGeneration(config).eval()
  _randomize(model, seed)
  return model


def _vision_config(rng):
  heads = rng.choice([1, 2, 3])
  patch = rng.choice([3, 5, 7])
  return {
    "model_type": "siglip_vision_model",
    "hidden_size": heads * rng.choice([5, 7, 11]),
    "intermediate_size": rng.choice([13, 17, 19]),
    "num_hidden_layers": rng.choice([1, 2, 3]),
    "num_attention_heads": heads,
    "patch_size": patch,
    "image_size": patch * rng.choice([2, 3]),
    "vision_use_head": False,
  }


def _text_config(style, rng, sliding_window):
  heads, kv_heads = {
    "paligemma1": (rng.choice([2, 3, 5]), 1),
    "paligemma1_mha": 2 * (rng.choice([2, 3]),),
    "paligemma2_2b": rng.choice([(4, 2), (6, 3), (6, 2)]),
    "paligemma2_27b": rng.choice([(4, 2), (6, 3), (6, 2)]),
  }[style]
  head_dim = rng.choice([6, 8, 10])
  width_per_head = rng.choice([5, 7, 11])
  config = {
    "model_type": "gemma",
    "hidden_size": heads * width_per_head,
    "intermediate_size": rng.choice([23, 29, 31]),
    "num_hidden_layers": rng.choice([2, 3]),
    "num_attention_heads": heads,
    "num_key_value_heads": kv_heads,
    "head_dim": head_dim,
    "vocab_size": 64 * rng.choice([2, 3]),
    "rms_norm_eps": rng.choice([1e-6, 1e-5]),
  }
  if style.startswith("paligemma1"):
    assert sliding_window is None, "Gemma 1 has none"
    return config
  config["model_type"] = "gemma2"
  config["query_pre_attn_scalar"] = {
    "paligemma2_2b": rng.choice([head_dim, 256]),
    "paligemma2_27b": width_per_head,
  }[style]
  # Small enough to bend the logits of so small a model.
  config["attn_logit_softcapping"] = rng.choice([0.5, 2.0, 50.0])
  config["final_logit_softcapping"] = rng.choice([1.0, 30.0, None])
  if sliding_window is None:
    config["layer_types"] = config["num_hidden_layers"] * ["full_attention"]
  else:
    config["sliding_window"] = sliding_window
  return config


def _image_token_id(rng, text, inside):
  if inside:
    return text["vocab_size"] - 64 - rng.randrange(1, 32)
  return text["vocab_size"] - rng.choice([1, 33, 64])


def _randomize(model, seed):
  generator = torch.Generator().manual_seed(seed)
  with torch.no_grad():
    for parameter in model.parameters():
      draw = torch.randn(parameter.shape, generator=generator)
      if parameter.ndim == 1:  # norm scales and biases
        parameter.copy_(parameter + 0.3 * draw)
      else:
        parameter.copy_(draw / parameter[0].numel() ** 0.5)


def random_siglip(seed, naflex=False):
  """Returns a SiglipModel or Siglip2Model, float32, eager, in eval mode.

  Args:
    seed: int, gives sizes and weights, as of `random_model`.
    naflex: bool, whether images have any aspect ratio.
  """
  rng = random.Random(f"siglip {seed}")

  def tower():
    heads = rng.choice([1, 2, 3])
    return {
      "hidden_size": heads * rng.choice([5, 7, 11]),
      "intermediate_size": rng.choice([13, 17, 19]),
      "num_hidden_layers": rng.choice([1, 2, 3]),
      "num_attention_heads": heads,
    }

  patch = rng.choice([3, 5, 7])
  vision, text = tower() | {"patch_size": patch}, tower()
  text["vocab_size"] = rng.choice([31, 37])
  text["max_position_embeddings"] = rng.choice([7, 11])
  text["projection_size"] = vision["hidden_size"]
  if naflex:
    vision["num_patches"] = rng.choice([9, 16])
    config = transformers.Siglip2Config(text_config=text, vision_config=vision)
    kind = transformers.Siglip2Model
  else:
    vision["image_size"] = patch * rng.choice([2, 3])
    config = transformers.SiglipConfig(text_config=text, vision_config=vision)
    kind = transformers.SiglipModel
  config._attn_implementation = "eager"
  model = kind(config).eval()
  _randomize(model, seed)
  return model
