"""Durations: a config says steps, examples, epochs or percent; we get steps."""

from collections.abc import Mapping
from typing import Any

from paligemma import tree

UNITS = ("steps", "examples", "epochs", "percent")


def steps(
  config: Mapping[str, Any],
  prefix: str,
  *,
  batch_size: int | None = None,
  examples_per_epoch: int | None = None,
  total_steps: int | None = None,
  default: Any = tree.REQUIRED,
) -> Any:
  """Reads the duration named prefix from a config and converts it to steps.

  The config sets one of these; a value of None counts as not set:

      warmup_steps=100       100 steps
      warmup_examples=6400   6400 / batch_size steps
      warmup_epochs=0.5      0.5 * examples_per_epoch / batch_size steps
      warmup_percent=0.05    0.05 * total_steps steps: a fraction, 1.0 is all

  Steps are whole; the others are rounded to the nearest step (a half to the
  even neighbour, Python's round), and to 1 where that would give 0 for a
  positive duration. A duration of 0 is 0 steps.

  Args:
    config: holds the duration, among other keys.
    prefix: name of the duration: "total", "warmup", "log", "checkpoint".
    batch_size: of all devices, in examples.
    examples_per_epoch: of all sources.
    total_steps: of the whole training.
    default: returned if the config does not set the duration; without it, that
      is an error.

  Raises:
    ValueError: the duration is missing, set twice, negative, a percent above 1,
      a fraction of a step, or needs a size that was not given.

  Source: steps() in big_vision/utils.py. There a missing size falls back to the
  default in silence; here it is an error.
  """
  names = [f"{prefix}_{unit}" for unit in UNITS]
  found = [name for name in names if config.get(name) is not None]
  if len(found) > 1:
    raise ValueError(f"both {found[0]} and {found[1]} are set; keep one")
  if not found:
    if default is not tree.REQUIRED:
      return default
    raise ValueError(f'no duration "{prefix}": set one of {", ".join(names)}')
  name = found[0]
  value = config[name]
  if value < 0:
    raise ValueError(f"{name} is {value}, expected 0 or more")
  match name.removeprefix(f"{prefix}_"):
    case "steps":
      if value != int(value):
        raise ValueError(f"{name} is {value}, expected whole steps")
      return int(value)
    case "examples":
      _require(name, batch_size=batch_size)
      exact = value / batch_size
    case "epochs":
      _require(
        name, batch_size=batch_size, examples_per_epoch=examples_per_epoch
      )
      exact = value * examples_per_epoch / batch_size
    case "percent":
      if value > 1:
        raise ValueError(
          f"{name} is {value}, expected a fraction in [0, 1]; "
          f"for {value} percent write {value / 100}"
        )
      _require(name, total_steps=total_steps)
      exact = value * total_steps
  return max(round(exact), 1) if exact > 0 else 0


def in_steps(
  arguments: Mapping[str, Any], **sizes: int | None
) -> dict[str, Any]:
  """Converts the durations among the arguments of optimizers.make_schedule.

  Args:
    arguments: warmup_ and cooldown_, each in one of UNITS or absent, become
      warmup_steps and cooldown_steps; timescale_ and shift_, in examples or
      epochs, become timescale and shift, which need not be whole; the rest
      stays.
    **sizes: see `steps`.

  Raises:
    ValueError: as `steps`; timescale or shift is given in two units.
  """
  prefixes = ("warmup", "cooldown")
  durations = {f"{prefix}_{unit}" for prefix in prefixes for unit in UNITS}
  converted = {
    f"{prefix}_steps": steps(arguments, prefix, default=0, **sizes)
    for prefix in prefixes
  }
  batch_size, epoch = sizes["batch_size"], sizes["examples_per_epoch"]
  in_unit = {"examples": 1 / batch_size, "epochs": epoch / batch_size}
  for option in ("timescale", "shift"):
    units = {f"{option}_{unit}": x for unit, x in in_unit.items()}
    given = [name for name in (option, *units) if name in arguments]
    if len(given) > 1:
      raise ValueError(f"both {given[0]} and {given[1]} are set; keep one")
    for name in given:
      converted[option] = arguments[name] * units.get(name, 1)
    durations |= units.keys()
  converted |= {n: x for n, x in arguments.items() if n not in durations}
  return converted


def _require(name, **sizes):
  for size, value in sizes.items():
    if value is None:
      raise ValueError(
        f"{name} cannot be converted to steps: {size} is not known here; "
        f"set {name.rpartition('_')[0]}_steps instead"
      )
