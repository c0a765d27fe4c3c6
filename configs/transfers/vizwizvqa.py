"""VizWiz-VQA: questions that blind people ask about their photographs.

Fields: image, question, answers (ten).
"""

from ml_collections import ConfigDict

from configs.transfers.published import make, parse, tfds
from paligemma.data import text_ops


def get_config(argument: str | None = None) -> ConfigDict:
  arg = parse(argument)
  return make(
    arg,
    train=tfds("vizwizvqa", "train", final="train+val"),
    evals={
      "val": tfds("vizwizvqa", "val"),
      "test": tfds("vizwizvqa", "test", last=True, hidden=True),
    },
    text_len=48,
    ops=(text_ops.Format("answer en {question}"),),
    answer_ops=(text_ops.Choice("answers", "suffix", replace=False),),
    metric="vqa",
    eval_antialias=False,
    total_epochs=10.0,
    learning_rate=1e-5,
  )
