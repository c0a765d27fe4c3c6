"""Pre-trains the tiny model on scenes of printed digits.

    python -m scripts.make_scenes data/printed --digits printed --ask by_name \
      --codec paligemma/assets/tiny_mask_codec.npz --num_train 60000
    python -m trainers.train --config configs/stages/pretrain_scenes.py \
      --workdir runs/pretrain_scenes

This made paligemma/assets/tiny_scenes.npz (see paligemma/assets/README.md).
"""

from ml_collections import ConfigDict

from configs.transfers import scenes


def get_config(argument: str | None = None) -> ConfigDict:
  """As for scanned digits, from the weights that read one digit at a time."""
  config = scenes.get_config(
    "init=paligemma/assets/tiny.npz,batch_size=32,"
    "train=data/printed/train.jsonl,val=data/printed/test_detect.jsonl,"
    + (argument or "")
  )
  config.learning_rate = 1e-3
  config.checkpoint_percent = 0.1
  return config
