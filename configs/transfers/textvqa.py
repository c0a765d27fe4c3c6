"""TextVQA: questions about text in pictures.

Fields: image (upright: the data set turns those that Open Images has turned),
question, answers (ten).
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
    train=tfds("textvqa", "train+val" if arg.final_split else "train"),
    evals={
      "val": tfds("textvqa", "val"),
      "test": tfds("textvqa", "test", last=True, hidden=True),
    },
    text_len=32,
    ops=(text_ops.Format("answer en {question}"),),
    answer_ops=(text_ops.Choice("answers", "suffix", replace=False),),
    answer_key="answers",
    metric="textvqa",
    eval_batch_size=256,
    total_epochs=published.at(arg.res, {224: 5.0, 448: 10.0}),
    learning_rate=3e-6,
    weight_decay=published.at(arg.res, {224: 0.0, 448: 3e-7, 896: 0.0}),
  )
