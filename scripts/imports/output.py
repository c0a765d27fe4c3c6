"""The folder that an import writes: all of its files, or none of them."""

import contextlib
import dataclasses
import filecmp
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterable
from typing import Any

from scripts.imports import entries


class Output:
  """A context whose files appear in a folder at its end, if there is no error.

  Images come to lie in images/SPLIT under their own names, or, where two of
  them have the same, as "a.png" and "a-2.png". The folder need not exist, but
  other files of these names may not be in it.
  """

  def __init__(self, folder: pathlib.Path):
    self.folder = folder
    self.images = {}  # name in the JSONL -> where it can be read in the context
    self._places = {}  # of what is to appear, relative to the folder
    self._taken = set()  # the same in lower case, as some systems compare them
    self._copied = {}  # (split, image) -> its place

  def __enter__(self):
    # In the file system of the folder, so that files need only be renamed.
    base = self.folder.absolute()
    while not base.is_dir():
      base = base.parent
    with self._writing():
      self._staged = pathlib.Path(tempfile.mkdtemp(prefix=".import-", dir=base))
    return self

  def __exit__(self, kind, error, trace):
    try:
      if kind is None:
        with self._writing():
          self._move()
    finally:
      shutil.rmtree(self._staged, ignore_errors=True)

  def store(self, entry: entries.Entry) -> entries.Entry:
    """Writes image contents to files; returns the entry with their paths."""
    images = (self._stored(image, entry.split) for image in entry.images)
    return dataclasses.replace(entry, images=tuple(images))

  def name(self, image: pathlib.Path, split: str, *, copy: bool) -> str:
    """The path of an image in the JSONL; copies the image if asked to."""
    if image.is_relative_to(self._staged):
      path = self.folder / self._keep(image.relative_to(self._staged))
    elif copy:
      path = self.folder / self._copy(image, split)
    else:
      path = image
    name = pathlib.PurePath(os.path.relpath(path, self.folder)).as_posix()
    self.images[name] = image
    return name

  def write(self, name: str, lines: Iterable[dict[str, Any]]) -> None:
    """Writes a JSONL file, one object a line."""
    path = self._staged / self._keep(pathlib.PurePath(name))
    with self._writing(), path.open("w", encoding="utf-8", newline="") as file:
      for line in lines:
        text = json.dumps(line, ensure_ascii=False, allow_nan=False)
        file.write(f"{text}\n")

  def _stored(self, image, split):
    if isinstance(image, pathlib.Path):
      return image
    path = self._staged / self._free(image.path, split)
    with self._writing():
      path.write_bytes(image.data)
    return path

  def _copy(self, image, split):
    if (split, image) not in self._copied:
      place = self._free(image, split)
      with self._writing():
        shutil.copyfile(image, self._staged / place)
      self._copied[split, image] = self._keep(place)
    return self._copied[split, image]

  def _free(self, image, split):
    """A path in images/SPLIT that no other image has; makes its folder."""
    folder = pathlib.PurePath("images", split)
    place, number = folder / image.name, 1
    while str(place).lower() in self._taken:
      number += 1
      place = folder / f"{image.stem}-{number}{image.suffix}"
    self._taken.add(str(place).lower())
    with self._writing():
      (self._staged / folder).mkdir(parents=True, exist_ok=True)
    return place

  def _keep(self, place):
    self._places[place] = None
    return place

  def _move(self):
    for place in self._places:
      old, new = self.folder / place, self._staged / place
      if old.exists() and not filecmp.cmp(old, new, shallow=False):
        raise ValueError(f"{old}: exists; remove it or name another folder")
    for place in self._places:  # JSONL files are last: what they name is there
      (self.folder / place).parent.mkdir(parents=True, exist_ok=True)
      (self._staged / place).replace(self.folder / place)

  @contextlib.contextmanager
  def _writing(self):
    try:
      yield
    except OSError as error:
      reason = error.strerror or error
      raise ValueError(
        f"{self.folder}: cannot write to it: {reason}"
      ) from error
