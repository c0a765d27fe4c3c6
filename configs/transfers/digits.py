"""Reads scans of handwritten digits: a fork of forkme, as short as yours.

    python -m scripts.make_digits data/digits
    python -m trainers.train --config configs/transfers/digits.py \
      --workdir runs/digits
"""

from ml_collections import ConfigDict

from configs.transfers import forkme


def get_config(argument: str | None = None) -> ConfigDict:
  """Attention weights of the tiny model, by plain SGD, or another `tune`."""
  config = forkme.get_config(
    "variant=paligemma_tiny,res=56,text_len=16,batch_size=32,epochs=10,"
    "init=paligemma/assets/tiny.npz,"
    "tokenizer=paligemma/assets/tiny_tokenizer.model,"
    "train=data/digits/train.jsonl,val=data/digits/test.jsonl,"
    + (argument or "")
  )
  config.model.dtype = "float32"  # faster than bfloat16 on a CPU of this size
  # So narrow a model takes larger steps than the published ones.
  if config.optimizer == "sgd":
    config.learning_rate = 0.3
  else:
    config.learning_rate = 5e-3 if "lora" in config.model else 1e-3
  config.evals.val.max_decode_len = 4
  return config
