"""TextCaps: captions that mention the text in the picture.

Fields: image, captions (five).
"""

from ml_collections import ConfigDict

from configs.transfers.cococap import crop
from configs.transfers.published import CAPTIONS, make, parse, tfds


def get_config(argument: str | None = None) -> ConfigDict:
  """Arguments: those of published.parse, and crop as in cococap."""
  arg = parse(argument, crop="rs")
  fields = {"texts": "captions"}
  return make(
    arg,
    data_set="textcaps",
    train=tfds("text_caps", "train[:98%]", final="train", fields=fields),
    evals={
      "minival": tfds("text_caps", "train[-2%:]", fields=fields),
      "val": tfds("text_caps", "val", fields=fields),
    },
    **CAPTIONS,
    lower=True,
    sampler="beam(beam_size=3)",
    augment=crop(arg),
    antialias=False,
    total_epochs=5.0,
    weight_decay=1e-6,
  )
