"""How far a run has come, in the file status.json of its folder.

    {"state": "stopped", "step": 300, "total_steps": 992}

The state is "running", of a run that was killed too; "finished"; "ended early",
by early_stop; "stopped", as it was asked to; or "failed", with the "error".
"""

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterator
from typing import Any

import jax
from etils import epath

from paligemma import disk, messages
from trainers import lock

_NAME = "status.json"


@contextlib.contextmanager
def recording(
  folder: epath.Path, step: int, total_steps: int
) -> Iterator[Callable[[str, int], None]]:
  """Writes that a run is running, or has failed if an error is raised.

  Yields a function that takes another state, and the step of it.
  """

  def write(state, step, **more):
    if jax.process_index() == 0:
      found = {"state": state, "step": step, "total_steps": total_steps, **more}
      disk.write(folder / _NAME, f"{json.dumps(found)}\n")

  write("running", step)
  try:
    yield write
  except Exception as error:
    with contextlib.suppress(OSError):  # of a full disk, which may be the error
      write("failed", step, error=messages.one_line(error))
    raise


@dataclasses.dataclass(frozen=True)
class Status:
  """What is known of a run.

  Attributes:
    state: as in the file; or "killed", or "unknown" without a readable file.
    step: the last that is known.
    total_steps: None if unknown.
    error: of a run that failed, "" of others.
  """

  state: str
  step: int
  total_steps: int | None = None
  error: str = ""

  def __str__(self) -> str:
    text = f"step {self.step}"
    if self.total_steps:
      share = self.step / self.total_steps
      text += f" of {self.total_steps}, {share:.0%}"
    states = {
      "running": "still running",
      "killed": "killed, or its machine went down",
      "stopped": "stopped, as it was asked to",
      "unknown": "how it ended is not recorded",
    }
    text += f": {states.get(self.state, self.state)}"
    return f"{text}: {self.error}" if self.error else text


def read(folder: epath.PathLike, last_step: int = 0) -> Status:
  """Returns how far a run has come; never raises for what the folder holds.

  Args:
    folder: of the run.
    last_step: known from other files; a run that was killed wrote none here.
  """
  found: dict[str, Any] = {}
  with contextlib.suppress(ValueError):
    found = disk.read_json(epath.Path(folder) / _NAME)
  step, total = (
    value if type(value) is int else None
    for value in map(found.get, ("step", "total_steps"))
  )
  state = str(found.get("state", "unknown"))
  if lock.is_held(epath.Path(folder)):
    state = "running"
  elif state == "running":
    state = "killed"
  error = str(found.get("error", "")) if state == "failed" else ""
  return Status(state, max(step or 0, last_step), total, error)
