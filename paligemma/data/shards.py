"""A JSONL and its images in few large files, for pods and object stores.

    FOLDER/examples.jsonl      its lines, to read the texts without the images
    FOLDER/00000.array_record  a line and its encoded images in each record
    FOLDER/index.json          written last: what makes the folder complete

A record is the line, "\\n", and for each image its size in bytes, uint64 in
little endian, and its contents.
"""

import collections
import contextlib
import hashlib
import itertools
import json
import os
import struct
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from typing import Any

import grain
from etils import epath

from paligemma import disk, messages

INDEX, LINES = "index.json", "examples.jsonl"
_STARTED = "started.json"  # which data a folder that is not complete is of
_THREADS = 16  # that read images ahead
_SIZE = struct.Struct("<Q")


def is_packed(path: epath.PathLike) -> bool:
  """Returns whether `write` has made or begun a folder there."""
  with contextlib.suppress(Exception):  # is said where it is opened
    folder = epath.Path(path)
    return any((folder / name).exists() for name in (INDEX, _STARTED))
  return False


def write(
  folder: epath.PathLike,
  lines: Callable[[], Iterator[bytes]],
  read: Callable[[int], Sequence[bytes]],
  copies: Sequence[Sequence[str]],
  *,
  shard_bytes: int,
  show: Callable[[int, int], None] = lambda done, total: None,
) -> int:
  """Writes a folder, or what it lacks; at most a few images are in memory.

  Args:
    folder: On the local file system. Shards that an earlier call with the same
      lines has completed are kept.
    lines: Iterates over JSON objects, without the end of the line; twice.
    read: Returns the encoded images of the line of an index.
    copies: Lists of names of images with equal contents.
    shard_bytes: A shard ends with the record that reaches this size.
    show: Called with how many records of how many are written.

  Returns:
    The number of shards.

  Raises:
    ValueError: The folder holds something else, or `read` raises.
    OSError: A file cannot be written.
  """
  from array_record.python import array_record_module as array_record

  folder = epath.Path(folder)
  digest, total = hashlib.sha256(), 0
  for line in lines():
    digest.update(line + b"\n")
    total += 1
  started = {"lines": digest.hexdigest(), "shard_bytes": shard_bytes}
  _begin(folder, started)
  shards = []
  while (path := folder / _name(len(shards))).exists():
    shards.append(_described(path))
  done = sum(shard["records"] for shard in shards)
  show(done, total)
  rest = itertools.islice(enumerate(lines()), done, None)
  with futures.ThreadPoolExecutor(_THREADS) as threads:
    records = _read_ahead(threads, rest, read)
    while done < total:
      path, size = folder / _name(len(shards)), 0
      with disk.file(path) as temporary:
        writer = array_record.ArrayRecordWriter(
          os.fspath(temporary), "group_size:1,uncompressed"
        )
        try:
          for record in records:
            writer.write(record)
            size, done = size + len(record), done + 1
            show(done, total)
            if size >= shard_bytes:
              break
          writer.close()
        except RuntimeError as error:  # of array_record
          raise OSError(messages.one_line(f"{path}: {error}")) from None
      shards.append(_described(path))
  with disk.file(folder / LINES) as temporary, temporary.open("wb") as file:
    file.writelines(line + b"\n" for line in lines())
  index = {"shards": shards, "copies": copies, **started}
  disk.write(folder / INDEX, json.dumps(index, indent=1))
  (folder / _STARTED).unlink()
  return len(shards)


class Shards:
  """Random access to the records of a folder; it pickles small.

  Raises:
    ValueError: The folder is not complete, or a file of it is missing or has
      another size. On access, a damaged record.
  """

  def __init__(self, folder: epath.PathLike):
    self._folder = epath.Path(folder)
    if not (self._folder / INDEX).exists():
      raise ValueError(
        f"{folder}: is not complete; run the scripts.pack that began it again"
      )
    index = disk.read_json(self._folder / INDEX)
    try:
      self.copies = index["copies"]
      self._counts = [shard["records"] for shard in index["shards"]]
      sizes = [shard["bytes"] for shard in index["shards"]]
    except (KeyError, TypeError):
      raise ValueError(
        f"{folder}/{INDEX}: was not written by scripts.pack"
      ) from None
    paths = [self._folder / _name(i) for i in range(len(sizes))]
    for path, size in zip(paths, sizes, strict=True):
      found = path.stat().length if path.exists() else None
      if found != size:
        state = "is missing" if found is None else f"has {found} bytes"
        raise ValueError(
          f"{path}: {state}, expected {size} bytes; copy it again, or pack the "
          "data again"
        )
    try:
      self._records = grain.sources.ArrayRecordDataSource(
        list(map(os.fspath, paths))
      )
    except RuntimeError as error:
      raise ValueError(messages.one_line(f"{folder}: {error}")) from None

  def __len__(self) -> int:
    return sum(self._counts)

  def __getitem__(self, index: int) -> tuple[bytes, list[bytes]]:
    try:
      record = self._records[index]
    except RuntimeError as error:
      ends = itertools.accumulate(self._counts)
      shard = next(i for i, end in enumerate(ends) if index < end)
      raise ValueError(
        messages.one_line(
          f"{self._folder / _name(shard)}: damaged at record {index}, copy it "
          f"again: {error}"
        )
      ) from None
    end = record.index(b"\n")
    line, images, start = record[:end], [], end + 1
    while start < len(record):
      (size,) = _SIZE.unpack_from(record, start)
      start += _SIZE.size
      images.append(record[start : start + size])
      start += size
    return line, images


def _name(shard):
  return f"{shard:05}.array_record"


def _begin(folder, started):
  """Says what a folder is of; refuses one of something else."""
  if (folder / INDEX).exists():
    raise ValueError(f"{folder}: is complete already; name another folder")
  if (folder / _STARTED).exists():
    if disk.read_json(folder / _STARTED) != started:
      raise ValueError(
        f"{folder}: was begun with other lines or another shard size; remove "
        "it, or name another folder"
      )
    return
  if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
    raise ValueError(f"{folder}: exists already, expected a new folder")
  disk.write(folder / _STARTED, json.dumps(started))


def _described(path) -> dict[str, Any]:
  records = len(grain.sources.ArrayRecordDataSource(os.fspath(path)))
  return {"records": records, "bytes": path.stat().length}


def _read_ahead(threads, lines, read) -> Iterator[bytes]:
  """Yields the record of each (index, line); threads read the next images."""

  def record(index, line):
    parts = [line, b"\n"]
    for image in read(index):
      parts += [_SIZE.pack(len(image)), image]
    return b"".join(parts)

  waiting = collections.deque()
  for index, line in lines:
    waiting.append(threads.submit(record, index, line))
    if len(waiting) > _THREADS:
      yield waiting.popleft().result()
  while waiting:
    yield waiting.popleft().result()
