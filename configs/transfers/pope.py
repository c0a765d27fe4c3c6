"""POPE: does a model see objects that are not there? It trains nothing.

    python -m scripts.evaluate --config configs/transfers/pope.py --ckpt DIR

with a DIR of vqav2 gives the published scores. Fields: image, question, answer
("yes" or "no").
"""

from ml_collections import ConfigDict

from configs.transfers.published import make, parse, tfds
from paligemma.data import text_ops


def get_config(argument: str | None = None) -> ConfigDict:
  """Arguments: those of published.parse, and prefix, the prompt."""
  arg = parse(argument, prefix="{question}")
  sets = {
    kind: tfds(f"pope_{kind}", "test", file=kind)
    for kind in ("random", "popular", "adversarial")
  }
  config = make(
    arg,
    data_set="pope",
    train=sets,
    evals=sets,
    text_len=48,
    ops=(text_ops.Format(arg.prefix),),
    metric="pope",
    eval_batch_size=256,
    antialias=False,
    total_steps=0,
    optimizer="sgd",
    optimizer_args={},
    learning_rate=0.0,
    trainable=(),
  )
  del config.evals.pplx
  # There is nothing to train on: what is never read.
  config.train.sources = {
    name: spec.source.to_dict() for name, spec in config.evals.items()
  }
  return config
