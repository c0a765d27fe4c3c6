"""TensorBoard: event files in the folder tensorboard of the run."""

import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from tensorboardX import summary as summaries
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog

from paligemma import disk
from paligemma.evals.annotated import Sample


class TensorBoard:
  """Writes in this thread, so that an error is raised where it happens.

  In tensorboardX.SummaryWriter a thread dies of it, and the next calls wait for
  that thread forever (2.6.5).
  """

  where = ""

  def __init__(
    self, folder: epath.Path, first_step: int, about: Mapping[str, Any]
  ):
    del about
    self._folder = folder / "tensorboard"
    with disk.named(self._folder):
      self._folder.mkdir(parents=True, exist_ok=True)
      # Two starts in one second would write one file.
      self._events = EventsWriter(
        os.fspath(self._folder / "events"), f".{os.getpid()}"
      )
    # Hides what a killed process wrote beyond its last checkpoint.
    start = SessionLog(status=SessionLog.START)
    self._write(Event(step=first_step + 1, session_log=start))

  def scalars(self, step: int, values: Mapping[str, float]) -> None:
    for name, value in values.items():
      self._add(step, summaries.scalar(name, value))
    self._flush()

  def samples(self, step: int, name: str, found: Sequence[Sample]) -> None:
    for sample in found:
      tag = f"{name}/{sample.index}"
      pixels = np.asarray(sample.picture)
      self._add(step, summaries.image(tag, pixels, dataformats="HWC"))
      # Markdown would read <loc0000> as a tag; four spaces make it code.
      lines = "\n".join(f"    {x}" for x in sample.text.splitlines())
      self._add(step, summaries.text(tag, lines))
    self._flush()

  def close(self) -> None:
    with disk.named(self._folder):
      self._events.close()

  def _add(self, step, summary):
    self._write(Event(step=step, summary=summary))

  def _write(self, event):
    event.wall_time = time.time()
    with disk.named(self._folder):
      self._events.write_event(event)

  def _flush(self):
    with disk.named(self._folder):
      self._events.flush()
