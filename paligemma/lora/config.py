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


def _is_number(value):
  return isinstance(value, numbers.Real) and not isinstance(value, bool)


# Field -> what is valid, in code and in words.
_VALID = {
  "rank": (lambda x: type(x) is int and x > 0, "a positive int"),
  "alpha": (lambda x: _is_number(x) and 0 < x < math.inf, "a positive number"),
  "rslora": (lambda x: isinstance(x, bool), "a bool"),
  "dropout": (lambda x: _is_number(x) and 0 <= x < 1, "a number in [0, 1)"),
}


@dataclasses.dataclass(frozen=True)
class Lora:
  """Which matrices of a model have adapters, and of which size.

  Attributes:
    rank: R.
    alpha: `scale` is alpha / rank.
    rslora: `scale` is alpha / sqrt(rank) instead.
    dropout: rate in [0, 1) on the input of A in training.
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
    for field, (is_valid, expected) in _VALID.items():
      value = getattr(self, field)
      if not is_valid(value):
        raise ValueError(f"LoRA {field} is {value!r}, expected {expected}")
    is_list = isinstance(self.targets, list | tuple) and len(self.targets) > 0
    if not is_list or not all(isinstance(x, str) for x in self.targets):
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
