"""SciCap: the first sentence of the caption of a figure without parts.

Fields: image, caption (lower case, in words, without "figure 3:").
"""

from ml_collections import ConfigDict

from configs.transfers.published import make, tfds
from paligemma.data import text_ops


def get_config(argument: str | None = None) -> ConfigDict:
  name = "scicap/first_sentence_subfig_no"
  theirs = "caption/lowercase_and_token_and_remove_figure_index"
  fields = {theirs: "caption"}
  return make(
    argument,
    data_set="scicap",
    train=tfds(name, "train", final="train+val", fields=fields),
    evals={x: tfds(name, x, fields=fields) for x in ("val", "test")},
    text_len=96,
    ops=(text_ops.Format("caption en"),),
    answer_ops=(text_ops.Copy("caption", "suffix"),),
    metric="captions",
    antialias=False,
    total_epochs=80.0,
    learning_rate=3e-5,
    label_smoothing=0.1,
    dropout=0.1,
  )
