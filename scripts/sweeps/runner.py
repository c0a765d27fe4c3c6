"""Trains combinations, each in a process and a folder of its own."""

import contextlib
import dataclasses
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

from etils import epath

from paligemma import messages
from scripts.sweeps import combinations, results
from scripts.sweeps.combinations import Values
from trainers import progress, workdir

LOG = "train.log"  # in the folder of a run: what it prints

_FINAL = ("final.npz", "adapter.safetensors")
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_POLL = 0.2  # seconds between two looks at the runs


class Source(Protocol):
  """Says which combinations are to be trained."""

  def ask(self) -> Values | None:
    """The next one; None: there is none now."""

  def tell(self, values: Values, folder: epath.Path, status: str) -> None:
    """Takes note of how one has ended."""


class Grid:
  """The combinations of a list."""

  def __init__(self, listed: Sequence[Values]):
    self._left = list(listed)

  def ask(self) -> Values | None:
    return self._left.pop(0) if self._left else None

  def tell(self, values: Values, folder: epath.Path, status: str) -> None:
    """Nothing follows from it."""


def start(
  command: Sequence[str], log: epath.Path, environment: Mapping[str, str]
) -> subprocess.Popen:
  """Starts a run that only `Runner` stops, not Ctrl-C of the terminal."""
  with open(log, "ab") as file:
    return subprocess.Popen(
      command,
      stdout=file,
      stderr=subprocess.STDOUT,
      env={**os.environ, **environment},
      start_new_session=True,
    )


@dataclasses.dataclass
class _Run:
  values: Values
  folder: epath.Path
  process: subprocess.Popen
  environment: Mapping[str, str]
  started: float
  looked: float  # at its log
  line: str = ""  # the last one that was shown


class Runner:
  """Trains what a source asks for, some runs at a time.

  Attributes:
    stopped_by: the signal that asked it to stop, None without one.
    failed: {name: last line of its error}.
  """

  def __init__(
    self,
    base: combinations.Base,
    folder: epath.Path,
    environments: Sequence[Mapping[str, str]],
  ):
    """Args: the environment of each run that goes on at a time."""
    self._base, self._folder = base, folder
    self._free = list(environments)
    self._running: list[_Run] = []
    self.stopped_by: int | None = None
    self.failed: dict[str, str] = {}

  def run(self, source: Source) -> None:
    """Returns when the source has no more, or all runs have been stopped."""
    with self._signals():
      while self._start_some(source) or self._running:
        time.sleep(_POLL)
        for run in [r for r in self._running if r.process.poll() is not None]:
          self._end(run, source)
        self._report()

  def _start_some(self, source):
    """Fills the free places; whether a run was started or skipped."""
    any_new = False
    while self._free and self.stopped_by is None:
      values = source.ask()
      if values is None:
        break
      any_new = True
      name = combinations.folder_name(values)
      folder = self._folder / name
      if is_finished(folder):
        progress.say([f"{name}: already finished"])
        results.write(folder, values, "finished")
        source.tell(values, folder, "finished")
        continue
      if name in self.failed:  # a search may ask for it again
        source.tell(values, folder, "failed")
        continue
      folder.mkdir(parents=True, exist_ok=True)
      results.write(folder, values, "running")
      command, now = self._base.command(values, folder), time.monotonic()
      environment = self._free.pop()
      progress.say([f"{name}: starts, prints into {folder / LOG}"])
      process = start(command, folder / LOG, environment)
      self._running.append(_Run(values, folder, process, environment, now, now))
      if self.stopped_by is not None:  # since the loop has looked
        process.terminate()
    return any_new

  def _end(self, run, source):
    self._running.remove(run)
    self._free.append(run.environment)
    name, code, error = run.folder.name, run.process.returncode, ""
    status = "finished" if is_finished(run.folder) else "stopped"
    if code and self.stopped_by is None:
      status = "failed"
      error = last_line(run.folder / LOG)
      if code < 0:
        error = f"ended by signal {-code}, after: {error}"
      self.failed[name] = error
    seconds = time.monotonic() - run.started
    results.write(run.folder, run.values, status, seconds=seconds, error=error)
    progress.say([f"{name}: {status}, {seconds:.0f} s"])
    source.tell(run.values, run.folder, status)

  def _report(self):
    """Prints the last line of each run's log, if it is a new one."""
    now = time.monotonic()
    for run in self._running:
      if now - run.looked < progress.SECONDS:
        continue
      run.looked, line = now, last_line(run.folder / LOG)
      if line not in ("", run.line):
        run.line = line
        progress.say([f"{run.folder.name}: {line}"])

  @contextlib.contextmanager
  def _signals(self) -> Iterator[None]:
    """Passes on signals, and stops all runs where this process fails."""
    before = [signal.signal(s, self._stop) for s in _SIGNALS]
    try:
      yield
    finally:
      for run in self._running:
        run.process.terminate()
      for run in self._running:
        run.process.wait()
      for number, handler in zip(_SIGNALS, before, strict=True):
        signal.signal(number, handler)

  def _stop(self, number, frame):
    del frame
    self.stopped_by = number
    for run in self._running:
      run.process.terminate()  # the second one ends it at once


def is_finished(folder: epath.Path) -> bool:
  """Whether a run has written its last weights."""
  return any((folder / name).exists() for name in _FINAL)


def check_folders(
  base: combinations.Base, folder: epath.Path, listed: Sequence[Values]
) -> None:
  """Checks that the sweep and its runs have the configs they had before.

  Raises:
    ValueError: one has not; names the differences. Or a combination makes no
      config.
  """
  made = {folder: base.config}
  for values in listed:
    made[folder / combinations.folder_name(values)] = base.make(values)
  for path, config in made.items():
    if changes := workdir.differences(path, workdir.as_json(config)):
      raise ValueError(
        f"{path}: belongs to another config ({'; '.join(changes)}); use "
        "another --workdir, or restore the values"
      )


def last_line(log: epath.Path) -> str:
  """The last line of a file that is not empty; "" without one."""
  try:
    with open(log, "rb") as file:
      file.seek(max(os.path.getsize(log) - 4096, 0))
      lines = file.read().decode(errors="replace").split("\n")
  except OSError:
    return ""
  return messages.shown(next((x for x in lines[::-1] if x.strip()), ""))
