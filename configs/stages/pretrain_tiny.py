"""Pre-trains paligemma_tiny from scratch on drawn pictures, everything at once.

    python -m scripts.assets.draw_pictures data/pictures --num 60000 --seed 0
    python -m trainers.train --config configs/stages/pretrain_tiny.py \
      --workdir runs/pretrain_tiny

This made paligemma/assets/tiny.npz (see paligemma/assets/README.md).
"""

from ml_collections import ConfigDict

from configs.transfers import forkme


def get_config(argument: str | None = None) -> ConfigDict:
  """Adam on all parameters, in float32 as the model is small."""
  config = forkme.get_config(
    "variant=paligemma_tiny,res=56,text_len=32,batch_size=64,epochs=2,"
    "tune=full,tokenizer=paligemma/assets/tiny_tokenizer.model,"
    "train=data/pictures/train.jsonl,val=data/pictures/val.jsonl,"
    + (argument or "")
  )
  config.model.dtype = "float32"
  config.model.img.remat_policy = "none"
  config.model.llm.remat_policy = "none"
  config.train.num_workers = 0
  config.optimizer = "adam"
  config.optimizer_args = dict(b2=0.95)
  config.learning_rate = 1e-3
  config.schedule = ((".*", dict(decay="cosine", warmup_percent=0.05)),)
  config.weight_decay = 1e-4
  config.clip_norm = 1.0
  config.log_steps = 100
  config.evals.val.max_decode_len = 28
  return config
