"""Screen2Words: what the screen of an app is for.

Fields: image, captions (five).
"""

from ml_collections import ConfigDict

from configs.transfers import published
from configs.transfers.published import tfds
from paligemma.data import text_ops


def get_config(argument: str | None = None) -> ConfigDict:
  """Arguments: those of published.parse."""
  arg = published.parse(argument)
  fields = (("summary", "captions"),)
  train = "train+dev" if arg.final_split else "train"
  return published.make(
    arg,
    train=tfds("screen2_words", train, fields=fields),
    evals={
      "dev": tfds("screen2_words", "dev", fields=fields),
      "test": tfds("screen2_words", "test", fields=fields),
    },
    text_len=24,
    ops=(text_ops.Format("caption en"),),
    answer_ops=(text_ops.Choice("captions", "suffix", replace=False),),
    answer_key="captions",
    metric="captions",
    antialias=False,
    total_epochs=10.0,
    learning_rate=1e-5,
    label_smoothing=0.2,
    dropout=0.3,
  )
