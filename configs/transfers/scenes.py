"""Finds handwritten digits in pictures, and cuts them out: boxes and masks.

    python -m scripts.make_scenes data/scenes \
      --codec paligemma/assets/tiny_mask_codec.npz
    python -m trainers.train --config configs/transfers/scenes.py \
      --workdir runs/scenes
"""

from ml_collections import ConfigDict

from configs.transfers import forkme

CODEC = "paligemma/assets/tiny_mask_codec.npz"


def tiny(argument: str) -> ConfigDict:
  """All weights of a tiny model that knows scenes of printed digits."""
  config = forkme.get_config(
    "variant=paligemma_tiny,res=112,batch_size=16,tune=full,"
    "init=paligemma/assets/tiny_scenes.npz,"
    f"tokenizer=paligemma/assets/tiny_tokenizer.model,{argument}"
  )
  config.model.dtype = "float32"  # faster than bfloat16 on a CPU of this size
  config.model.img.remat_policy = "none"
  config.model.llm.remat_policy = "none"
  config.optimizer = "adam"
  config.optimizer_args = dict(b2=0.99)
  config.learning_rate = 5e-4
  config.clip_norm = 1.0
  config.schedule = ((".*", dict(decay="cosine", warmup_percent=0.05)),)
  return config


def get_config(argument: str | None = None) -> ConfigDict:
  """Detection and segmentation of scanned digits."""
  config = tiny(
    "text_len=36,epochs=1,train=data/scenes/train.jsonl,"
    f"val=data/scenes/test_detect.jsonl,{argument or ''}"
  )
  config.log_steps = 100

  # Boxes and masks are asked for, and scored, apart: before and after.
  segment = config.evals.val.source.path.replace("detect", "segment")
  detection = config.evals.val.to_dict() | dict(
    batch_size=50, max_decode_len=24
  )
  del detection["every_percent"]
  config.evals.detection = detection
  config.evals.segmentation = detection | dict(
    source=dict(kind="jsonl", path=segment), mask_codec=CODEC
  )
  del config.evals["val"]
  return config
