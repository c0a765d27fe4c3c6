"""Fork me: train a Gemma, alone, on your own texts.

    python -m trainers.train --workdir runs/texts --config \
      configs/gemma/forkme.py:variant=gemma2_2b,init=gemma2_2b_en,\
      tokenizer=tokenizer.model,train=train.jsonl,val=0.01

A line of the JSONL is one of

    {"text": "All of this is learned."}
    {"prefix": "3 + 4 = ", "suffix": "7"}
    {"messages": [{"role": "user", "content": "Hi"},
                  {"role": "model", "content": "Hello"}]}

What is learned is the text, the suffix, or the turns of the model. With
val=0.01 a hundredth of the lines is held out for the perplexity; with
answers=true their prompts are answered, too, and scored by exact match. Short
texts share rows of text_len tokens, of which batch_size make a step
(packing=false: each has a row). Every value of configs/common.py can be set on
top: --config.learning_rate=1e-4.
"""

from ml_collections import ConfigDict

from configs import arguments, common, tuning


def get_config(argument: str | None = None) -> ConfigDict:
  """Adapters of rank 8 on a Gemma 2 2B, or another `tune`."""
  arg = arguments.parse(
    argument,
    variant="gemma2_2b",
    text_len=1024,
    batch_size=8,
    epochs=3.0,
    tune="lora",
    dtype="bfloat16",
    init="",
    tokenizer="tokenizer.model",
    train="data/train.jsonl",
    val="0.01",
    packing=True,
    answers=False,
  )
  config = common.defaults()
  config.model.update(variant=arg.variant, dtype=arg.dtype)
  config.init = arg.init
  config.tokenizer = arg.tokenizer
  config.text_len = arg.text_len
  config.batch_size = arg.batch_size
  config.total_epochs = arg.epochs
  config.train.packing = arg.packing
  tuning.method(arg.tune).apply(config)
  train, val = arguments.split(
    arg.train, arg.val, kind="text_jsonl", seed=config.get_ref("seed")
  )
  config.train.sources.main = train
  every = dict(source=val, every_percent=0.25)
  config.evals.pplx = dict(every, kind="perplexity")
  if arg.answers:
    config.evals.val = dict(every, kind="generate")
  return common.complete(config)
