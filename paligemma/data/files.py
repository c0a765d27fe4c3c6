"""Opens files that a user names; an error says in one line why it cannot."""

import os
from typing import BinaryIO

from etils import epath

from paligemma import disk, messages

# Scheme of an address -> the package with which etils.epath opens it.
_PACKAGES = {
  "gs": "gcsfs",
  "s3": "s3fs",
  "az": "adlfs",
  "hf": "huggingface_hub",
}


def resolve(name: epath.PathLike, root: epath.PathLike = "") -> str:
  """Returns a path, relative to a root; an address stays as it is."""
  name = os.fspath(name)
  return name if "://" in name else os.path.join(root, name)


def open_binary(
  path: epath.PathLike, *, what: str = "file", where: str | None = None
) -> BinaryIO:
  """Opens a file for reading.

  Args:
    path: A path, or an address on gs://, s3://, az:// or hf://.
    what: What the file holds, for messages: "image".
    where: Prefix of errors, such as "train.jsonl:12". Default: the path.

  Raises:
    ValueError: The file is missing or not readable, it is a folder, a device, a
      pipe or another address, or the package for its address is missing.
  """
  try:
    return disk.path(path).open("rb")
  except ImportError:
    scheme, _, _ = os.fspath(path).partition("://")
    reason = f"{scheme}:// needs a package: pip install {_PACKAGES[scheme]}"
  except Exception as error:  # each remote file system has its own errors
    reason = error
  raise _unreadable(path, what, where, reason)


def read(
  path: epath.PathLike,
  *,
  what: str = "file",
  where: str | None = None,
  max_bytes: int | None = None,
) -> bytes:
  """Returns the contents of a file of at most max_bytes.

  Other arguments and errors as of `open_binary`.
  """
  with open_binary(path, what=what, where=where) as file:
    try:
      data = file.read(-1 if max_bytes is None else max_bytes + 1)
    except Exception as error:
      raise _unreadable(path, what, where, error) from None
  if max_bytes is not None and len(data) > max_bytes:
    reason = f"it has more than {max_bytes} bytes"
    raise _unreadable(path, what, where, reason)
  return data


def _unreadable(path, what, where, reason):
  path = os.fspath(path)
  reason = getattr(reason, "strerror", None) or str(reason) or repr(reason)
  start, name = (path, "") if where is None else (where, f" {path}")
  return ValueError(
    messages.one_line(f"{start}: cannot read {what}{name}: {reason}")
  )
