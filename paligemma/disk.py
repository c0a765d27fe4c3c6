"""Files of users: read only if they end, written as a whole or not at all.

What is none, a device or a pipe, is refused unread.

They are written beside their place, as .NAME.HOST.PID.tmp, and renamed at the
end, once the disk has them. What a killed writer left there is removed by the
next one.
"""

import contextlib
import errno
import os
import pathlib
import socket
import stat
import time
from collections.abc import Iterator, Sequence

from etils import epath

# Of another host nobody can say whether the writer lives: one that has not
# touched what it writes for so long does not.
_SECONDS = 3600.0


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


def file_in(given: epath.PathLike, names: Sequence[str]) -> epath.Path:
  """Returns the path of a file, which may be given by its folder.

  Args:
    given: Path of the file, or of a folder with one.
    names: Of the file in a folder; the first that is there counts.

  Raises:
    OSError: As `path`.
    ValueError: The folder has none of them.
  """
  found = path(given)
  if not found.is_dir():
    return found
  for name in names:
    if (found / name).exists():
      return found / name
  raise ValueError(f"{found}: holds neither {' nor '.join(names)}")


@contextlib.contextmanager
def file(path: epath.PathLike) -> Iterator[epath.Path]:
  """Makes or replaces a file as a whole or not at all.

  Args:
    path: File to write, on any file system that etils.epath opens; its folder
      is made.

  Yields:
    A path beside it to write to, which is renamed at the end, or removed if
    there was an error.

  Raises:
    OSError: It cannot be written; names the path.
  """
  path = epath.Path(path)
  with named(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    clear(path)
    temporary = beside(path)
    try:
      yield temporary
      publish(temporary, path)
    finally:
      _remove(temporary)


@contextlib.contextmanager
def folder(path: epath.PathLike) -> Iterator[pathlib.Path]:
  """Makes a folder of the local file system as a whole or not at all.

  Args:
    path: Folder to make, with its parents. It may not exist, or be empty.

  Yields:
    A folder beside it to write to, which is renamed at the end, or removed if
    there was an error.

  Raises:
    OSError: It cannot be written; names the path.
  """
  with file(path) as temporary:
    temporary.mkdir()
    yield pathlib.Path(temporary)


def write(path: epath.PathLike, content: str | bytes) -> None:
  """Makes or replaces a file that holds `content`, text as UTF-8."""
  with file(path) as temporary:
    content = content.encode() if isinstance(content, str) else content
    temporary.write_bytes(content)


def beside(path: epath.PathLike, writer: str | None = None) -> epath.Path:
  """Where to write what is to become `path`.

  Args:
    path: What is to appear.
    writer: "HOST.PID". Default: of this process.
  """
  path = epath.Path(path)
  writer = writer or f"{socket.gethostname()}.{os.getpid()}"
  return path.parent / f".{path.name}.{writer}.tmp"


def clear(path: epath.PathLike) -> None:
  """Removes what killed writers, or one of our number, left beside `path`."""
  path, own = epath.Path(path), beside(path)
  start, end = f".{path.name}.", ".tmp"
  if not path.parent.exists():
    return
  for other in path.parent.iterdir():
    if other.name.startswith(start) and other.name.endswith(end):
      writer = other.name[len(start) : -len(end)]
      if other.name == own.name or _is_left(other, writer):
        _remove(other)


def publish(temporary: epath.PathLike, path: epath.PathLike) -> None:
  """Renames what is complete, once the disk has it."""
  local = os.path.exists(temporary)
  if local:
    _sync(temporary)
  epath.Path(temporary).replace(path)
  if local:
    _sync_folder(os.path.dirname(os.path.abspath(path)))


def lives(pid: int) -> bool:
  """Whether there is such a process on this machine, and not only its end."""
  try:
    os.kill(pid, 0)
  except PermissionError:
    return True
  except (OverflowError, ProcessLookupError):
    return False
  try:
    stat = pathlib.Path(f"/proc/{pid}/stat").read_text()
  except OSError:
    return True  # not Linux
  return stat.rpartition(")")[2].split()[0] != "Z"


def _is_left(path, writer):
  host, _, pid = writer.rpartition(".")
  if not host or not pid.isdigit():
    return False  # not of our making
  if host == socket.gethostname():
    return not lives(int(pid))
  try:
    return time.time() - path.stat().mtime > _SECONDS
  except OSError:  # renamed or removed in this moment
    return False


def _remove(path):
  with contextlib.suppress(OSError):
    path.rmtree() if path.is_dir() else path.unlink(missing_ok=True)


def _sync(path):
  for below, _, names in os.walk(path):
    for name in names:
      _sync_file(os.path.join(below, name))
    _sync_folder(below)
  if not os.path.isdir(path):
    _sync_file(path)


def _sync_file(path):
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)


def _sync_folder(path):
  with contextlib.suppress(OSError):  # some file systems cannot
    _sync_file(path)


@contextlib.contextmanager
def named(path: epath.PathLike) -> Iterator[None]:
  """An error of writing names the path, which that of a full disk does not."""
  try:
    yield
  except OSError as error:
    if error.filename is None and error.errno is not None:
      raise OSError(error.errno, error.strerror, str(path)) from error
    raise
