"""Requests to stop a run (SIGTERM, SIGINT), on every process."""

import os
import signal
import sys
import threading

import jax
from jax.experimental import multihost_utils


class Stopped(Exception):
  """Raised out of an evaluation when the run was asked to stop."""


class Preemption:
  """Tells all processes at the same step to save and stop.

  Until `hold` there is nothing to save, and the first signal ends the process;
  from then on the second one does. Both do so at once, whatever the main thread
  is doing (compiling, for minutes).
  """

  def __init__(self):
    self._asked = False
    self._held = False
    # With several processes jax.distributed has its own handler of SIGTERM, and
    # agrees with the others on a step that none of them has passed.
    self._signals = [signal.SIGINT]
    if jax.process_count() == 1:
      self._signals.append(signal.SIGTERM)
    self._num_requests = 0
    # Python runs a handler between two of its own operations in the main
    # thread; the number of a signal can be read at once.
    reader, self._writer = os.pipe()
    os.set_blocking(self._writer, False)
    self._before = [signal.signal(s, lambda *_: None) for s in self._signals]
    self._fd_before = signal.set_wakeup_fd(
      self._writer, warn_on_full_buffer=False
    )
    self._thread = threading.Thread(
      target=self._listen, args=(reader,), daemon=True
    )
    self._thread.start()

  def hold(self) -> None:
    """From now on there is something to save: signals wait for `requested`."""
    self._held = True

  def requested(self, step: int) -> bool:
    """Whether to stop after `step` steps; all processes ask alike."""
    del step
    self._num_requests += 1
    if jax.process_count() > 1:
      return multihost_utils.reached_preemption_sync_point(self._num_requests)
    return self._asked

  def close(self) -> None:
    """Restores the former handlers."""
    for number, before in zip(self._signals, self._before, strict=True):
      signal.signal(number, before)
    signal.set_wakeup_fd(self._fd_before)
    os.close(self._writer)
    self._thread.join()

  def _listen(self, reader):
    while received := os.read(reader, 1):
      if received[0] in self._signals:
        self._receive(received[0])
    os.close(reader)

  def _receive(self, number):
    if not self._held:
      _end(number, "stopped before a step: there is nothing new to save")
    if self._asked:
      _end(number, "stopped at once; start again to resume the last checkpoint")
    self._asked = True
    _say("asked to stop: saves and ends in a moment; once more ends it at once")
    if number == signal.SIGINT and jax.process_count() > 1:
      os.kill(os.getpid(), signal.SIGTERM)  # which the others hear of


def _say(text):
  print(text, file=sys.stderr, flush=True)


def _end(number, text):
  _say(text)
  os._exit(128 + number)
