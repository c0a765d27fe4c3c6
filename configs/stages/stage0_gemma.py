"""Stage 0: a Gemma, alone, on texts, from random weights.

    python -m trainers.train --config configs/stages/stage0_gemma.py \
      --workdir runs/stage0_gemma

PaliGemma began with a published Gemma; that is llm=gemma_2b_en of stage1.py,
and needs no stage 0. How Gemma was trained (arXiv:2403.08295) is published in
outline alone: 3 trillion tokens in texts of 8192. Chosen here: Adam with
b2=0.95 and decay, infinite rsqrt schedule.
"""

from ml_collections import ConfigDict

from configs.gemma import forkme
from configs.stages import pretraining


def get_config(argument: str | None = None) -> ConfigDict:
  """The arguments of configs/gemma/forkme.py; all weights train."""
  config = forkme.get_config(
    "variant=gemma_2b,text_len=8192,batch_size=256,tune=full,epochs=1,"
    f"train=data/texts/train.jsonl,{argument or ''}"
  )
  return pretraining.from_nothing(config, learning_rate=3e-4)
