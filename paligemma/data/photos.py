"""A source of image files without texts: files, folders and patterns."""

import glob
import hashlib
import os
from collections.abc import Iterator, Sequence
from typing import Any

from etils import epath

from paligemma import disk
from paligemma.data import files, image_files, pictures


class Photos:
  """Image files, each once, in the order of the names, those of one sorted.

  Args:
    names: Paths of image files; of folders, whose image files, also in folders
      below, are known by their suffix (image_files.SUFFIXES); or patterns such
      as "photos/*.jpg", in which "**" is any number of folders. Hidden files
      are left out, and so is what a link finds again in a folder around it.

  Raises:
    ValueError: A name is of no file, or of a folder or pattern without image
      files.
  """

  def __init__(self, names: Sequence[epath.PathLike]):
    found = (path for name in names for path in _find(str(name)))
    self._paths = list(dict.fromkeys(found))

  def __len__(self) -> int:
    return len(self._paths)

  def __getitem__(self, index: int) -> dict[str, Any]:
    path = self._paths[index]
    return {**self._without_image(path), "image": pictures.read(path)}

  def __str__(self) -> str:
    return f"{len(self)} photos from {self._paths[0]} on"

  def frames(self) -> int:
    """As Jsonl.frames: one image."""
    return 0

  def without_images(self) -> Iterator[dict[str, Any]]:
    """As Jsonl.without_images."""
    return map(self._without_image, self._paths)

  def fingerprint(self) -> str:
    """Names the photos by their paths and sizes in bytes, -1 of a dead link."""
    digest = hashlib.sha256()
    for path in self._paths:
      file = disk.path(path)
      size = file.stat().length if file.exists() else -1
      digest.update(repr((path, size)).encode())
    return f"sha256:{digest.hexdigest()}"

  def _without_image(self, path):
    return {"image": None, "_image_path": path, "_where": path}


def _find(name) -> list[str]:
  path = disk.path(name)
  if path.is_dir():
    found = list(_image_files(path))
    if not found:
      raise ValueError(
        f"{name}: the folder has no image files, expected names such as a.jpg"
      )
  elif glob.has_magic(name) and not path.exists():
    found = _matching(name)
    found = [file for file in found if not disk.path(file).is_dir()]
    if not found:
      raise ValueError(f"{name}: no file has a name of this pattern")
  else:
    files.open_binary(name, what="image").close()
    found = [name]
  return sorted(found)


def _image_files(folder) -> Iterator[str]:
  for below in _folders(folder):
    for path in below.iterdir():
      is_hidden = path.name.startswith(".")
      if path.suffix.lower() in image_files.SUFFIXES and not is_hidden:
        yield str(path)


def _folders(folder, above=()) -> Iterator[epath.Path]:
  """A folder, which was reached through those `above`, and all in it."""
  real = os.path.realpath(folder)
  if real in above:  # a link leads back
    return
  yield folder
  for path in folder.iterdir():
    is_hidden = path.name.startswith(".")
    is_image = path.suffix.lower() in image_files.SUFFIXES
    if not is_hidden and not is_image and path.is_dir():
      yield from _folders(path, (*above, real))


def _matching(pattern) -> list[str]:
  """What glob.glob finds, which goes round in circles where links do."""
  parts = pattern.split("/")
  if "**" not in parts:
    return glob.glob(pattern)
  at = parts.index("**")
  start, rest = "/".join((*parts[:at], "")), parts[at + 1 :] or ["*"]
  return [
    str(epath.Path(path))  # "./a.jpg" is "a.jpg"
    for root in (glob.glob(start) if at else ["."])
    for folder in _folders(disk.path(root))
    for path in _matching(os.path.join(glob.escape(str(folder)), *rest))
  ]
