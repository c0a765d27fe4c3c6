"""A-OKVQA, direct answers.

Fields: image, question, direct_answers (ten).
"""

from ml_collections import ConfigDict

from configs.transfers import published
from configs.transfers.published import tfds
from paligemma.data import text_ops


def get_config(argument: str | None = None) -> ConfigDict:
  """Arguments: those of published.parse."""
  arg = published.parse(argument)
  return published.make(
    arg,
    train=tfds("aokvqa", "train+val" if arg.final_split else "train"),
    evals={
      "val": tfds("aokvqa", "val"),
      "test": tfds("aokvqa", "test", last=True, hidden=True),
    },
    text_len=32,
    ops=(text_ops.Format("answer en {question}"),),
    answer_ops=(text_ops.Choice("direct_answers", "suffix", replace=False),),
    answer_key="direct_answers",
    metric="vqa",
    batch_size=128,
    eval_batch_size=256,
    total_epochs=10.0,
    learning_rate=5e-6,
  )
