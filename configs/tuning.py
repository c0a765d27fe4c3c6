"""What trains and how, by one name: the argument `tune` of a config."""

import dataclasses

from ml_collections import ConfigDict

from paligemma import parameters, registry


@dataclasses.dataclass(frozen=True)
class Method:
  """What trains and how; by default plain SGD, as in big_vision's notebook.

  Attributes:
    trainable: regexes over the whole name of a parameter.
    optimizer, learning_rate, clip_norm: see
      paligemma/training/optimizers.py. The rates are for the published sizes;
      a tiny model takes larger steps.
    warmup: share of the steps.
    quantize: "int8", "int4" or "nf4" for what is frozen, or None.
    lora: whether the model has adapters, those of lora.config.Lora.
  """

  trainable: tuple[str, ...]
  optimizer: str = "sgd"
  learning_rate: float = 0.03
  clip_norm: float | None = None
  warmup: float = 0.1
  quantize: str | None = None
  lora: bool = False

  def apply(self, config: ConfigDict) -> None:
    """Writes what it says into a config, whose model has its dtype."""
    config.trainable = self.trainable
    config.frozen_dtype = self.quantize or config.model.dtype
    if self.lora:
      config.model.lora = {}
    config.optimizer = self.optimizer
    config.learning_rate = self.learning_rate
    config.clip_norm = self.clip_norm
    decay = dict(decay="cosine", warmup_percent=self.warmup)
    config.schedule = ((".*", decay),)


# For all weights, Adam is that of big_vision's forkme and of the published
# transfers; the rate of adapters is that of QLoRA (arXiv:2305.14314, table 9).
_LORA = Method((parameters.ADAPTERS,), "adam", 2e-4, lora=True)
METHODS = {
  "attention": Method((parameters.ATTENTION,)),
  "full": Method((r".*",), "adam", 1e-5, clip_norm=1.0, warmup=0.05),
  "decoder": Method((r"llm/.*",)),
  "image": Method((r"img/.*",)),
  "head": Method((parameters.HEAD,)),
  "lora": _LORA,
  "qlora_int8": dataclasses.replace(_LORA, quantize="int8"),
  "qlora_int4": dataclasses.replace(_LORA, quantize="int4"),
  "qlora_nf4": dataclasses.replace(_LORA, quantize="nf4"),
}


def method(tune: str) -> Method:
  """Returns a Method by name; an unknown one raises, with the nearest."""
  return registry.lookup(METHODS, tune, "tune")
