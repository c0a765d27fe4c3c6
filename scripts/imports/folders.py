"""Files in folders, and the pictures that an annotation names."""

import pathlib
import re
from collections.abc import Sequence


def ending(folder: pathlib.Path, *suffixes: str) -> list[pathlib.Path]:
  """The files in a folder and below with such names, in order.

  What begins with "." is none, as "._a.json", which a Mac leaves in archives.

  Raises:
    ValueError: there is none.
  """
  found = sorted(
    path
    for path in folder.rglob("*")
    if path.name.lower().endswith(suffixes)
    and not any(x.startswith(".") for x in path.relative_to(folder).parts)
    and path.is_file()
  )
  if not found:
    raise ValueError(f"{folder}: no file of *{', *'.join(suffixes)} in it")
  return found


def find(name: str, places: Sequence[pathlib.Path]) -> pathlib.Path:
  """The picture of that name in the first folder that has it.

  Of a path that begins at a root, or leaves its folder, the last part counts
  where nothing lies there: it is that of the machine it was annotated on.

  Args:
    name: as annotated, with slashes of any system.
    places: folders to look in.

  Returns:
    its path, in the first folder if none has it.
  """
  path = pathlib.PurePosixPath(name.strip().replace("\\", "/"))
  names = [path]
  if path.is_absolute() or ".." in path.parts or re.match("[A-Za-z]:", name):
    names.append(pathlib.PurePosixPath(path.name))
  options = [place / option for option in names for place in places]
  return next((path for path in options if path.is_file()), options[0])
