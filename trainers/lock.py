"""One trainer a folder: a file there says who trains, and beats like a heart.

It needs nothing of the file system but reading and writing, as locks of network
file systems come and go.
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

BEAT = 4.0  # seconds between two beats
# Seconds without one after which the trainer is taken for dead; less than the
# 30 that processes wait for each other.
STILL = 20.0
_NAME = "trainer.lock"


@contextlib.contextmanager
def held(folder: epath.Path) -> Iterator[Lock | _Free]:
  """Holds the folder of a run; all processes of the run call it.

  Args:
    folder: epath.Path, made if absent.

  Yields:
    Lock.

  Raises:
    ValueError: another trainer that lives holds it.
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
    yield lock or _Free()
  finally:
    if lock is not None:
      lock.release()


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
      return None
    found = self._read()
    if found is None:  # it ended in this moment
      return self._take()
    if _is_dead(found):
      why = "is gone"
    else:
      _say(f"{self._path}: waits for a sign of life of {_named(found)}")
      end = time.monotonic() + STILL
      while (now := self._read()) == found:
        if time.monotonic() > end:
          break
        time.sleep(BEAT / 10)
      else:
        if now is None:
          return self._take()
        raise ValueError(
          f"{self._path.parent}: {_named(now)} trains here; wait for its end, "
          "stop it, or use another --workdir"
        )
      why = f"gave no sign of life for {STILL:.0f} s"
    _say(f"{self._path}: taken over from {_named(found)}, which {why}")
    disk.write(self._path, self._text())
    return None

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
        found = self._read()
        if (
          found is not None
          and found.get("id", self._who["id"]) != (self._who["id"])
        ):
          self._lost = found
          return
        disk.write(self._path, self._text())

  def _text(self):
    self._beats += 1
    return json.dumps({**self._who, "beat": self._beats})

  def _read(self):
    """What stands there: {} if that cannot be read, None if nothing does."""
    try:
      found = json.loads(self._path.read_bytes())
    except FileNotFoundError:
      return None
    except (RecursionError, ValueError):
      return {}
    return found if isinstance(found, dict) else {}


class _Free:
  """What the other processes of a run hold."""

  def check(self):
    pass


def _is_dead(who):
  """Whether it was a process of this machine that is no more."""
  if who.get("host") != socket.gethostname() or type(who.get("pid")) is not int:
    return False
  if who["pid"] == os.getpid():  # of an earlier life, in a container
    return True
  return not disk.lives(who["pid"])


def _say(text):
  print(text, file=sys.stderr, flush=True)


def _named(who):
  return f"process {who.get('pid', '?')} on {who.get('host', '?')}"
