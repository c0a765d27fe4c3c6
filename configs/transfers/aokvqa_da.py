"""A-OKVQA, direct answers.

Fields: image, question, direct_answers (ten).
"""

from ml_collections import ConfigDict

from configs.transfers.published import make, tfds
from paligemma.data import text_ops


def get_config(argument: str | None = None) -> ConfigDict:
  return make(
    argument,
    data_set="aokvqa",
    train=tfds("aokvqa", "train", final="train+val"),
    evals={x: tfds("aokvqa", x, hidden=x == "test") for x in ("val", "test")},
    answer_ops=(text_ops.Choice("direct_answers", "suffix", replace=False),),
    batch_size=128,
    eval_batch_size=256,
    total_epochs=10.0,
    learning_rate=5e-6,
  )
