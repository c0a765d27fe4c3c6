"""Command lines with a --config, its overrides, and arguments of their own."""

import sys

from absl import flags, logging

from trainers.command_line import CONFIG, parse_flags


def parse(parser):
  """Reads sys.argv.

  Args:
    parser: argparse.ArgumentParser of all but --config and --config.name=value.

  Returns:
    Tuple of its namespace and the config.
  """
  args, rest = parser.parse_known_args()
  logging.set_verbosity(logging.WARNING)  # Orbax tells every file at INFO
  flags.mark_flag_as_required("config")
  left = parse_flags([sys.argv[0], *rest])[1:]
  if left:
    parser.error(f"unrecognized arguments: {' '.join(left)}")
  return args, CONFIG.value
