"""Opens files that a user names; an error says in one line why it cannot."""

import os
from typing import BinaryIO

from etils import epath

from paligemma import disk, messages

# Scheme of an address that etils.epath opens -> the package that it needs.
REMOTE = {"gs": "gcsfs", "s3": "s3fs", "az": "adlfs", "hf": "huggingface_hub"}


def resolve(
  name: epath.PathLike,
  root: epath.PathLike = "",
  *,
  what: str = "file",
  where: str | None = None,
) -> epath.Path:
  """Returns the path that a name stands for.

  Args:
    name: A path, or an address whose scheme is a key of REMOTE.
    root: What a relative path is relative to. Default: the current folder.
    what: What the file holds, for messages: "image".
    where: Prefix of error messages, such as "train.jsonl:12". Default: the
      path.

  Raises:
    ValueError: Another address, such as a URL.
  """
  scheme, mark, _ = os.fspath(name).partition("://")
  if not mark:
    return epath.Path(root) / name
  if scheme in REMOTE:
    return epath.Path(name)
  known = ", ".join(f"{known}://" for known in REMOTE)
  raise _unreadable(
    name,
    what,
    where,
    f"it is an address, of which {known} are read; download the file and give "
    "its path",
  )


def open_binary(
  path: epath.Path, *, what: str = "file", where: str | None = None
) -> BinaryIO:
  """Opens a file for reading.

  Args:
    path: Of `resolve`.
    what, where: As of `resolve`.

  Raises:
    ValueError: The file is missing or not readable, it is a folder, a device or
      a pipe, or the package for its address is missing.
  """
  try:
    return disk.path(path).open("rb")
  except ImportError:
    scheme, _, _ = os.fspath(path).partition("://")
    reason = f"{scheme}:// needs a package: pip install {REMOTE[scheme]}"
  except Exception as error:  # each remote file system has its own errors
    reason = _reason(error)
  raise _unreadable(path, what, where, reason)


def read(
  path: epath.Path,
  *,
  what: str = "file",
  where: str | None = None,
  max_bytes: int | None = None,
) -> bytes:
  """Returns the contents of a file.

  Args:
    path: Of `resolve`.
    what, where: As of `resolve`.
    max_bytes: Largest size. Default: no limit.

  Raises:
    ValueError: As `open_binary`, or the file is too large.
  """
  with open_binary(path, what=what, where=where) as file:
    try:
      data = file.read(-1 if max_bytes is None else max_bytes + 1)
    except Exception as error:
      reason = _reason(error)
    else:
      if max_bytes is None or len(data) <= max_bytes:
        return data
      reason = f"it has more than {max_bytes} bytes"
  raise _unreadable(path, what, where, reason)


def _reason(error):
  return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _unreadable(path, what, where, reason):
  shown = os.fspath(path)
  if where is None:
    text = f"{shown}: cannot read {what}: {reason}"
  else:
    text = f"{where}: cannot read {what} {shown}: {reason}"
  return ValueError(messages.one_line(text))
