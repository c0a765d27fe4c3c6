"""Fork me: fine-tune PaliGemma on your own PaliGemma JSONL, all values shown.

    python -m trainers.train --workdir runs/mine --config \
      configs/transfers/forkme.py:variant=paligemma_3b,res=224,init=pt_224.npz,\
      tokenizer=paligemma_tokenizer.model,train=train.jsonl,val=val.jsonl

Every value can be changed on top: --config.learning_rate=0.01.
A line of the JSONL: {"image": "0001.jpg", "prefix": "caption en", "suffix":
"a red barn"}, image paths relative to the file.
"""

from ml_collections import ConfigDict, config_dict

from configs import common


def get_config(argument=None):
  """Attention-only SGD, as in the PaliGemma fine-tuning notebook."""
  arg = common.parse_argument(
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
  method = common.method(arg.tune)
  config = ConfigDict()
  config.seed = 0

  # Model. `init` is a checkpoint of any format or the name of a preset; empty
  # for random weights. A T4 and older GPUs compute in float16.
  config.model = dict(variant=arg.variant, dtype=arg.dtype)
  config.model.img = dict(dropout=0.0, remat_policy="block_inputs")
  config.model.llm = dict(dropout=0.0, remat_policy="block_inputs")
  config.init = arg.init
  config.tokenizer = arg.tokenizer
  config.res = arg.res
  config.frames = 0  # of a video; 0: one image
  config.text_len = arg.text_len

  # What trains, in float32; the rest is frozen in this dtype, which may be one
  # of int8, int4 and nf4.
  config.trainable = common.trainable(arg.tune)
  config.frozen_dtype = method.quantize or arg.dtype
  if method.lora:  # tune=lora and tune=qlora_... add adapters
    config.model.lora = dict(method.lora)

  # Data. Several sources are mixed by weight; None is the source's size.
  config.train = ConfigDict()
  config.train.sources = dict(
    main=dict(kind="jsonl", path=arg.train, weight=1.0, cache=False)
  )
  config.train.ops = ()  # e.g. (text_ops.Format("answer en {question}"),)
  # As the notebook; "reference_uint8" as big_vision's configs, or "hf", ...
  config.train.resize = "bilinear"
  config.train.too_long = "error"  # or "truncate" the end
  config.train.texts = "checked"  # or "plain": control tokens are letters
  config.train.on_bad = "stop"  # or "skip" bad examples and count them
  config.train.num_workers = 0
  config.batch_size = arg.batch_size
  config.total_epochs = arg.epochs

  # Optimizer.
  config.optimizer = method.optimizer  # sgd, see common.METHODS
  config.optimizer_args = dict()  # e.g. dict(momentum=0.9)
  config.learning_rate = method.learning_rate  # 0.03
  config.learning_rate_mults = ()  # e.g. (("img/.*", 0.1),)
  warmup = method.warmup  # 0.1
  config.schedule = ((".*", dict(decay="cosine", warmup_percent=warmup)),)
  config.weight_decay = 0.0
  config.weight_decay_mults = config_dict.placeholder(tuple)  # every matrix
  config.clip_norm = config_dict.placeholder(float)
  config.clip_norm = method.clip_norm  # None
  config.label_smoothing = 0.0
  config.accumulate_steps = 1
  config.ema_decay = config_dict.placeholder(float)

  # Devices: a mesh of data (-1: all that are left) x model, and per regex how
  # the parameters lie on it.
  config.mesh = dict(data=-1, model=1)
  config.sharding = ((".*", "fsdp"),)

  # Log, checkpoints, evaluation (always before the first and after the last
  # step, and every so often).
  config.log_steps = 10
  config.checkpoint_percent = 0.25
  config.keep_checkpoints = 1
  config.evals = ConfigDict()
  config.evals.pplx = dict(
    kind="perplexity",
    source=dict(kind="jsonl", path=arg.val),
    batch_size=arg.batch_size,
    every_percent=0.25,
  )
  config.evals.val = dict(
    kind="generate",
    source=dict(kind="jsonl", path=arg.val),
    batch_size=arg.batch_size,
    max_decode_len=arg.text_len,
    sampler="greedy",
    metric="exact_match",
    every_percent=0.25,
  )
  return config
