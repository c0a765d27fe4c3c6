"""OK-VQA: questions that ask for knowledge from outside of the picture.

Fields: image, question, answers (ten).
"""

from ml_collections import ConfigDict

from configs.transfers.published import make, parse, tfds
from paligemma.data import text_ops


def get_config(argument: str | None = None) -> ConfigDict:
  arg = parse(argument)
  return make(
    arg,
    train=tfds("okvqa", "train[:-10%]", final="train"),
    evals={
      "minival": tfds("okvqa", "train[-10%:]"),
      "val": tfds("okvqa", "val"),
    },
    text_len=32,
    ops=(text_ops.Format("answer en {question}"),),
    answer_ops=(text_ops.Choice("answers", "suffix", replace=False),),
    metric="vqa",
    batch_size=128,
    total_epochs=10.0,
    learning_rate=5e-6,
  )
