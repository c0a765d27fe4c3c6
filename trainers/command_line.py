"""Command lines: flags, a config with values on top, and how programs end."""

import argparse
import contextlib
import importlib.util
import logging as python_logging
import os
import pathlib
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from absl import flags, logging
from ml_collections import ConfigDict, config_flags
from ml_collections.config_flags import config_path

from configs import common
from paligemma import messages, registry


def run(main: Callable[[], Any]) -> None:
  """Calls main(); a user's error is one line on stderr, and exit 1."""
  with mistakes_in_one_line():
    main()


class _Parser(argparse.ArgumentParser):
  def error(self, message):
    raise ValueError(f"{message}; --help shows all arguments")


def parser(text: str, epilog: str | None = None) -> argparse.ArgumentParser:
  """A parser that raises ValueError in one line; flags cannot be shortened.

  Its --help shows `text` and, after the arguments, `epilog`, as they are.
  """
  return _Parser(
    description=text,
    epilog=epilog,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )


def parse(
  parser: argparse.ArgumentParser,
  argv: Sequence[str] | None = None,
) -> tuple[argparse.Namespace, ConfigDict]:
  """Reads a command line: what the parser finds, and the complete config.

  Args:
    parser: of all but --config and --config.name=value.
    argv: default sys.argv[1:].

  Raises:
    ValueError: an unknown flag, a config that cannot be read, or a value on top
      of it that is unknown or of another type.
  """
  parser.add_argument(
    "--config",
    required=True,
    metavar="FILE[:ARGUMENT]",
    help="and any --config.name=value, see docs/config_keys.md",
  )
  args, rest = parser.parse_known_args(argv)
  logging.use_absl_handler()
  logging.set_verbosity(logging.WARNING)  # Orbax logs every file at INFO
  config = load_config(args.config)
  rest = set_values(config, rest)
  try:  # what libraries define, such as --verbosity
    _, *rest = flags.FLAGS([parser.prog, *rest], known_only=True)
  except flags.Error as error:
    raise ValueError(str(error)) from None
  if rest:
    known = [f"--{name}" for name in vars(args)]
    raise ValueError(
      "; ".join(
        f'unknown argument "{messages.shown(text)}".'
        + registry.did_you_mean(text.partition("=")[0], known)
        for text in rest
      )
    )
  del args.config
  return args, config


def add_switch(
  parser: argparse.ArgumentParser, name: str, text: str, default: bool = False
) -> None:
  """Adds a flag given as --name, --name=true, --noname or --name=false."""
  parser.add_argument(
    f"--{name}", action="store_true", default=default, help=text
  )
  for value, action in (("true", "store_true"), ("false", "store_false")):
    names = [f"--{name}={value}"] + [f"--no{name}"] * (value == "false")
    parser.add_argument(
      *names, dest=name, action=action, default=default, help=argparse.SUPPRESS
    )


def load_config(text: str) -> ConfigDict:
  """Returns the complete config of FILE or FILE:ARGUMENT.

  A file in configs/ that is not here is that of the installed package.

  Raises:
    ValueError: no such file, or it makes no config; as common.complete.
  """
  path, *argument = text.split(":", 1)
  shipped = pathlib.Path(common.__file__).parents[1] / path
  is_here = os.path.isfile(path)
  if not is_here and path.startswith("configs/") and shipped.is_file():
    print(f"--config {path}: not here, using {shipped}", file=sys.stderr)
    path = str(shipped)
  elif not is_here:
    raise ValueError(
      f"--config {path}: no such file, expected e.g. "
      "configs/transfers/forkme.py:batch_size=8"
    )
  name = f"config_{pathlib.Path(path).stem}"
  spec = importlib.util.spec_from_file_location(name, path)
  if spec is None:
    raise ValueError(f"--config {path}: expected a file of Python, *.py")
  module = sys.modules[name] = importlib.util.module_from_spec(spec)
  try:
    spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
      raise ValueError(f"--config {path}: has no function get_config")
    config = module.get_config(*argument)
  finally:
    # Data workers cannot import it by this name; of a module that is not there
    # cloudpickle sends them the ops themselves.
    del sys.modules[name]
  if not isinstance(config, dict | ConfigDict):
    raise ValueError(
      f"--config {path}: get_config returned {messages.shown(repr(config))}, "
      "expected a ConfigDict"
    )
  return common.complete(ConfigDict(config))


def set_values(config: ConfigDict, arguments: Sequence[str]) -> list[str]:
  """Sets the values that a command line gives on top of a config.

  A duration replaces the same one in another unit. Returns the arguments that
  are not of the form --config.name=value.

  Raises:
    ValueError: names that are not in the config, all of them with the nearest
      ones, or a value of another type.
  """
  given = [
    text.partition("=")[0].partition(".")[2]
    for text in arguments
    if text.lstrip("-").startswith("config.")
  ]
  common.add_open(config, given)
  if unknown := [name for name in given if not _is_in(config, name)]:
    known = common.names(config)
    raise ValueError(
      "; ".join(
        f"no such value in the config: {messages.shown(name)}."
        + registry.did_you_mean(name, known)
        for name in unknown
      )
    )
  values = flags.FlagValues()
  argv = ["config", *arguments]
  try:
    config_flags.DEFINE_config_dict(
      "config", config, flag_values=values, sys_argv=argv
    )
    _, *rest = values(argv, known_only=True)
  except flags.Error as error:
    raise ValueError(str(error)) from None
  common.unset_others(config, given)
  common.complete(config)
  return rest


def _is_in(config, name):
  try:
    config_path.get_value(name, config)
  except (AttributeError, IndexError, KeyError, TypeError, ValueError):
    return False
  return True


@contextlib.contextmanager
def mistakes_in_one_line() -> Iterator[None]:
  """Ends the program with one line on an error of a user or a disk."""
  try:
    with _quiet_threads():
      yield
  except (OSError, ValueError) as error:
    logging.vlog(1, "where it happened", exc_info=True)
    # What threads have to add later is no news.
    python_logging.getLogger("asyncio").disabled = True
    raise SystemExit(f"error: {messages.one_line(error)}") from None
  except KeyboardInterrupt:
    print("interrupted", file=sys.stderr)
    raise SystemExit(128 + signal.SIGINT) from None


@contextlib.contextmanager
def _quiet_threads():
  """Drops tracebacks of Orbax's threads; the main thread raises their error."""
  hook, logger = sys.unraisablehook, logging.get_absl_logger()

  def unraisable(what):
    # What tensorstore says when Orbax no longer waits for it.
    if str(what.exc_value) != "Event loop is closed":
      hook(what)

  def is_logged(record):
    return not (record.exc_info and "/orbax/" in record.pathname)

  sys.unraisablehook = unraisable
  logger.addFilter(is_logged)
  try:
    yield
  finally:
    sys.unraisablehook = hook
    logger.removeFilter(is_logged)
