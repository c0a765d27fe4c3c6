"""Learns drawn shapes and their captions from nothing: a fork of forkme.

    python -m scripts.make_shapes data/shapes
    python -m trainers.train --config configs/siglip/shapes.py \
      --workdir runs/shapes
"""

from ml_collections import ConfigDict

from configs.siglip import forkme

_TOWER = dict(width=64, depth=3, mlp_dim=256, num_heads=4, remat_policy="none")


def get_config(argument: str | None = None) -> ConfigDict:
  """Two towers of 0.2 million parameters each, or another `tune` of them."""
  config = forkme.get_config(
    "variant=siglip_tiny,dtype=float32,res=28,batch_size=32,epochs=14,"
    "tokenizer=paligemma/assets/tiny_tokenizer.model,"
    "train=data/shapes/train.jsonl,val=data/shapes/val.jsonl,label=label,"
    + (argument or "")
  )
  config.model.img.update(_TOWER, patch_size=7)
  config.model.txt.update(_TOWER, text_len=10, num_classes=64)
  if config.loss == "sigmoid":
    config.model.bias_init = -2.71  # as the batches are small
  config.learning_rate = 2e-3  # so small a model takes larger steps
  config.log_steps = 100
  for evaluator in config.evals.values():
    evaluator.every_percent = 0.25
  if "zero_shot" in config.evals:
    config.evals.zero_shot.templates = ("a {}", "a picture of a {}")
  return config
