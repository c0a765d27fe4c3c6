"""Screen2Words: what the screen of an app is for.

Fields: image, captions (five).
"""

from configs.transfers import published
from configs.transfers.published import tfds
from paligemma.data import text_ops


def get_config(argument=None):
  """Arguments: those of published.parse."""
  arg = published.parse(argument)
  fields = (("summary", "captions"),)
  train = "train+dev" if arg.final_split else "train"
  config = published.make(
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
  )
  config.total_epochs = 10.0
  config.learning_rate = 1e-5
  config.label_smoothing = 0.2
  config.model.llm.dropout = 0.3
  return config
