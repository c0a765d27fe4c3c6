"""Widget Captioning: what the element of an app does that a red box surrounds.

Fields: image, captions, bbox (ymin, xmin, ymax, xmax in [0, 1]).
"""

from ml_collections import ConfigDict

from configs.transfers import published
from configs.transfers.published import tfds
from paligemma.data import image_ops, text_ops


def get_config(argument: str | None = None) -> ConfigDict:
  """Arguments: those of published.parse."""
  arg = published.parse(argument)
  fields = (("texts", "captions"),)
  train = "train+dev" if arg.final_split else "train"
  return published.make(
    arg,
    train=tfds("widgetcap", train, fields=fields),
    evals={
      "dev": tfds("widgetcap", "dev", fields=fields),
      "test": tfds("widgetcap", "test", fields=fields),
    },
    text_len=32,
    ops=(
      image_ops.Resize((arg.res, arg.res)),  # for a line of one pixel
      image_ops.DrawBox("bbox"),
      text_ops.Format("caption en"),
    ),
    answer_ops=(text_ops.Choice("captions", "suffix", replace=False),),
    answer_key="captions",
    metric="captions",
    batch_size=64,
    total_epochs=4.0,
    learning_rate=3e-6,
    weight_decay=3e-7,
    label_smoothing=0.1,
    dropout=0.1,
  )
