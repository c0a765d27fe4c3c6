"""TallyQA: how many objects of a kind? And CountBenchQA without training on it.

Fields: image, question, answer (a number), issimple (1, 0, or -1 for unknown;
may be missing).
"""

from ml_collections import ConfigDict

from configs.transfers.published import at, make, parse, tfds
from paligemma.data import text_ops


def get_config(argument: str | None = None) -> ConfigDict:
  arg = parse(argument)
  return make(
    arg,
    data_set="tallyqa",
    train=tfds("tallyqa", "train"),
    evals={
      "test": tfds("tallyqa", "test"),
      "countbenchqa": tfds(
        "countbenchqa",
        "huggingface",
        fields={"number": "answer"},
        file="countbenchqa",
      ),
    },
    answer_ops=(text_ops.Text("answer", "suffix"),),
    metric="tallyqa",
    eval_batch_size=256,
    total_epochs=2.0,
    learning_rate=at(arg.res, {224: 1e-5, 896: 7e-6}),
    weight_decay=at(arg.res, {224: 0.0, 448: 1e-6, 896: 7e-7}),
  )
