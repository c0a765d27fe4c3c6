"""How every script ends: a mistake is one line, not a traceback."""

from trainers.command_line import mistakes_in_one_line


def run(main):
  """Calls main(); what a user did wrong is one line on stderr, and exit 1."""
  with mistakes_in_one_line():
    main()
