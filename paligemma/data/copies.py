"""Which images are copies of one picture, and a share of the pictures.

What is trained on and what is evaluated on must have no picture in common, or
the scores are too good.
"""

import hashlib
import pathlib
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from etils import epath

from paligemma import disk

# Roboflow writes as many augmented copies of x.jpg: "x_jpg.rf.5d41402a.jpg".
_COPY = re.compile(r"(.+)\.rf\.\w+\.\w+")
_END = 4096  # bytes of a file that are compared first

Files = Mapping[str, epath.PathLike]


def pictures(files: Files, together: Iterable[Sequence[str]]) -> dict[str, str]:
  """Maps the name of each image to that of the first image of its picture.

  Images are of one picture if they are augmented copies, as their names tell;
  if their files have equal contents; or if they are in one list of `together`.

  Args:
    files: name -> file. A file that is not there is its own picture.
    together: lists of names, at least one name each.
  """
  found = {name: name for name in files}

  def first(name):
    while found[name] != name:
      found[name] = found[found[name]]
      name = found[name]
    return name

  copies = defaultdict(list)
  for name, file in files.items():
    if match := _COPY.fullmatch(pathlib.PurePath(file).name):
      copies[match[1]].append(name)
  for names in (*copies.values(), *of_equal_contents(files), *together):
    for other in names[1:]:
      found[first(other)] = first(names[0])
  return {name: first(name) for name in files}


def share(
  picture: Mapping[str, str],
  fraction: float,
  *,
  seed: str = "",
  what: str = "images of {} pictures",
) -> set[str]:
  """Draws pictures that have about so large a fraction of the images.

  Which ones depends on file names and the seed alone: the same are drawn again
  as long as the data set stays the same.

  Args:
    picture: as `pictures` returns it.
    fraction: in (0, 1).
    seed: any text.
    what: is drawn from, in the error.

  Raises:
    ValueError: that is no image, or all of them.
  """
  sizes = defaultdict(int)
  for first in picture.values():
    sizes[first] += 1

  def shuffled(image):
    name = pathlib.PurePath(image).name
    return hashlib.sha256(f"{seed}{name}".encode()).digest()

  count = round(fraction * len(picture))
  drawn, taken = set(), 0
  for first in sorted(sizes, key=shuffled):
    if sizes[first] < 2 * (count - taken):  # it comes nearer to the count
      drawn.add(first)
      taken += sizes[first]
  if not 0 < taken < len(picture):
    raise ValueError(
      f"{fraction:g} of {len(picture)} {what.format(len(sizes))} is {taken}, "
      "which leaves train or val without any"
    )
  return drawn


def of_equal_contents(files: Files) -> list[list[str]]:
  """Returns groups of two or more images whose files have equal contents.

  Few have the size of another one, and few of those the same end, so that
  hardly a file is read that has no copy.
  """
  groups = [list(files)]
  for key in (_size, _end, _contents):
    finer = []
    for group in groups:
      by_key = defaultdict(list)
      for name in group:
        try:
          by_key[key(disk.path(files[name]))].append(name)
        except (OSError, ValueError):  # reported where the image is read
          continue
      finer += [names for names in by_key.values() if len(names) > 1]
    groups = finer
  return groups


def _size(file):
  return file.stat().length


def _end(file):
  with file.open("rb") as opened:
    opened.seek(max(0, _size(file) - _END))
    return opened.read()


def _contents(file):
  return hashlib.sha256(file.read_bytes()).digest()
