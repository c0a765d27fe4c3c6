"""Files of users: devices and pipes are not read, writes are atomic.

A file is written beside its path, as .NAME.HOST.PID.tmp, synced to the disk and
renamed. The next writer removes what a killed one left.
"""

import contextlib
import errno
import json
import os
import pathlib
import socket
import stat
import time
from collections.abc import Iterator, Sequence
from typing import Any

from etils import epath

# A writer on another host counts as dead once its file is unchanged so long.
DEAD_AFTER_SECONDS = 3600.0


def path(given: epath.PathLike) -> epath.Path:
  """Returns a path that is safe to open; nothing need be there.

  A file in paligemma/assets that is not here is that of the installed package.

  Raises:
    OSError: A web address, or neither a file nor a folder, but a device, pipe
      or socket, which might never end.
  """
  try:
    epath.Path(given)
  except KeyError:  # of a scheme that etils.epath does not open
    reason = "an address, expected a path; download it first"
    raise OSError(errno.EINVAL, reason, str(given)) from None
  if (
    str(given).startswith("paligemma/assets/")
    and not os.path.exists(given)
    and (shipped := pathlib.Path(__file__).parents[1] / given).exists()
  ):
    return epath.Path(shipped)
  try:
    mode = os.stat(given).st_mode
  except (OSError, ValueError):  # missing, not local, or with a NUL in it
    return epath.Path(given)
  if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
    reason = "a device, a pipe or a socket, expected a file"
    raise OSError(errno.EINVAL, reason, str(given))
  return epath.Path(given)


def file_in(given: epath.PathLike, names: Sequence[str]) -> epath.Path:
  """Returns the path of a file that is given, or is in the folder given.

  Args:
    given: Path of the file or folder.
    names: Of the file in a folder; the first that exists is taken.

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


def read_json(given: epath.PathLike) -> dict[str, Any]:
  """Reads a JSON object.

  Raises:
    ValueError: There is no such file, or it holds no JSON object.
  """
  try:
    values = json.loads(path(given).read_bytes())
  except OSError as e:
    raise ValueError(f"{given}: {e.strerror or e}") from None
  except (ValueError, RecursionError) as e:
    reason = str(e).splitlines()[0]
    raise ValueError(f"{given}: is no JSON ({reason})") from None
  if not isinstance(values, dict):
    raise ValueError(f"{given}: is no JSON object")
  return values


@contextlib.contextmanager
def file(path: epath.PathLike) -> Iterator[epath.Path]:
  """Creates or replaces a file atomically.

  Args:
    path: File to write, on any file system that etils.epath opens; its folder
      is created.

  Yields:
    A temporary path to write to, which is renamed at the end, or removed after
    an error.

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
  """Creates a folder of the local file system atomically.

  Args:
    path: Folder to create, with its parents. It may exist if it is empty.

  Yields:
    A temporary folder, renamed or removed as in `file`.

  Raises:
    OSError: It holds something, or cannot be written; names the path.
  """
  path = epath.Path(path)
  if path.exists() and (not path.is_dir() or any(path.iterdir())):
    reason = "exists already, expected a new folder: remove it or name another"
    raise FileExistsError(errno.EEXIST, reason, str(path))
  with file(path) as temporary:
    temporary.mkdir()
    yield pathlib.Path(temporary)


def write(path: epath.PathLike, content: str | bytes) -> None:
  """Creates or replaces a file atomically; a str is written as UTF-8."""
  with file(path) as temporary:
    content = content.encode() if isinstance(content, str) else content
    temporary.write_bytes(content)


def beside(path: epath.PathLike, writer: str | None = None) -> epath.Path:
  """Returns the temporary path of a writer "HOST.PID", default this process."""
  path = epath.Path(path)
  writer = writer or f"{socket.gethostname()}.{os.getpid()}"
  return path.parent / f".{path.name}.{writer}.tmp"


def clear(path: epath.PathLike) -> None:
  """Removes temporary files that killed writers or this process left."""
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
  """Syncs a complete file or folder to the disk, then renames it."""
  local = os.path.exists(temporary)
  if local:
    _sync(temporary)
  epath.Path(temporary).replace(path)
  if local:
    _sync_folder(os.path.dirname(os.path.abspath(path)))


def lives(pid: int) -> bool:
  """Returns whether a process of this machine exists and is not a zombie."""
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
    return False  # not written by this module
  if host == socket.gethostname():
    return not lives(int(pid))
  try:
    return time.time() - path.stat().mtime > DEAD_AFTER_SECONDS
  except OSError:  # renamed or removed just now
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
  """Adds the path to an OSError that lacks it, such as that of a full disk."""
  try:
    yield
  except OSError as error:
    if error.filename is None and error.errno is not None:
      raise OSError(error.errno, error.strerror, str(path)) from error
    raise
