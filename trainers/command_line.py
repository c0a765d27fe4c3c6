"""The flag --config, and how programs end: a user's mistake is one line."""

import contextlib
import logging as python_logging
import signal
import sys

from absl import flags, logging
from ml_collections import config_flags

from paligemma import messages

CONFIG = config_flags.DEFINE_config_file("config", None, "Config file.")


def parse_flags(argv):
  """Reads the command line; a mistake in it or in a config ends in one line."""
  try:
    return flags.FLAGS(argv)
  except AttributeError as error:
    if not isinstance(error.args[0], KeyError):
      raise  # a fault in the config's code, not a name that is not in it
    message = f"no such value in the config: {error.args[0].args[0]}"
  except flags.Error as error:
    *trace, message = str(error).strip().splitlines()
    if not message.startswith("ValueError: "):  # a fault in the config's code
      sys.stderr.writelines(f"{line}\n" for line in trace)
  raise SystemExit(ending(message.removeprefix("ValueError: ")))


@contextlib.contextmanager
def mistakes_in_one_line():
  """Ends the program with one line on what a user or a disk did wrong."""
  background = _Background()
  try:
    with background:
      yield
  except (OSError, ValueError) as error:
    logging.vlog(1, "where it happened", exc_info=True)
    # What threads have to add later is no news.
    python_logging.getLogger("asyncio").disabled = True
    raise SystemExit(ending(error)) from None
  except KeyboardInterrupt:
    print("interrupted", file=sys.stderr)
    raise SystemExit(128 + signal.SIGINT) from None


class _Background:
  """Tracebacks of threads of Orbax, whose error the main thread raises too."""

  def __enter__(self):
    self._hook, sys.unraisablehook = sys.unraisablehook, self._unraisable
    logging.get_absl_logger().addFilter(self._filter)

  def __exit__(self, *_):
    sys.unraisablehook = self._hook
    logging.get_absl_logger().removeFilter(self._filter)

  def _unraisable(self, what):
    # What tensorstore says when Orbax no longer waits for it.
    if str(what.exc_value) != "Event loop is closed":
      self._hook(what)

  def _filter(self, record):
    return not (record.exc_info and "/orbax/" in record.pathname)


def ending(error):
  """What SystemExit prints about a mistake."""
  return f"error: {messages.one_line(error)}"
