"""Folders that appear when they are complete."""

import contextlib
import os
import pathlib
import shutil
from collections.abc import Iterator


@contextlib.contextmanager
def new_folder(path: pathlib.Path) -> Iterator[pathlib.Path]:
  """Makes a folder of the local file system as a whole or not at all.

  Args:
    path: Folder to make, with its parents. It may not exist, or be empty.

  Yields:
    A folder beside it to write to, which is renamed at the end, or removed if
    there was an error. What a killed process left under its own number is
    removed first.
  """
  temporary = path.parent / f".{path.name}.{os.getpid()}.tmp"
  shutil.rmtree(temporary, ignore_errors=True)
  try:
    temporary.mkdir(parents=True)
    yield temporary
    temporary.rename(path)
  finally:
    shutil.rmtree(temporary, ignore_errors=True)
