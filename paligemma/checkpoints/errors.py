"""One line for whatever is wrong with a checkpoint."""

import contextlib
from collections.abc import Iterator

from etils import epath

from paligemma import messages

# What tensorstore and NumPy raise on bad files, and Python on JSON that holds
# other types than it should. A corrupt header may ask for any memory.
BAD_FILE = (
  ArithmeticError,
  AttributeError,
  LookupError,
  MemoryError,
  OSError,
  RuntimeError,
  TypeError,
  ValueError,
)


@contextlib.contextmanager
def named(path: epath.PathLike) -> Iterator[None]:
  """Puts a ValueError on one line that names `path`, see messages.one_line."""
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
