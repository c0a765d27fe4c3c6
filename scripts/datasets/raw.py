"""Files as publishers ship them: in a folder or in its archives."""

import collections
import concurrent.futures
import contextlib
import csv
import io
import json
import lzma
import os
import pathlib
import pickle
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO, NamedTuple, TextIO

from paligemma import disk
from scripts.datasets.json_stream import JsonStream
from scripts.imports import hf

_TAR = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
_PACKED = (".gz", ".bz2")  # of single files
_THREADS = 8  # that unpack pictures of one zip
_DAMAGE = (
  *(zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError),
  *(EOFError, OSError, NotImplementedError, RuntimeError),
)


class Place(NamedTuple):
  """Where a file lies."""

  path: str  # relative to the folder, or in the archive
  archive: str | None = None  # relative to the folder


class Raw:
  """A folder with the files of a data set.

  A file is found by the end of its path: "train2014/COCO_x.jpg" wherever the
  folder train2014 lies, or in whatever zip or tar it is.

  Args:
    folder: What was downloaded.
    sources: Name of a file -> the address it comes from, for errors.

  Attributes:
    opened: The files that were opened: path -> [bytes, time of change].

  Raises:
    ValueError: There is no such folder. On access, what is missing or damaged.
  """

  def __init__(self, folder: os.PathLike | str, sources: Mapping[str, str]):
    self.folder = pathlib.Path(folder)
    if not self.folder.is_dir():
      raise ValueError(
        f"{self.folder}: no such folder, expected one with the files that "
        "--list names"
      )
    self.opened: dict[str, list[int]] = {}
    self._sources = sources
    self._plain = collections.defaultdict(list)
    self._archives = {True: [], False: []}  # whether of a zip -> paths
    # Likewise, name of a file -> its places; or why they cannot be listed.
    self._packed: dict[bool, dict[str, list[Place]] | str] = {}
    seen = set()
    for below, folders, names in os.walk(self.folder, followlinks=True):
      real = os.path.realpath(below)
      folders[:] = [] if real in seen else sorted(folders)
      seen.add(real)
      relative = pathlib.PurePath(below).relative_to(self.folder).as_posix()
      start = "" if relative == "." else f"{relative}/"
      for name in names:
        self._plain[name].append(Place(start + name))
        if name.endswith((".zip", *_TAR)):
          self._archives[name.endswith(".zip")].append(start + name)

  def find(self, path: str) -> Place | None:
    """Where a file lies: unpacked if it is, and as little deep as it is.

    Raises:
      ValueError: An archive that has to be searched is damaged.
    """
    name = path.rpartition("/")[2]
    indexes = (index.get(name, ()) for index in self._indexes())
    found = next(filter(None, (_matching(x, path) for x in indexes)), ())
    return min(
      found,
      key=lambda x: (x.path.count("/"), x.archive or "", x.path),
      default=None,
    )

  @contextlib.contextmanager
  def open(self, path: str) -> Iterator[BinaryIO]:
    """Opens a file; one in .gz or .bz2 is unpacked while it is read."""
    place = next(
      filter(None, (self.find(path + end) for end in ("", *_PACKED))), None
    )
    if place is None:
      raise ValueError(f"{self.folder}: holds no {path}{self._origin(path)}")
    outer = self.folder / (place.archive or place.path)
    stat = outer.stat()
    self.opened[str(place.archive or place.path)] = [
      stat.st_size,
      stat.st_mtime_ns,
    ]
    where = f"{outer}: {place.path}" if place.archive else str(outer)
    if not stat.st_size:
      raise ValueError(f"{where}: is empty; is it complete?")
    with damage(where), contextlib.ExitStack() as stack:
      if place.archive is None:
        file = stack.enter_context(outer.open("rb"))
      elif place.archive.endswith(".zip"):
        archive = stack.enter_context(zipfile.ZipFile(outer))
        file = stack.enter_context(archive.open(place.path))
      else:
        archive = stack.enter_context(tarfile.open(outer))
        file = stack.enter_context(archive.extractfile(place.path))
      yield stack.enter_context(_unpacked(file, place.path))

  @contextlib.contextmanager
  def open_text(
    self, path: str, newline: str | None = None
  ) -> Iterator[TextIO]:
    """Opens a file in UTF-8, with or without a byte-order mark."""
    with (
      self.open(path) as file,
      io.TextIOWrapper(file, "utf-8-sig", newline=newline) as text,
    ):
      yield text

  def names(self, folder: str, end: str) -> list[str]:
    """The names of files with an ending in a folder, sorted."""
    found = {
      name
      for index in self._indexes()
      for name, places in index.items()
      if name.endswith(end) and _matching(places, f"{folder}/{name}")
    }
    if not found:
      raise ValueError(
        f"{self.folder}: holds no {folder}{self._origin(folder)}"
      )
    return sorted(found)

  def read(self, path: str) -> bytes:
    """The contents of a file."""
    with self.open(path) as file:
      return file.read()

  def items(
    self, path: str, key: str | None = None
  ) -> Iterator[tuple[str, Any]]:
    """Yields ("a.json: questions 12", element) of a list in a JSON file.

    Args:
      key: The list is the value under it. Default: the file is the list, or an
        object, whose elements are (name, value).
    """
    if key is not None:
      for where, _, value in self.sections(path, (key,)):
        yield where, value
      return
    with self.open_text(path) as file:
      stream = JsonStream(file, path)
      for name in stream.members():
        value = stream.value()
        whole = value if isinstance(name, int) else (name, value)
        yield f"{path}: {name}", whole

  def sections(
    self, path: str, keys: tuple[str, ...]
  ) -> Iterator[tuple[str, str, Any]]:
    """Yields (where, key, element) of the lists under keys of a JSON object."""
    found = []
    with self.open_text(path) as file:
      stream = JsonStream(file, path)
      for name in stream.members():
        found.append(str(name))
        if name not in keys:
          stream.skip()
          continue
        for number in stream.members():
          yield f"{path}: {name} {number}", name, stream.value()
    if missing := [key for key in keys if key not in found]:
      raise ValueError(
        f'{path}: has no "{missing[0]}", found {", ".join(found[:9])}'
      )

  def json(self, path: str) -> Any:
    """The value of a small JSON file."""
    with self.open_text(path) as file:
      return JsonStream(file, path).value()

  def lines(self, path: str) -> Iterator[tuple[str, str]]:
    """Yields ("a.txt:12", line) for each line that is not blank."""
    with self.open_text(path) as file:
      for number, line in enumerate(file, 1):
        if line.strip():
          yield f"{path}:{number}", line.rstrip("\r\n")

  def json_lines(self, path: str, holding: str = "") -> Iterator:
    """Yields ("a.jsonl:12", value) of the lines in which a text occurs."""
    for where, line in self.lines(path):
      if holding in line:
        try:
          yield where, json.loads(line)
        except ValueError as error:
          raise ValueError(f"{where}: malformed JSON: {error}") from None

  def rows(self, path: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Yields ("a.csv:12", row) of a CSV file with a header."""
    with self.open_text(path, newline="") as file:
      reader = csv.DictReader(file)
      try:
        for row in reader:
          yield f"{path}:{reader.line_num}", row
      except csv.Error as error:
        raise ValueError(f"{path}:{reader.line_num}: {error}") from None

  def parquet(self, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields ("a.parquet: row 12", row), batch by batch."""
    with self.open(path):  # which says what is missing
      pass
    with hf.opened(self.folder / self.find(path).path) as (_, batches):
      number = 0
      for batch in batches:
        for row in batch.to_pylist():
          yield f"{path}: row {number}", row
          number += 1

  def pickled(self, path: str) -> Any:
    """What a pickle holds: lists, dicts, texts and numbers, no other object."""
    with self.open(path) as file:
      try:
        return _Values(file, encoding="latin1").load()
      except (pickle.UnpicklingError, ValueError, IndexError, KeyError) as e:
        raise ValueError(f"{path}: cannot read the pickle: {e}") from None

  def extract(
    self, wanted: Mapping[str, Mapping[str, pathlib.Path]]
  ) -> dict[pathlib.Path, str]:
    """Writes files of archives; what is there in the right size stays.

    Args:
      wanted: Archive -> {path in it: path to write}.

    Returns:
      {path to write: error} of those that are damaged.
    """
    failed = {}
    for archive, members in wanted.items():
      path = self.folder / archive
      if not archive.endswith(".zip"):
        failed |= _extract_tar(path, members)
        continue
      parts = list(members.items())
      with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        chunks = [dict(parts[i::_THREADS]) for i in range(_THREADS)]
        for found in pool.map(_extract_zip, [path] * _THREADS, chunks):
          failed |= found
    return failed

  def _indexes(self):
    """Yields {name of a file: its places}: of files, of zips, of tars.

    To list a zip is quick; a tar has to be read.
    """
    yield self._plain
    yield self._listed(True)
    yield self._listed(False)

  def _listed(self, is_zip):
    """The index of one kind of archive; a damaged one is read once."""
    if is_zip not in self._packed:
      try:
        self._packed[is_zip] = self._list(self._archives[is_zip])
      except ValueError as error:
        self._packed[is_zip] = str(error)
    found = self._packed[is_zip]
    if isinstance(found, str):
      raise ValueError(found)
    return found

  def _list(self, archives):
    packed = collections.defaultdict(list)
    for archive in archives:
      path = self.folder / archive
      with damage(str(path)):
        if archive.endswith(".zip"):
          with zipfile.ZipFile(path) as file:
            names = file.namelist()
        else:
          with tarfile.open(path) as file:
            names = [member.name for member in file if member.isfile()]
      for name in names:
        if ".." not in name.split("/"):
          packed[name.rpartition("/")[2]].append(Place(name, archive))
    return packed

  def _origin(self, path):
    """Where a missing file comes from, for errors."""
    for name, source in self._sources.items():
      if path.endswith(name) or name.split()[0] in path:
        return f", which comes from {source}"
    return "; --list names what is needed"


@contextlib.contextmanager
def damage(where: str) -> Iterator[None]:
  """Makes errors of a file that is damaged or partly downloaded one line."""
  try:
    yield
  except UnicodeDecodeError as error:
    raise ValueError(f"{where}: not UTF-8: {error}") from None
  except _DAMAGE as error:
    reason = getattr(error, "strerror", None) or str(error)
    reason, *_ = reason.split(":\n")  # what each format of a tar lacks
    raise ValueError(
      f"{where}: cannot be read ({reason}); is it complete?"
    ) from None


class _Values(pickle.Unpickler):
  """Runs no code of a pickle: one that names any object is refused."""

  def find_class(self, module, name):
    raise ValueError(
      f"it holds an object {module}.{name}, expected lists, dicts, texts and "
      "numbers"
    )


def _matching(places, path):
  end = f"/{path}"
  return [place for place in places if f"/{place.path}".endswith(end)]


def _unpacked(file, path):
  if path.endswith(".gz"):
    import gzip

    return gzip.open(file)
  if path.endswith(".bz2"):
    import bz2

    return bz2.open(file)
  return contextlib.nullcontext(file)


def _extract_zip(path, members):
  failed = {}
  with damage(str(path)):
    archive = zipfile.ZipFile(path)
  with archive:
    for name, target in members.items():
      try:
        with damage(f"{path}: {name}"):
          if is_there(target, archive.getinfo(name).file_size):
            continue
          data = archive.read(name)
      except ValueError as error:
        failed[target] = str(error)
        continue
      write(target, data)
  return failed


def _extract_tar(path, members):
  missing = dict(members)
  reason = f"{path}: damaged or partly downloaded"

  def contents():
    with damage(str(path)), tarfile.open(path) as archive:
      for member in archive:
        target = missing.get(member.name)
        if target is not None:
          there = is_there(target, member.size)
          yield member.name, None if there else archive.extractfile(member)

  try:
    for name, file in contents():
      if file is not None:
        with damage(f"{path}: {name}"):
          data = file.read()
        write(missing[name], data)
      del missing[name]
      if not missing:
        break
  except ValueError as error:
    reason = str(error)
  return dict.fromkeys(missing.values(), reason)


def is_there(path: pathlib.Path, size: int) -> bool:
  """Whether a file was written before, as far as its size tells."""
  return path.is_file() and path.stat().st_size == size


def write(path: pathlib.Path, data: bytes) -> None:
  """Writes a picture: whole or not at all; --check finds what a crash left."""
  temporary = path.parent / f".{path.name}.{os.getpid()}.tmp"
  with disk.named(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
      temporary.write_bytes(data)
      temporary.replace(path)
    except OSError:
      temporary.unlink(missing_ok=True)
      raise
