"""Finds objects in photos of your own, with a tiny model: README's example.

    python -m scripts.import_data --from coco --task detect export data/mine
    python -m trainers.train --config configs/transfers/photos.py \
      --workdir runs/photos

For PaliGemma itself use forkme.py, with augment=true as here.
"""

import dataclasses

from ml_collections import ConfigDict

from configs.transfers import scenes

STEPS = 16  # of a side, at whose ends the boxes of the pre-training lie


def get_config(argument: str | None = None) -> ConfigDict:
  """All weights of a tiny model that knows scenes of printed digits."""
  config = scenes.tiny(
    "text_len=48,epochs=120,augment=true,train=data/mine/train.jsonl,val=0.1,"
    + (argument or "")
  )
  config.train.augment = tuple(
    dataclasses.replace(op, steps=STEPS) if hasattr(op, "steps") else op
    for op in config.train.augment
  )
  config.keep_best = "val/AP50"
  return config
