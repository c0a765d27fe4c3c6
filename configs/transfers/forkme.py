"""Fork me: fine-tune PaliGemma on your own PaliGemma JSONL.

    python -m trainers.train --workdir runs/mine --config \
      configs/transfers/forkme.py:variant=paligemma_3b,res=224,init=pt_224.npz,\
      tokenizer=paligemma_tokenizer.model,train=train.jsonl,val=val.jsonl

Every value of configs/common.py, where each is explained, can be set here or on
top: --config.learning_rate=0.01.
A line of the JSONL: {"image": "0001.jpg", "prefix": "caption en", "suffix":
"a red barn"}, image paths relative to the file. With val=0.1 a tenth of the
images of train is held out and evaluated, copies of one picture together.
Answers with boxes are scored by average precision; those with mask codes by the
IoU with the "mask" of their line, which needs mask_codec=vae-oid.npz; others by
exact match. --config.evals.val.metric=... names another metric.
With augment=true every picture is another crop each time, and its boxes, the
"objects" of a line, move with it: for a few hundred photos with boxes.
"""

from ml_collections import ConfigDict

from configs import arguments, common, tuning
from paligemma.data import image_ops, object_ops


def get_config(argument: str | None = None) -> ConfigDict:
  """Attention-only SGD, as in the PaliGemma fine-tuning notebook."""
  arg = arguments.parse(
    argument,
    variant="paligemma_3b",
    res=224,
    text_len=128,
    batch_size=32,
    epochs=15.0,
    tune="attention",
    dtype="bfloat16",
    init="",
    tokenizer="paligemma_tokenizer.model",
    train="data/train.jsonl",
    val="data/val.jsonl",
    mask_codec="",
    augment=False,
  )
  method = tuning.method(arg.tune)
  config = common.defaults()
  config.model.update(variant=arg.variant, dtype=arg.dtype)
  config.init = arg.init
  config.tokenizer = arg.tokenizer
  config.res = arg.res
  config.text_len = arg.text_len

  method.apply(config)  # tune=lora and tune=qlora_... add adapters

  train, val = arguments.split(
    arg.train, arg.val, kind="jsonl", seed=config.get_ref("seed")
  )
  config.train.sources.main = train
  if arg.augment:
    crop = image_ops.InceptionCrop(area=(0.5, 1.0), min_visible=0.5)
    write = object_ops.WriteObjects(order="sorted")
    config.train.augment = (image_ops.ZoomOut(largest=1.5), crop, write)
  config.batch_size = arg.batch_size
  config.total_epochs = arg.epochs

  every = dict(source=val, every_percent=0.25)
  config.evals.pplx = dict(every, kind="perplexity")
  config.evals.val = dict(
    every, kind="generate", mask_codec=arg.mask_codec or None
  )
  return common.complete(config)
