"""LiT on COCO captions: the text tower learns, the image tower is locked.

    python -m trainers.train --config configs/siglip/lit_coco.py:\
      init=weights/siglip_b16_224 --workdir runs/lit_coco

Values of big_vision's configs/proj/image_text/siglip_lit_coco.py
(arXiv:2303.15343, arXiv:2111.07991). There the text tower is BERT, and images
go through randaug(2, 10), which is left out here.
"""

from ml_collections import ConfigDict

from configs import common
from configs.siglip import forkme
from configs.transfers import published
from paligemma.data import image_ops


def read_coco(config: ConfigDict) -> None:
  """Trains on the captions of COCO, half of the images mirrored."""
  coco = published.tfds(
    "coco_captions", "train", fields={"captions/text": "captions"}
  )
  config.train.sources = dict(main=coco.source)
  config.train.augment = (image_ops.Flip(),)
  config.train.too_long = "truncate"


def get_config(argument: str | None = None) -> ConfigDict:
  """Arguments: those of forkme but train."""
  config = forkme.get_config(
    "variant=siglip_b16_224,tokenizer=weights/siglip_b16_224,tune=lit,"
    "batch_size=512," + (argument or "")
  )
  read_coco(config)
  common.unset_others(config, ["total_steps"])
  config.total_steps = 5000
  # As the batches are small.
  config.model.bias_init = -2.71
  config.weight_decay = 0.01
  config.schedule = ((".*", dict(decay="cosine", warmup_steps=150)),)
  config.optimizer_args = dict(b2=0.999)
  return common.complete(config)
