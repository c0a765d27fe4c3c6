"""OK-VQA: questions that ask for knowledge from outside of the picture.

Fields: image, question, answers (ten).
"""

from ml_collections import ConfigDict

from configs.transfers.published import ANSWERS, make, tfds


def get_config(argument: str | None = None) -> ConfigDict:
  return make(
    argument,
    data_set="okvqa",
    train=tfds("okvqa", "train[:-10%]", final="train"),
    evals={
      "minival": tfds("okvqa", "train[-10%:]"),
      "val": tfds("okvqa", "val"),
    },
    **ANSWERS,
    batch_size=128,
    total_epochs=10.0,
    learning_rate=5e-6,
  )
