"""One trainer a folder: the trainer rewrites a file there every few seconds.

It needs nothing of the file system but reading and writing, as not every
network file system has locks.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator

import jax
from etils import epath

from paligemma import disk
from paligemma.evals import gather

BEAT = 4.0  # seconds between two heartbeats
# Seconds without one after which the trainer is taken for dead; less than the
# 30 that processes wait for each other.
STILL = 20.0
_NAME = "trainer.lock"


@contextlib.contextmanager
def held(folder: epath.Path) -> Iterator[Lock | None]:
  """Holds the folder of a run, made if absent; process 0 gets the Lock.

  Raises:
    ValueError: another trainer that is alive holds it.
    OSError: the folder cannot be written.
  """
  lock, error = None, None
  if jax.process_index() == 0:
    try:
      lock = Lock(folder)
    except (OSError, ValueError) as e:  # for all, or the others would wait
      error = e
  if error := gather.gather(error)[0]:
    raise error
  try:
    yield lock
  finally:
    if lock is not None:
      lock.release()


def is_held(folder: epath.Path) -> bool:
  """Returns whether another process, which is alive, trains in a folder.

  On another host it is, if it gave a sign of life in the last STILL seconds.
  """
  path = folder / _NAME
  found = _read(path)
  if found is None or _is_dead(found):
    return False
  if found.get("host") == socket.gethostname():
    return True
  try:
    return time.time() - path.stat().mtime < STILL
  except OSError:  # removed meanwhile
    return False


class Lock:
  """Held from its making until `release`; see `held`."""

  def __init__(self, folder):
    self._path = folder / _NAME
    self._who = {
      "host": socket.gethostname(),
      "pid": os.getpid(),
      "id": uuid.uuid4().hex,
    }
    self._lost = None
    self._beats = 0
    folder.mkdir(parents=True, exist_ok=True)
    self._take()
    self._ended = threading.Event()
    self._thread = threading.Thread(target=self._beat, daemon=True)
    self._thread.start()

  def check(self) -> None:
    """Raises a ValueError if another trainer has taken the folder meanwhile."""
    if self._lost is not None:
      raise ValueError(
        f"{self._path.parent}: {_named(self._lost)} trains here too, as this "
        f"process gave no sign of life for {STILL:.0f} s; this one ends"
      )

  def release(self) -> None:
    """Gives the folder back."""
    self._ended.set()
    self._thread.join()
    with contextlib.suppress(OSError):
      if self._lost is None:
        self._path.unlink(missing_ok=True)

  def _take(self):
    if self._create():
      return
    found = _read(self._path)
    why = "is gone"
    if found is not None and not _is_dead(found):
      _say(f"{self._path}: waits for a sign of life of {_named(found)}")
      end = time.monotonic() + STILL
      while (now := _read(self._path)) == found and time.monotonic() <= end:
        time.sleep(BEAT / 10)
      if now is not None and now != found:
        raise ValueError(
          f"{self._path.parent}: {_named(now)} trains here; wait for its end, "
          "stop it, or use another --workdir"
        )
      found = now
      why = f"gave no sign of life for {STILL:.0f} s"
    if found is None:  # it has ended meanwhile
      self._take()
      return
    _say(f"{self._path}: taken over from {_named(found)}, which {why}")
    disk.write(self._path, self._text())

  def _create(self):
    """Writes the file unless there is one; whether it did."""
    if "://" in str(self._path):  # no file system that could do both at once
      if created := not self._path.exists():
        self._path.write_text(self._text())
      return created
    try:
      os.close(os.open(self._path, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
      return False
    try:
      disk.write(self._path, self._text())
    except OSError:
      self._path.unlink(missing_ok=True)
      raise
    return True

  def _beat(self):
    while not self._ended.wait(BEAT):
      # What the file system does not let us do now, it may the next time.
      with contextlib.suppress(OSError):
        found = _read(self._path)
        own = self._who["id"]
        if found is not None and found.get("id", own) != own:
          self._lost = found
          return
        disk.write(self._path, self._text())

  def _text(self):
    self._beats += 1
    return json.dumps({**self._who, "beat": self._beats})


def _read(path):
  """The content of the file: {} if damaged, None if there is no file."""
  try:
    found = json.loads(path.read_bytes())
  except FileNotFoundError:
    return None
  except (RecursionError, ValueError):
    return {}
  return found if isinstance(found, dict) else {}


def _is_dead(who):
  """Whether it was a process of this machine that is no more."""
  host, pid = who.get("host"), who.get("pid")
  if host != socket.gethostname() or type(pid) is not int:
    return False
  # The same number: of a container that was started again.
  return pid == os.getpid() or not disk.lives(pid)


def _say(text):
  print(text, file=sys.stderr, flush=True)


def _named(who):
  return f"process {who.get('pid', '?')} on {who.get('host', '?')}"
