"""Screen2Words: what the screen of an app is for.

Fields: image, captions (five).
"""

from ml_collections import ConfigDict

from configs.transfers.published import CAPTIONS, make, tfds


def get_config(argument: str | None = None) -> ConfigDict:
  fields = {"summary": "captions"}
  return make(
    argument,
    data_set="screen2words",
    train=tfds("screen2_words", "train", final="train+dev", fields=fields),
    evals={x: tfds("screen2_words", x, fields=fields) for x in ("dev", "test")},
    text_len=24,
    **CAPTIONS,
    antialias=False,
    total_epochs=10.0,
    label_smoothing=0.2,
    dropout=0.3,
  )
