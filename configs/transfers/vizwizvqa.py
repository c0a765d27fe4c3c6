"""VizWiz-VQA: questions that blind people ask about their photographs.

Fields: image, question, answers (ten).
"""

from ml_collections import ConfigDict

from configs.transfers.published import ANSWERS, make, tfds


def get_config(argument: str | None = None) -> ConfigDict:
  return make(
    argument,
    data_set="vizwizvqa",
    train=tfds("vizwizvqa", "train", final="train+val"),
    evals={
      x: tfds("vizwizvqa", x, hidden=x == "test") for x in ("val", "test")
    },
    text_len=48,
    **ANSWERS,
    eval_antialias=False,
    total_epochs=10.0,
  )
