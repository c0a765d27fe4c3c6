"""Captions of 90 pictures by plain SGD on all parameters, for one small GPU.

Fields: image, suffix (the caption).
"""

from ml_collections import ConfigDict

from configs.transfers import forkme
from paligemma.data import text_ops


def get_config(argument: str | None = None) -> ConfigDict:
  """forkme with the values of big_vision's vertexai_l4; no evaluation."""
  config = forkme.get_config(
    "batch_size=4,epochs=1,tune=full,init=paligemma_3b_pt_224,"
    "train=gs://longcap100/data_train90.jsonl,"
    "val=gs://longcap100/data_val10.jsonl," + (argument or "")
  )
  config.train.sources.main.cache = True
  config.train.ops = (text_ops.Format("caption en"),)
  config.train.resize = "reference_uint8"
  config.train.too_long = "truncate"
  config.optimizer = "sgd"  # without momentum, so without a state
  config.learning_rate = 0.1
  config.schedule = ((".*", dict(decay="cosine", warmup_percent=0.05)),)
  config.clip_norm = 1.0
  config.evals = {}
  return config
