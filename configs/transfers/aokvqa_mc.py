"""A-OKVQA, multiple choice: the model writes out one of the answers.

Fields: image, question, choices (four), correct (the index of the right one,
from 0).
"""

from ml_collections import ConfigDict

from configs.transfers.published import make, tfds
from paligemma.data import text_ops


def get_config(argument: str | None = None) -> ConfigDict:
  choices = {"multiple_choice_possible_answers": "choices"}
  fields = choices | {"multiple_choice_correct_idx": "correct"}
  return make(
    argument,
    data_set="aokvqa",
    train=tfds("aokvqa", "train", final="train+val", fields=fields),
    evals={
      "val": tfds("aokvqa", "val", fields=fields),
      "test": tfds("aokvqa", "test", fields=choices, hidden=True),
    },
    text_len=128,
    ops=(text_ops.MultipleChoice("choices"),),
    score_ops=(text_ops.Pick("choices", "correct", "answer"),),
    batch_size=128,
    eval_batch_size=256,
    total_epochs=15.0,
    learning_rate=5e-6,
  )
