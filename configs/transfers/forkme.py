"""Fork me: fine-tune PaliGemma on your own PaliGemma JSONL.

    python -m trainers.train --workdir runs/mine --config \
      configs/transfers/forkme.py:variant=paligemma_3b,res=224,init=pt_224.npz,\
      tokenizer=paligemma_tokenizer.model,train=train.jsonl,val=val.jsonl

Every value of configs/common.py, where each is explained, can be set here or on
top: --config.learning_rate=0.01.
A line of the JSONL: {"image": "0001.jpg", "prefix": "caption en", "suffix":
"a red barn"}, image paths relative to the file.
"""

from ml_collections import ConfigDict

from configs import arguments, common, tuning


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
  )
  method = tuning.method(arg.tune)
  config = common.defaults()
  config.model.update(variant=arg.variant, dtype=arg.dtype)
  config.init = arg.init
  config.tokenizer = arg.tokenizer
  config.res = arg.res
  config.text_len = arg.text_len

  config.trainable = method.trainable
  config.frozen_dtype = method.quantize or arg.dtype
  if method.lora:  # tune=lora and tune=qlora_... add adapters
    config.model.lora = {}

  config.train.sources.main = dict(kind="jsonl", path=arg.train)
  config.batch_size = arg.batch_size
  config.total_epochs = arg.epochs

  config.optimizer = method.optimizer
  config.learning_rate = method.learning_rate
  config.clip_norm = method.clip_norm
  decay = dict(decay="cosine", warmup_percent=method.warmup)
  config.schedule = ((".*", decay),)

  val = dict(source=dict(kind="jsonl", path=arg.val), every_percent=0.25)
  config.evals.pplx = dict(val, kind="perplexity")
  config.evals.val = dict(val, kind="generate")
  return common.complete(config)
