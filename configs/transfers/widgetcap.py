"""Widget Captioning: what the element of an app does that a red box surrounds.

Fields: image, captions, bbox (ymin, xmin, ymax, xmax in [0, 1]).
"""

from ml_collections import ConfigDict

from configs.transfers.published import make, parse, tfds
from paligemma.data import image_ops, text_ops


def get_config(argument: str | None = None) -> ConfigDict:
  arg = parse(argument)
  fields = {"texts": "captions"}
  return make(
    arg,
    data_set="widgetcap",
    train=tfds("widgetcap", "train", final="train+dev", fields=fields),
    evals={x: tfds("widgetcap", x, fields=fields) for x in ("dev", "test")},
    ops=(
      image_ops.Resize((arg.res, arg.res)),  # for a line of one pixel
      image_ops.DrawBox("bbox"),
      text_ops.Format("caption en"),
    ),
    answer_ops=(text_ops.Choice("captions", "suffix", replace=False),),
    metric="captions",
    batch_size=64,
    total_epochs=4.0,
    learning_rate=3e-6,
    weight_decay=3e-7,
    label_smoothing=0.1,
    dropout=0.1,
  )
