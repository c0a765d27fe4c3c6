"""Stage 2, second part: on at 896 pixels.

    python -m trainers.train --config configs/stages/stage2_896.py \
      --workdir runs/stage2_896
"""

from ml_collections import ConfigDict

from configs.stages import pretraining


def get_config(argument: str | None = None) -> ConfigDict:
  """Arguments: those of pretraining.parse; init, the stage before."""
  arg = pretraining.parse(
    argument,
    init="runs/stage2_448",
    res=896,
    text_len=512,
    batch_size=256,
    examples=10_000_000,
    seen=1_050_000_000,
  )
  return pretraining.make(arg, arg.init, fine=8.0)
