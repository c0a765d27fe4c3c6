"""COCO captions, and NoCaps without training on it.

Fields: image, captions (five).
"""

from types import SimpleNamespace

from ml_collections import ConfigDict

from configs.transfers.published import CAPTIONS, make, parse, tfds
from paligemma import registry
from paligemma.data import image_ops
from paligemma.data.preprocess import Op


def crop(arg: SimpleNamespace) -> tuple[Op, ...]:
  """Ops that cut training images: not at all, as for Inception, or at random.

  Args:
    arg: what published.parse returned; arg.crop is "rs", "ic" or "rc".
  """
  crops = {
    "rs": (),
    "ic": (image_ops.InceptionCrop(area=(0.5, 1.0)),),
    "rc": (
      image_ops.ResizeSmall(arg.res * 8 // 7),
      image_ops.RandomCrop((arg.res, arg.res)),
    ),
  }
  return registry.lookup(crops, arg.crop, "crop")


def get_config(argument: str | None = None) -> ConfigDict:
  """Arguments: those of published.parse, and crop: see above."""
  arg = parse(argument, crop="rs")
  coco = dict(fields={"captions/text": "captions"})
  return make(
    arg,
    data_set="cococap",
    train=tfds(
      "coco_captions", "train[:98%]+restval", final="train+restval", **coco
    ),
    evals={
      "minival": tfds("coco_captions", "train[-2%:]", **coco),
      "val": tfds("coco_captions", "val", **coco),
      "nocaps": tfds(
        "nocaps", "val", fields={"texts": "captions"}, file="nocaps"
      ),
    },
    **CAPTIONS,
    sampler="beam(beam_size=2)",
    augment=crop(arg),
    antialias=False,
    total_epochs=5.0,
    weight_decay=1e-6,
  )
