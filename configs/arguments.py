"""The argument of a config, the part of --config behind the colon."""

from types import SimpleNamespace

from paligemma import registry

_BOOLEANS = {"true": True, "false": False, "1": True, "0": False}


def parse(
  argument: str | None, **defaults: str | int | float | bool
) -> SimpleNamespace:
  """Reads an argument such as "variant=x,res=448".

  `defaults` has every name with its default, whose type the value takes.

  Raises:
    ValueError: a name that is not among the defaults, with the nearest one, or
      a value that is not of its type.
  """
  values = dict(defaults)
  for pair in filter(None, (argument or "").split(",")):
    name, equals, text = pair.partition("=")
    name = name.strip()
    kind = type(registry.lookup(defaults, name, "config argument"))
    try:
      values[name] = _BOOLEANS[text.lower()] if kind is bool else kind(text)
    except (KeyError, ValueError):
      equals = False
    if not equals:
      raise ValueError(
        f'config argument "{pair}": expected {name}=<{kind.__name__}>, for '
        f"example {name}={defaults[name]}"
      )
  return SimpleNamespace(**values)


def split(
  train: str, val: str, *, kind: str, seed: object
) -> tuple[dict[str, object], dict[str, object]]:
  """Returns the sources of training and evaluation.

  Args:
    train: path of a file.
    val: likewise; or a share, such as "0.1", of the first that is held out.
    kind: key of sources.SOURCES, of both.
    seed: of what is held out.
  """
  source = dict(kind=kind, path=train)
  try:
    share = float(val)
  except ValueError:
    return source, dict(kind=kind, path=val)
  source |= dict(val_share=share, seed=seed)
  return source, source | dict(part="val")
