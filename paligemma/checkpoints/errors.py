"""One line for whatever is wrong with a checkpoint."""

import contextlib
from collections.abc import Iterator

from etils import epath

from paligemma import messages


@contextlib.contextmanager
def named(path: epath.PathLike) -> Iterator[None]:
  """Puts a ValueError on one line that names `path`, see messages.one_line.

  Args:
    path: Of the checkpoint that is being opened or read.
  """
  try:
    yield
  except ValueError as e:
    message = messages.one_line(e)
    where = messages.one_line(path)
    if where not in message:
      message = f"{where}: {message}"
    if message == str(e):
      raise
    raise ValueError(message) from None
