"""Stage 0: a SigLIP on pictures and captions, from random weights.

    python -m trainers.train --config configs/stages/stage0_siglip.py \
      --workdir runs/stage0_siglip

PaliGemma began with a published SigLIP; that is img=siglip_so400m14_224 of
stage1.py, and needs no stage 0. As published (arXiv:2303.15343): the sigmoid
loss, batches of 32,768, b2=0.95. Chosen here: the rest.
"""

from ml_collections import ConfigDict

from configs.siglip import forkme
from configs.stages import pretraining


def get_config(argument: str | None = None) -> ConfigDict:
  """The arguments of configs/siglip/forkme.py; all weights train."""
  config = forkme.get_config(
    "variant=siglip_so400m14_224,batch_size=32768,epochs=1,"
    f"tokenizer=c4_en.model,train=data/pairs/train.jsonl,{argument or ''}"
  )
  return pretraining.from_nothing(config, learning_rate=1e-3)
