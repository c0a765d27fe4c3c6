"""Files in folders, and those that an annotation names."""

import pathlib
from collections.abc import Sequence

from scripts.imports import entries, paths


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


def find(
  name: str,
  places: Sequence[pathlib.Path],
  where: str,
  problems: entries.Problems,
) -> pathlib.Path:
  """The file of that name in the first folder that has it (paths.find).

  Args:
    name: as annotated, with slashes of any system.
    places: folders to look in.
    where: the place that names it.
    problems: entries.Problems.

  Returns:
    its path, in the first folder if none has it.

  Raises:
    ValueError: it can be the name of no file.
  """
  try:
    for place in places:
      found = paths.find(name, place, where, problems)
      if found.is_file():
        return found
  except (OSError, ValueError):
    raise ValueError(
      f"{where}: {name!r:.60} can be the name of no file"
    ) from None
  return places[0] / name.strip().replace("\\", "/")
