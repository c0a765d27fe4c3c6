"""SciCap: the first sentence of the caption of a figure without parts.

Fields: image, caption (lower case, in words, without "figure 3:").
"""

from ml_collections import ConfigDict

from configs.transfers import published
from configs.transfers.published import tfds
from paligemma.data import text_ops

_CAPTION = "caption/lowercase_and_token_and_remove_figure_index"


def get_config(argument: str | None = None) -> ConfigDict:
  """Arguments: those of published.parse."""
  arg = published.parse(argument)
  name, fields = "scicap/first_sentence_subfig_no", ((_CAPTION, "caption"),)
  train = "train+val" if arg.final_split else "train"
  return published.make(
    arg,
    train=tfds(name, train, fields=fields),
    evals={
      "val": tfds(name, "val", fields=fields),
      "test": tfds(name, "test", fields=fields),
    },
    text_len=96,
    ops=(text_ops.Format("caption en"),),
    answer_ops=(text_ops.Copy("caption", "suffix"),),
    answer_key="caption",
    metric="captions",
    antialias=False,
    total_epochs=80.0,
    learning_rate=3e-5,
    label_smoothing=0.1,
    dropout=0.1,
  )
