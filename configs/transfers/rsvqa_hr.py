"""RSVQA of high resolution: questions about aerial images, without numbers.

Fields: image, question, answers (a list), question_type ("comp", "presence",
"rural_urban", "count" or "area").
"""

from ml_collections import ConfigDict

from configs.transfers.published import ANSWERS, make, tfds


def get_config(argument: str | None = None) -> ConfigDict:
  name = "rsvqa_hr/nonum"
  return make(
    argument,
    data_set="rsvqa_hr",
    train=tfds(name, "train", final="train+val"),
    evals={
      "val": tfds(name, "val", last=True),
      "test": tfds(name, "test", last=True),
      "test2": tfds(name, "test_2", last=True),
    },
    **ANSWERS,
    lower=True,
    metric="rsvqa",
    eval_antialias=False,
    total_epochs=1.0,
  )
