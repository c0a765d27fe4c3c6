"""RSVQA of low resolution: questions about aerial images, without numbers.

Fields: image, question, answers (a list), question_type ("comp", "presence",
"rural_urban", "count" or "area").
"""

from ml_collections import ConfigDict

from configs.transfers.published import make, parse, tfds
from paligemma.data import text_ops


def get_config(argument: str | None = None) -> ConfigDict:
  arg = parse(argument)
  name = "rsvqa_lr/nonum"
  return make(
    arg,
    train=tfds(name, "train", final="train+val"),
    evals={x: tfds(name, x) for x in ("val", "test")},
    text_len=32,
    ops=(text_ops.Format("answer en {question}"),),
    answer_ops=(
      text_ops.Choice("answers", "suffix", replace=False),
      text_ops.Lower("suffix"),
    ),
    metric="rsvqa",
    eval_antialias=False,
    total_epochs=3.0,
    learning_rate=3e-6,
    label_smoothing=0.2,
  )
