"""Combinations of values, and the run that each of them is."""

import functools
import hashlib
import itertools
import sys
import urllib.parse
from collections.abc import Mapping, Sequence

from etils import epath
from ml_collections import ConfigDict

from configs import common
from paligemma import messages, registry
from trainers import command_line

Values = dict[str, str]  # name -> text, as a command line has it

_LONGEST_NAME = 200  # of a folder; file systems take 255 bytes


def parse(texts: Sequence[str]) -> dict[str, str]:
  """Reads ["tune=attention,lora"]: name -> text behind the first "=".

  Raises:
    ValueError: one is not of this form, or a name is there twice.
  """
  found = {}
  for text in texts:
    name, _, rest = text.partition("=")
    if not name or not rest:
      raise ValueError(
        f'"{messages.shown(text)}": expected a name with values, such as '
        "learning_rate=0.003,0.01"
      )
    if name in found:
      raise ValueError(f"{name} is given twice; list all its values in one")
    found[name] = rest
  return found


def choices(text: str) -> list[str]:
  """Splits "a,b" at the commas that are in no brackets."""
  found, depth = [""], 0
  for char in text:
    depth += (char in "([{") - (char in ")]}")
    if char == "," and depth == 0:
      found.append("")
    else:
      found[-1] += char
  return found


def grid(texts: Sequence[str]) -> list[Values]:
  """All combinations of the values that --grid lists, each once."""
  values = {name: choices(text) for name, text in parse(texts).items()}
  found = itertools.product(*values.values())
  made = [dict(zip(values, chosen, strict=True)) for chosen in found]
  return list({folder_name(values): values for values in made}.values())


def folder_name(values: Mapping[str, str]) -> str:
  """Such as "learning_rate=0.003,tune=lora", in any order of the values."""
  name = ",".join(
    f"{name}={urllib.parse.quote(text, safe='')}"
    for name, text in sorted(values.items())
  )
  if len(name) <= _LONGEST_NAME:
    return name
  digest = hashlib.sha256(name.encode()).hexdigest()[:8]
  return f"{name[: _LONGEST_NAME - 9]}~{digest}"


class Base:
  """What the runs of a sweep share.

  Attributes:
    config: without the values of any combination.
  """

  def __init__(self, path: str, rest: Sequence[str]):
    """Loads the config.

    Args:
      path: FILE[:ARGUMENT] of the config.
      rest: --config.name=value, for all runs.

    Raises:
      ValueError: as command_line.load_config and set_values; another flag.
    """
    self._path, self._rest = path, list(rest)
    self.config = self.make({})

  def check_names(self, names: Sequence[str]) -> None:
    """Checks that the config has these arguments or values.

    Raises:
      ValueError: names the others, each with the nearest known.
    """
    taken = self._arguments
    common.add_open(self.config, names)
    known = [*taken, *common.names(self.config)]
    if unknown := [name for name in names if name not in known]:
      raise ValueError(
        "; ".join(
          f'"{messages.shown(name)}" is neither an argument nor a value of '
          f"{self._path.partition(':')[0]}.{registry.did_you_mean(name, known)}"
          for name in unknown
        )
      )

  def make(self, values: Mapping[str, str]) -> ConfigDict:
    """The config of a combination; raises ValueError as the first one."""
    path, flags = self._with(values)
    config = command_line.load_config(path)
    if rest := command_line.set_values(config, [*self._rest, *flags]):
      raise ValueError(
        f'unknown argument "{messages.shown(rest[0])}", expected those of '
        "--help, and --config.name=value"
      )
    return config

  def command(self, values: Mapping[str, str], folder: epath.Path) -> list[str]:
    """The command that trains a combination in a folder."""
    path, flags = self._with(values)
    program = sys.executable, "-m", "paligemma", "train"
    own = "--config", path, f"--workdir={folder}"
    return [*program, *own, *self._rest, *flags]

  def _with(self, values):
    """FILE:ARGUMENT, and --config.name=value of what is no argument."""
    taken = self._arguments if values else ()
    pairs = [f"{name}={text}" for name, text in values.items() if name in taken]
    flags = [
      f"--config.{name}={text}"
      for name, text in values.items()
      if name not in taken
    ]
    path, *argument = self._path.split(":", 1)
    given = ",".join(filter(None, [*argument, *pairs]))
    return f"{path}:{given}" if given else path, flags

  @functools.cached_property
  def _arguments(self):
    """Names that the config takes behind its colon."""
    path = self._path.partition(":")[0]
    try:
      command_line.load_config(f"{path}:?=")  # which no config takes
    except registry.UnknownNameError as error:
      return error.known
    except (TypeError, ValueError):  # it takes none, or another form
      pass
    return ()
