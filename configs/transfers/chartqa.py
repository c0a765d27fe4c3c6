"""ChartQA: questions about charts, written by people or made by a model.

Fields: image, question, answer. The published score is the mean of relaxed_acc
over the two kinds of questions.
"""

from ml_collections import ConfigDict

from configs.transfers.published import make, parse, tfds
from paligemma.data import text_ops

# Examples in the paper (arXiv:2203.10244), by which the kinds are mixed.
SIZES = {"human": 7_398, "augmented": 20_901}


def get_config(argument: str | None = None) -> ConfigDict:
  arg = parse(argument, res=896)
  return make(
    arg,
    data_set="chartqa",
    train={
      kind: tfds(
        f"chartqa/{kind}",
        "train",
        final="train+val",
        weight=float(size),
        file=f"{{}}_{kind}",
      )
      for kind, size in SIZES.items()
    },
    evals={
      f"{split}_{kind}": tfds(f"chartqa/{kind}", split, file=f"{{}}_{kind}")
      for split in ("val", "test")
      for kind in SIZES
    },
    text_len=48,
    ops=(text_ops.Copy("question", "prefix"),),
    metric="chartqa",
    total_epochs=30.0,
    weight_decay=1e-6,
    label_smoothing=0.2,
    dropout=0.1,
  )
