"""RefCOCO, RefCOCO+ and RefCOCOg: the mask of the object that a sentence means.

Fields: image, objects, a list of {"box": (y0, x0, y1, x1) in pixels, "label":
text, "mask": run lengths of COCO, "sentences": list}; one object, with one
sentence, where it is evaluated. The mask codec is vae-oid.npz.
"""

from ml_collections import ConfigDict

from configs.transfers.published import at, make, parse, tfds
from paligemma.data import mask_codes, object_ops, text_ops

SPLITS = {
  "refcoco": ("refcoco_unc", ("val", "testA", "testB")),
  "refcocop": ("refcocoplus_unc", ("val", "testA", "testB")),
  "refcocog": ("refcocog_umd", ("val", "test")),
}


def get_config(argument: str | None = None) -> ConfigDict:
  """Arguments: those of published.parse, and mask_codec, the path of its file.

  The values are those of the published checkpoints, 100 epochs. big_vision also
  has short ones, total_epochs 5 at batch_size 64, that come within a point.
  """
  arg = parse(argument, res=448, mask_codec="vae-oid.npz")

  def split(name, of, **when):
    columns = object_ops.FromTfds(crowds=True)
    return tfds(f"ref_coco_bv/{name}:1.4.0", of, ops=(columns,), **when)

  evals = {
    f"{short}_{of}": split(
      name,
      f"{of.replace('val', 'validation')}_flat",
      last=(short, of) != ("refcoco", "val"),
      file=f"{short}_{of}",
    )
    for short, (name, splits) in SPLITS.items()
    for of in splits
  }
  config = make(
    arg,
    data_set="refcoco_seg",
    train=split("refcocox_combined", "train"),
    evals=evals,
    text_len=48,
    ops=(
      text_ops.FillMasks(),
      text_ops.Choice("objects", replace=False),
      object_ops.Refer(),
      text_ops.Format("{sentence}"),
      object_ops.Segment(mask_codes.Encoder(arg.mask_codec)),
    ),
    answer_ops=(),
    answer_key="suffix",
    metric="segmentation",
    batch_size=at(arg.res, {224: 256, 896: 64}),
    eval_batch_size=256,
    antialias=False,
    total_epochs=100.0,
    learning_rate=at(arg.res, {224: 3e-5, 448: 1e-5}),
    label_smoothing=0.3,
    dropout=at(arg.res, {224: 0.1, 448: 0.0}),
  )
  for spec in config.evals.values():
    if spec.kind == "generate":
      spec.mask_codec = arg.mask_codec
  return config
