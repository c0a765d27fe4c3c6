"""Fine-tunes all weights of a published SigLIP on COCO captions.

    python -m trainers.train --config configs/siglip/finetune.py:\
      init=weights/siglip2_b16_224 --workdir runs/finetune

Weights that were trained do not decay, which would undo what they know
(arXiv:2303.15343, section 4.5); small steps are this project's choice.
"""

from ml_collections import ConfigDict

from configs import common
from configs.siglip import forkme, lit_coco


def get_config(argument: str | None = None) -> ConfigDict:
  """Arguments: those of forkme but train."""
  config = forkme.get_config(argument)
  lit_coco.read_coco(config)
  config.weight_decay = 0.0
  return common.complete(config)
