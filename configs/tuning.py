"""What trains and how, by one name: the argument `tune` of a config."""

import dataclasses

from paligemma import parameters, registry

# What trains, as regexes over the whole name of a parameter. `tune` in the
# argument of a transfer config picks one; --config.trainable takes any other.
_ADAPTERS = (parameters.ADAPTERS,)
TRAINABLE = {
  "attention": (parameters.ATTENTION,),
  "full": (r".*",),
  "decoder": (r"llm/.*",),
  "image": (r"img/.*",),
  "head": (parameters.HEAD,),
  "lora": _ADAPTERS,
  "qlora_int8": _ADAPTERS,
  "qlora_int4": _ADAPTERS,
  "qlora_nf4": _ADAPTERS,
}


@dataclasses.dataclass(frozen=True)
class Method:
  """How to train what trains.

  Attributes:
    optimizer, learning_rate, clip_norm: see
      paligemma/training/optimizers.py. The rates are for the published sizes;
      a tiny model takes larger steps.
    warmup: share of the steps.
    quantize: "int8", "int4" or "nf4" for what is frozen, or None.
    lora: whether the model has adapters, those of lora.config.Lora.
  """

  optimizer: str = "sgd"
  learning_rate: float = 0.03
  clip_norm: float | None = None
  warmup: float = 0.1
  quantize: str | None = None
  lora: bool = False


# By `tune`; those that are not here are plain SGD, as in the fine-tuning
# notebook of big_vision. For all weights, Adam is that of its forkme and of the
# published transfers; for adapters, its rate is that of QLoRA
# (arXiv:2305.14314, table 9).
METHODS = {
  "full": Method("adam", 1e-5, clip_norm=1.0, warmup=0.05),
  "lora": Method("adam", 2e-4, lora=True),
  "qlora_int8": Method("adam", 2e-4, quantize="int8", lora=True),
  "qlora_int4": Method("adam", 2e-4, quantize="int4", lora=True),
  "qlora_nf4": Method("adam", 2e-4, quantize="nf4", lora=True),
}


def trainable(tune: str) -> tuple[str, ...]:
  """Returns the regexes of TRAINABLE by name.

  Raises:
    ValueError: unknown name, with the nearest one.
  """
  return registry.lookup(TRAINABLE, tune, "tune")


def method(tune: str) -> Method:
  """Returns the Method of a `tune`; errors as of `trainable`."""
  trainable(tune)
  return METHODS.get(tune, Method())
