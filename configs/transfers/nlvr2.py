"""NLVR2: is a sentence about two pictures true? And MaRVL, in other languages.

Fields: image (a list of two), sentence, label ("True" or "False").
"""

from ml_collections import ConfigDict

from configs.transfers.published import at, make, parse, tfds
from paligemma.data import image_ops, text_ops

LANGUAGES = ("id", "sw", "ta", "tr", "zh")


def get_config(argument: str | None = None) -> ConfigDict:
  arg = parse(argument)
  # The left one is "image" already.
  two = dict(
    image_key="image_left", ops=(image_ops.Stack(("image", "image_right")),)
  )
  return make(
    arg,
    data_set="nlvr2",
    train=tfds("nlvr2", "train", final="train+dev", **two),
    evals={
      "dev": tfds("nlvr2", "dev", **two),
      "test": tfds("nlvr2", "test", **two),
      **{
        f"marvl_{x}": tfds("marvl", f"test_{x}", file=f"marvl_{x}", **two)
        for x in LANGUAGES
      },
    },
    text_len=64,
    ops=(text_ops.Format("answer en {sentence}"),),
    answer_ops=(text_ops.Copy("label", "suffix"),),
    antialias=False,
    frames=2,
    total_epochs=at(arg.res, {224: 3.0, 448: 10.0}),
    learning_rate=at(arg.res, {224: 1e-5, 448: 3e-6}),
    weight_decay=at(arg.res, {224: 1e-6, 448: 3e-7}),
  )
