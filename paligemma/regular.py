"""Files that end: what is none, a device or a pipe, is refused unread."""

import errno
import os
import stat

from etils import epath


def path(given: epath.PathLike) -> epath.Path:
  """Returns the path, to open it.

  Args:
    given: Path of a file, on any file system that etils.epath opens.

  Raises:
    OSError: It is an address of the web, or there is something that is neither
      a file nor a folder, and might be read for ever. That there is nothing is
      for who opens it to find.
  """
  try:
    epath.Path(given)
  except KeyError:  # of a scheme that etils.epath does not open
    reason = "an address, expected a path; download it first"
    raise OSError(errno.EINVAL, reason, str(given)) from None
  try:
    mode = os.stat(given).st_mode
  except (OSError, ValueError):  # nothing, not local, or a NUL in it
    return epath.Path(given)
  if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
    reason = "a device, a pipe or a socket, expected a file"
    raise OSError(errno.EINVAL, reason, str(given))
  return epath.Path(given)
