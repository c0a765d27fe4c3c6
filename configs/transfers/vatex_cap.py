"""VATEX: captions of videos (22,315 to train on in April 2024).

Fields: video, captions (a list).
"""

from configs.transfers import published
from paligemma.data import text_ops


def get_config(argument=None):
  """Arguments: those of published.parse, num_frames and stride."""
  arg = published.parse(
    argument, data="data/vatex_cap", num_frames=16, stride=7
  )
  config = published.make(
    arg,
    clip=published.Clip(arg.num_frames, arg.stride),
    text_len=64,
    ops=(text_ops.Format("caption en"),),
    answer_ops=(text_ops.Choice("captions", "suffix"),),
    answer_key="captions",
    metric="captions",
    batch_size=128,
    eval_batch_size=128,
  )
  config.total_epochs = 10.0
  config.learning_rate = 3e-6
  config.weight_decay = 3e-7
  return config
