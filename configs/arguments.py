"""The argument of a config, the part of --config behind the colon."""

from collections.abc import Collection
from types import SimpleNamespace

from paligemma import registry

_BOOLEANS = {"true": True, "false": False, "1": True, "0": False}


class UnknownArgument(ValueError):
  """Raised for a name that a config does not take.

  Attributes:
    known: the names that it takes.
  """

  def __init__(self, message: str, known: Collection[str]):
    super().__init__(message)
    self.known = known


def parse(
  argument: str | None, **defaults: str | int | float | bool
) -> SimpleNamespace:
  """Reads an argument such as "variant=x,res=448".

  `defaults` has every name with its default, whose type the value takes.

  Raises:
    UnknownArgument: a name that is not among the defaults, with the nearest.
    ValueError: a value that is not of its type.
  """
  values = dict(defaults)
  for pair in filter(None, (argument or "").split(",")):
    name, equals, text = pair.partition("=")
    name = name.strip()
    try:
      kind = type(registry.lookup(defaults, name, "config argument"))
    except ValueError as error:
      raise UnknownArgument(str(error), defaults) from None
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
