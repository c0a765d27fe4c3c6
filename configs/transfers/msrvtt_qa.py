"""MSR-VTT: questions about videos (114,080 to train on in April 2024).

Fields: video, question, answer.
"""

from configs.transfers import published
from paligemma.data import text_ops


def get_config(argument=None):
  """Arguments: those of published.parse, num_frames and stride."""
  arg = published.parse(
    argument, data="data/msrvtt_qa", num_frames=16, stride=9
  )
  config = published.make(
    arg,
    clip=published.Clip(arg.num_frames, arg.stride),
    text_len=64,
    ops=(text_ops.Format("answer en {question}"),),
    answer_ops=(text_ops.Copy("answer", "suffix"),),
    answer_key="answer",
    metric="vqa",
    batch_size=128,
    eval_batch_size=128,
    tune="decoder",
  )
  config.total_epochs = 1.0
  config.learning_rate = 1e-5
  return config
