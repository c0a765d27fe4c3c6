"""Fork me: fine-tune SigLIP or SigLIP 2 on your own images with captions.

    python -m trainers.train --workdir runs/mine --config \
      configs/siglip/forkme.py:variant=siglip2_b16_224,train=train.jsonl,\
      val=val.jsonl,init=weights/siglip2_b16_224,\
      tokenizer=weights/siglip2_b16_224

Every value of configs/common.py, where each is explained, can be set here or on
top: --config.learning_rate=1e-4.
A line of the JSONL: {"image": "0001.jpg", "captions": ["a red barn", "a barn in
snow"]}, or one caption under "suffix", image paths relative to the file. Of
several captions each is drawn once in as many epochs.
decoder=1 and distill=0.25 add the other losses of SigLIP 2, with these weights,
see docs/siglip.md.
img=vit.npz, in the place of init, takes the image tower alone, such as a Vision
Transformer with a map head, and begins with a new text tower (tune=lit).
tune says what trains: full, lit (all but the image tower), image, lora. With
val=val.jsonl recall@1 is evaluated, with label=label beside it, a field of its
lines, zero-shot accuracy.
"""

import dataclasses

from ml_collections import ConfigDict

from configs import arguments, common
from configs.tuning import Method
from paligemma import parameters, registry, variants

# The rate of all weights is a hundredth of that of pre-training, as a fine
# tuning usually takes; that of the text tower alone is big_vision's, see
# lit_coco.py; that of adapters QLoRA's (arXiv:2305.14314, table 9).
_LOGITS = ("t", "b")
_FULL = Method((".*",), "adam", 1e-5, clip_norm=1.0, warmup=0.05)
METHODS = {
  "full": _FULL,
  "lit": dataclasses.replace(
    _FULL, trainable=("txt/.*", *_LOGITS), learning_rate=1e-3
  ),
  "image": dataclasses.replace(_FULL, trainable=("img/.*", *_LOGITS)),
  "lora": dataclasses.replace(
    _FULL, trainable=(parameters.ADAPTERS,), learning_rate=2e-4, lora=True
  ),
}


def get_config(argument: str | None = None) -> ConfigDict:
  """Adam, the sigmoid loss; recall, and accuracy where lines have a label."""
  arg = arguments.parse(
    argument,
    variant="siglip2_b16_224",
    res=0,
    batch_size=256,
    epochs=5.0,
    tune="full",
    loss="sigmoid",
    decoder=0.0,
    distill=0.0,
    dtype="bfloat16",
    init="",
    img="",
    tokenizer="weights/siglip2_b16_224",
    train="data/train.jsonl",
    val="",
    label="",
  )
  method = registry.lookup(METHODS, arg.tune, "tune")
  sizes = registry.lookup(variants.SIGLIP, arg.variant, "variant")
  config = common.defaults("contrastive")
  config.model.update(variant=arg.variant, dtype=arg.dtype)
  config.init = dict(img=arg.img) if arg.img else arg.init
  config.tokenizer = arg.tokenizer
  config.res = arg.res or sizes.res or config.res

  config.trainable = method.trainable
  if not method.lora:
    for head in ("dec",) * (arg.decoder > 0) + ("distill",) * (arg.distill > 0):
      config.trainable += (f"{head}/.*",)
  config.frozen_dtype = arg.dtype
  if method.lora:
    config.model.lora = dict(targets=("img/.*", "txt/.*"))

  config.train.sources.main = dict(kind="jsonl", path=arg.train)
  val = dict(kind="jsonl", path=arg.val)
  if arg.val:
    config.evals.retrieval = dict(kind="retrieval", source=val)
  if arg.label:
    config.evals.zero_shot = dict(
      kind="zero_shot", source=val, answer_key=arg.label
    )
  config.batch_size = arg.batch_size
  config.total_epochs = arg.epochs

  config.loss = arg.loss
  if arg.loss == "softmax" and not arg.init:
    # It has no gradient, and classify would add it where there is one.
    config.model.bias_init = None
    config.trainable = tuple(x for x in config.trainable if x != "b")
  config.decoder_weight = arg.decoder
  config.distill_weight = arg.distill
  if arg.distill:
    config.ema_decay = 0.996  # arXiv:2104.14294, where DINO's teacher starts
  config.optimizer = method.optimizer
  config.optimizer_args = dict(b2=0.95)  # arXiv:2303.15343, section 4.7
  config.learning_rate = method.learning_rate
  config.clip_norm = method.clip_norm
  decay = dict(decay="cosine", warmup_percent=method.warmup)
  config.schedule = ((".*", decay),)
  return common.complete(config)
