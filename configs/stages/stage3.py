"""Stage 3: transfer to your own task, from the output of stage 1 or 2.

    python -m trainers.train --workdir runs/mine --config \
      configs/stages/stage3.py:init=runs/stage1,res=224,train=a.jsonl,val=b.jsonl

The published tasks are configs/transfers/*.py, with init=runs/stage1 likewise;
configs/transfers/mix.py is several at a time.
"""

from ml_collections import ConfigDict

from configs.transfers import forkme


def get_config(argument: str | None = None) -> ConfigDict:
  """The arguments of forkme; by default all weights train, by Adam."""
  return forkme.get_config(
    f"res=448,tune=full,init=runs/stage2_448,{argument or ''}"
  )
