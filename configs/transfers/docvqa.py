"""DocVQA: questions about scanned documents.

Fields: image, question, answers (a list).

The test server's ANLS, which is the published score, differs in details from
that of this metric: metric="anls" gives both.
"""

from ml_collections import ConfigDict

from configs.transfers.published import make, parse, tfds
from paligemma.data import text_ops


def get_config(argument: str | None = None) -> ConfigDict:
  arg = parse(argument, res=896)
  return make(
    arg,
    data_set="docvqa",
    train=tfds("docvqa", "train[:-5%]", final="train+val"),
    evals={
      "minival": tfds("docvqa", "train[-5%:]"),
      "val": tfds("docvqa", "val"),
      "test": tfds("docvqa", "test", hidden=True),
    },
    ops=(text_ops.Copy("question", "prefix"),),
    answer_ops=(text_ops.Choice("answers", "suffix"),),
    metric="vqa(lower=True)",
    eval_batch_size=256,
    total_epochs=10.0,
    weight_decay=1e-6,
  )
