"""RSVQA of low resolution: questions about aerial images, without numbers.

Fields: image, question, answers (a list), question_type ("comp", "presence",
"rural_urban", "count" or "area").
"""

from ml_collections import ConfigDict

from configs.transfers.published import ANSWERS, make, tfds


def get_config(argument: str | None = None) -> ConfigDict:
  name = "rsvqa_lr/nonum"
  return make(
    argument,
    data_set="rsvqa_lr",
    train=tfds(name, "train", final="train+val"),
    evals={x: tfds(name, x) for x in ("val", "test")},
    **ANSWERS,
    lower=True,
    metric="rsvqa",
    eval_antialias=False,
    total_epochs=3.0,
    learning_rate=3e-6,
    label_smoothing=0.2,
  )
