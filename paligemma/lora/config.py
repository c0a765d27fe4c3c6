"""Which low-rank adapters a model has: small matrices beside frozen ones.

    y = x W + scale * (x A) B        A float[I, R], B float[R, O]

Source: LoRA, arXiv:2106.09685; scale alpha / sqrt(R): rsLoRA,
arXiv:2312.03732. Every target has an A of its own, as in peft, also where W is
one array of several (keys and values, gate and up).
"""

import dataclasses
import math
import numbers
import re

from paligemma import registry
from paligemma.parameters import TARGETS


@dataclasses.dataclass(frozen=True)
class Lora:
  """Size and places of the adapters of a model.

  Attributes:
    rank: int, R. Default 8.
    alpha: float, what `scale` is made of. Default 16.
    rslora: bool, scale alpha / sqrt(rank) in place of alpha / rank.
    dropout: float in [0, 1), rate on the input of A in training.
    targets: regexes, each of which matches the whole name of some of TARGETS.
      Default: all of the decoder.

  Raises:
    ValueError: a value out of range, or a regex that matches no target.
  """

  rank: int = 8
  alpha: float = 16.0
  rslora: bool = False
  dropout: float = 0.0
  targets: tuple[str, ...] = ("llm/.*",)

  def __post_init__(self):
    if not (type(self.rank) is int and self.rank > 0):
      raise ValueError(f"LoRA rank is {self.rank!r}, expected a positive int")
    if not (_is_number(self.alpha) and self.alpha > 0):
      raise ValueError(
        f"LoRA alpha is {self.alpha!r}, expected a positive number"
      )
    if not isinstance(self.rslora, bool):
      raise ValueError(f"LoRA rslora is {self.rslora!r}, expected a bool")
    if not (_is_number(self.dropout) and 0 <= self.dropout < 1):
      raise ValueError(
        f"LoRA dropout is {self.dropout!r}, expected a number in [0, 1)"
      )
    if not _is_list_of_str(self.targets):
      raise ValueError(
        f"LoRA targets are {self.targets!r}, expected a list of regexes over: "
        f"{', '.join(TARGETS)}"
      )
    object.__setattr__(self, "targets", tuple(self.targets))
    for regex in self.targets:
      if not any(_matches(regex, target) for target in TARGETS):
        raise ValueError(
          f'LoRA target "{regex}" matches none of: {", ".join(TARGETS)} (a '
          "regex must match the whole name)."
          + registry.did_you_mean(regex, TARGETS)
        )

  @property
  def scale(self) -> float:
    """What the product of the two matrices is multiplied by."""
    return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

  def adapts(self, target: str) -> bool:
    """Whether a target of TARGETS has an adapter."""
    return any(_matches(regex, target) for regex in self.targets)


def _matches(regex, target):
  try:
    return re.fullmatch(regex, target) is not None
  except re.error as e:
    raise ValueError(f'LoRA target "{regex}": malformed regex: {e}') from None


def _is_number(value):
  is_real = isinstance(value, numbers.Real) and not isinstance(value, bool)
  return is_real and math.isfinite(value)


def _is_list_of_str(value):
  is_list = isinstance(value, list | tuple) and len(value) > 0
  return is_list and all(isinstance(item, str) for item in value)
