"""One line for whatever is wrong with a checkpoint."""

import contextlib
from collections.abc import Iterator

from etils import epath

_LONGEST = 1500  # characters


@contextlib.contextmanager
def named(path: epath.PathLike) -> Iterator[None]:
  """Puts a ValueError on one line that names `path` and is not too long.

  Files say what they like: names of tensors with line breaks in them, or of a
  million characters.

  Args:
    path: Of the checkpoint that is being opened or read.
  """
  try:
    yield
  except ValueError as e:
    message = _printable(str(e))
    where = _printable(str(path))
    if where not in message:
      message = f"{where}: {message}"
    if len(message) > _LONGEST + len(where):
      message = f"{message[: _LONGEST + len(where)]} ..."
    if message == str(e):
      raise
    raise ValueError(message) from None


def _printable(text: str) -> str:
  """Text on one line, with escapes for what has no glyph."""
  return "".join(
    char if char.isprintable() else char.encode("unicode_escape").decode()
    for char in " ".join(text.split())
  )
