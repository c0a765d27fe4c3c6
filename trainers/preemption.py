"""Notices that the machine is to be taken away (SIGTERM), on every process."""

import signal

import jax
from jax.experimental import multihost_utils


class Preemption:
  """Says, at the same step on all processes, that it is time to save and go."""

  def __init__(self):
    self._asked = False
    # With several processes jax.distributed has its own handler, and agrees
    # with the others on a step that none of them has passed.
    if jax.process_count() == 1:
      self._before = signal.signal(signal.SIGTERM, self._ask)

  def requested(self, step):
    """Whether to stop after `step` steps; all processes ask at each step."""
    if jax.process_count() > 1:
      return multihost_utils.reached_preemption_sync_point(step)
    return self._asked

  def close(self):
    """Gives SIGTERM back."""
    if jax.process_count() == 1:
      signal.signal(signal.SIGTERM, self._before)

  def _ask(self, signum, frame):
    del signum, frame
    self._asked = True
