"""How every script ends: a user's mistake is one line, not a traceback."""


def run(main):
  """Calls main(); turns its ValueError into one line on stderr and exit 1."""
  try:
    main()
  except ValueError as error:
    raise SystemExit(f"error: {' '.join(str(error).split())}") from None
