"""AI2D: multiple-choice questions about diagrams of a school book.

Fields: image, question, choices, answer (one of the choices). Where a question
is about parts with letters, these are drawn on the image in the data set.
"""

from ml_collections import ConfigDict

from configs.transfers.published import make, tfds
from paligemma.data import text_ops


def get_config(argument: str | None = None) -> ConfigDict:
  fields = {"possible_answers": "choices"}
  return make(
    argument,
    data_set="ai2d",
    train=tfds("ai2d", "train[:-1024]", final="train", fields=fields),
    evals={
      "minival": tfds("ai2d", "train[-1024:]", fields=fields),
      "test": tfds("ai2d", "test", fields=fields),
    },
    text_len=128,
    ops=(text_ops.MultipleChoice("choices"),),
    eval_antialias=False,
    total_epochs=10.0,
    weight_decay=1e-6,
  )
