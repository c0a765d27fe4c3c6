"""A source of image files without texts: files, folders and patterns."""

import glob
import hashlib
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
      are left out.

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
    """Names the photos by their paths and sizes in bytes."""
    digest = hashlib.sha256()
    for path in self._paths:
      digest.update(repr((path, disk.path(path).stat().length)).encode())
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
    found = glob.glob(name, recursive=True)
    found = [file for file in found if not disk.path(file).is_dir()]
    if not found:
      raise ValueError(f"{name}: no file has a name of this pattern")
  else:
    files.open_binary(name, what="image").close()
    found = [name]
  return sorted(found)


def _image_files(folder) -> Iterator[str]:
  for path in folder.iterdir():
    if path.name.startswith("."):
      continue
    if path.suffix.lower() in image_files.SUFFIXES:
      yield str(path)
    elif path.is_dir():
      yield from _image_files(path)
