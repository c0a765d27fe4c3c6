"""The flag --config, and how programs that read one end: in one line."""

import sys

from absl import flags
from ml_collections import config_flags

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
  raise SystemExit(one_line(message.removeprefix("ValueError: ")))


def one_line(error):
  """What SystemExit prints about a mistake."""
  return f"error: {' '.join(str(error).split())}"
