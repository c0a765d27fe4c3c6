"""Stage 2, first part: on at 448 pixels, with longer texts.

    python -m trainers.train --config configs/stages/stage2_448.py \
      --workdir runs/stage2_448
"""

from ml_collections import ConfigDict

from configs.stages import pretraining


def get_config(argument: str | None = None) -> ConfigDict:
  """Arguments: those of pretraining.parse; init, the stage before."""
  arg = pretraining.parse(
    argument,
    init="runs/stage1",
    res=448,
    text_len=512,
    batch_size=1024,
    examples=50_000_000,
    seen=1_000_000_000,
  )
  return pretraining.make(arg, arg.init, fine=4.0)
