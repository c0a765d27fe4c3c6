"""What every config shares: its argument, and names for what is trained."""

import dataclasses
import difflib
from types import SimpleNamespace
from typing import Any

from paligemma import parameters

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
    lora: fields of paligemma/lora/config.py, or None: no adapters.
  """

  optimizer: str = "sgd"
  learning_rate: float = 0.03
  clip_norm: float | None = None
  warmup: float = 0.1
  quantize: str | None = None
  lora: dict[str, Any] | None = None


_LORA = dict(rank=8, alpha=16.0, rslora=False, dropout=0.0, targets=("llm/.*",))
# By `tune`; those that are not here are plain SGD, as in the fine-tuning
# notebook of big_vision. For all weights, Adam is that of its forkme and of the
# published transfers; for adapters, its rate is that of QLoRA
# (arXiv:2305.14314, table 9).
METHODS = {
  "full": Method("adam", 1e-5, clip_norm=1.0, warmup=0.05),
  "lora": Method("adam", 2e-4, lora=_LORA),
  "qlora_int8": Method("adam", 2e-4, quantize="int8", lora=_LORA),
  "qlora_int4": Method("adam", 2e-4, quantize="int4", lora=_LORA),
  "qlora_nf4": Method("adam", 2e-4, quantize="nf4", lora=_LORA),
}


def parse_argument(argument, **defaults):
  """Reads the part of --config behind the colon: "variant=x,res=448".

  Args:
    argument: str of comma-separated name=value pairs, or None.
    **defaults: every name with its default, whose type the value takes.

  Returns:
    SimpleNamespace with one attribute per default.

  Raises:
    ValueError: a name that is not among the defaults, with the nearest one, or
      a value that is not of its type.
  """
  values = dict(defaults)
  for pair in filter(None, (argument or "").split(",")):
    name, equals, text = pair.partition("=")
    name = name.strip()
    if name not in defaults:
      near = difflib.get_close_matches(name, defaults, n=1)
      hint = f' Did you mean "{near[0]}"?' if near else ""
      raise ValueError(
        f'unknown config argument "{name}", expected one of '
        f"{', '.join(defaults)}.{hint}"
      )
    kind = type(defaults[name])
    try:
      values[name] = _BOOLEANS[text] if kind is bool else kind(text)
    except (KeyError, ValueError):
      equals = False
    if not equals:
      raise ValueError(
        f'config argument "{pair}": expected {name}=<{kind.__name__}>, for '
        f"example {name}={defaults[name]}"
      )
  return SimpleNamespace(**values)


def trainable(tune):
  """The regexes of TRAINABLE by name.

  Raises:
    ValueError: unknown name, with the nearest one.
  """
  return lookup(TRAINABLE, tune, "tune")


def method(tune):
  """The Method of a `tune`; errors as of `trainable`."""
  lookup(TRAINABLE, tune, "tune")
  return METHODS.get(tune, Method())


def lookup(table, name, what):
  """What an argument names.

  Args:
    table: dict of what it may name.
    name: str.
    what: the argument, for the message.

  Raises:
    ValueError: unknown name, with the nearest one.
  """
  if name in table:
    return table[name]
  near = difflib.get_close_matches(name, table, n=1)
  hint = f' Did you mean "{near[0]}"?' if near else ""
  raise ValueError(
    f'unknown {what} "{name}", expected one of {", ".join(table)}.{hint}'
  )


_BOOLEANS = {"true": True, "false": False, "1": True, "0": False}
