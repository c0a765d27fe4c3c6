"""Trains a SigLIP 2 from nothing: the sigmoid loss and that of a decoder.

    python -m trainers.train --config configs/siglip/siglip2.py:\
      variant=siglip2_so400m14_224,train=web.jsonl --workdir runs/siglip2

Values of arXiv:2502.14786, section 2: Adam at 1e-3, decoupled decay 1e-4,
gradients of norm 1 at most, batches of 32k, 20k steps of warm-up, 40B examples,
both losses with equal weight, half of the captions predicted in parallel.
decoder=0 leaves the decoder out. distill adds self-distillation and masked
prediction in the last fifth: 0.25 for B, 0.5 for L and g, 1 for So400m there.
"""

from ml_collections import ConfigDict

from configs import common
from configs.siglip import forkme


def get_config(argument: str | None = None) -> ConfigDict:
  """Arguments: those of forkme but epochs."""
  config = forkme.get_config(f"batch_size=32768,decoder=1,{argument or ''}")
  common.unset_others(config, ["total_examples"])
  config.total_examples = 40_000_000_000
  config.train.too_long = "truncate"
  config.learning_rate = 1e-3
  config.weight_decay = 1e-4
  config.schedule = ((".*", dict(decay="cosine", warmup_steps=20_000)),)
  return common.complete(config)
