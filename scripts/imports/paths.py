"""Paths in annotations, some of which were written on another machine."""

import pathlib
import re

from scripts.imports import entries


def find(
  text: str, folder: pathlib.Path, where: str, problems: entries.Problems
) -> pathlib.Path:
  r"""The file or folder that a path names.

  Where there is none, an absolute path or one that begins with ".." is taken as
  one of another machine: the longest end of it that is in the folder is found,
  as long as it names the same split, and noted. A "\" separates as "/" does.

  Args:
    text: the path.
    folder: what it is relative to.
    where: the place that names it.
    problems: entries.Problems.

  Returns:
    What is found, or else the path as it would be in the folder.
  """
  path = pathlib.PurePosixPath(text.strip().replace("\\", "/"))
  wanted = folder / path
  if wanted.exists():
    return wanted
  if path.parts and re.fullmatch(r"/+|\.\.|[a-zA-Z]:", path.parts[0]):
    for i in range(1, len(path.parts)):
      end = pathlib.PurePosixPath(*path.parts[i:])
      same = entries.split_of(end) == entries.split_of(path)
      if same and end.parts[0] != ".." and (folder / end).exists():
        problems.note("paths of another machine, found by their end", where)
        return folder / end
  return wanted
