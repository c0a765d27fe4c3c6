"""RSVQA of high resolution: questions about aerial images, without numbers.

Fields: image, question, answers (a list), question_type ("comp", "presence",
"rural_urban", "count" or "area").
"""

from ml_collections import ConfigDict

from configs.transfers import published
from configs.transfers.published import tfds
from paligemma.data import text_ops


def get_config(argument: str | None = None) -> ConfigDict:
  """Arguments: those of published.parse."""
  arg = published.parse(argument)
  name = "rsvqa_hr/nonum"
  return published.make(
    arg,
    train=tfds(name, "train+val" if arg.final_split else "train"),
    evals={
      "val": tfds(name, "val", last=True),
      "test": tfds(name, "test", last=True),
      "test2": tfds(name, "test_2", last=True),
    },
    text_len=32,
    ops=(text_ops.Format("answer en {question}"),),
    answer_ops=(
      text_ops.Choice("answers", "suffix", replace=False),
      text_ops.Lower("suffix"),
    ),
    answer_key="answers",
    metric="rsvqa",
    eval_antialias=False,
    total_epochs=1.0,
    learning_rate=1e-5,
  )
