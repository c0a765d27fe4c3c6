"""Files in folders, and files that an annotation names."""

import errno
import pathlib
import re
from collections.abc import Sequence

from scripts.imports import entries, files


def matching(folder: pathlib.Path, pattern: str) -> list[pathlib.Path]:
  """The paths in a folder that match a glob and are not hidden, in order.

  Hidden are names that begin with "." and all in __MACOSX, in which archives of
  a Mac keep "._a.jpg".
  """

  def is_hidden(name):
    return name.startswith(".") or name == "__MACOSX"

  return sorted(
    path
    for path in folder.glob(pattern)
    if not any(map(is_hidden, path.relative_to(folder).parts))
  )


def ending(folder: pathlib.Path, *suffixes: str) -> list[pathlib.Path]:
  """The files in a folder and below with these endings, hidden ones aside."""
  found = [
    path
    for path in matching(folder, "**/*")
    if path.name.lower().endswith(suffixes) and path.is_file()
  ]
  if not found:
    raise ValueError(f"{folder}: no file of *{', *'.join(suffixes)} in it")
  return found


def root_and_files(
  src: pathlib.Path, *suffixes: str
) -> tuple[pathlib.Path, list[pathlib.Path]]:
  """A folder and its files with these endings; of a file (folder, [file])."""
  if src.is_dir():
    return src, ending(src, *suffixes)
  return src.parent, [src]


def find(
  name: str,
  places: Sequence[pathlib.Path],
  where: str,
  problems: entries.Problems,
) -> pathlib.Path:
  r"""The file or folder of that name, in the first folder that has it.

  If none has it, an absolute path or one that begins with ".." is taken as one
  of another machine: the longest end of it that is in a folder and names the
  same split is returned, and noted. A "\" separates as "/" does.

  What is not found is returned as a path in the first folder.
  """
  plain = name.strip().replace("\\", "/")
  try:
    for place in places:
      for option in dict.fromkeys((name, plain)):
        if _exists(place / option):
          return place / option
      for end in _ends(plain):
        if _exists(place / end):
          problems.note("paths of another machine, found by their end", where)
          return place / end
  except (OSError, ValueError):
    raise ValueError(
      f"{where}: {name!r:.60} can be the name of no file"
    ) from None
  return places[0] / plain


def _exists(path):
  try:
    path.stat()
  except OSError as error:
    if error.errno == errno.ENAMETOOLONG:
      raise
    return False
  return True


def _ends(name):
  """Yields the ends of a path of another machine, longest first."""
  path = pathlib.PurePosixPath(name)
  if not path.parts or not re.fullmatch(r"/+|\.\.|[a-zA-Z]:", path.parts[0]):
    return
  for i in range(1, len(path.parts)):
    end = pathlib.PurePosixPath(*path.parts[i:])
    same = entries.split_of(end, None) == entries.split_of(path, None)
    if same and end.parts[0] != "..":
      yield end


def image_sets(folder: pathlib.Path, kind: str) -> list[tuple[str, list[str]]]:
  """(split, its lines) of each ImageSets/KIND/train.txt, as VOC has them."""
  paths = {
    folder / "ImageSets" / kind / f"{name}.txt": split
    for name, split in entries.SPLITS.items()
  }
  return [
    (split, files.read_words(path))
    for path, split in paths.items()
    if path.is_file()
  ]
