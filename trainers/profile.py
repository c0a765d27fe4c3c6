"""A trace of some steps, and the ops that took longest in them."""

import collections
import re
from collections.abc import Callable, Iterator
from typing import Any

import jax
from etils import epath

from paligemma import messages

FOLDER = "profile"  # in that of the run

# They contain other ops, whose time would count twice.
_CONTAINERS = re.compile(r"(while|conditional|call)\b")
_INSTRUCTION = re.compile(r'%([\w.-]+) = .* metadata={op_name="([^"]*)"')
# Of where an op comes from; the names of modules remain.
_NESTING = re.compile(r"jit\(\w+\)/|while/body/|closed_call/")
_LONGEST = 5


def parse(text: str) -> tuple[int, int]:
  """Reads "10:13": from after step 10 until after step 13.

  Raises:
    ValueError: it is not of this form.
  """
  match = re.fullmatch(r"(\d+):(\d+)", text)
  if not match or int(match[1]) >= int(match[2]):
    raise ValueError(
      f'--profile_steps is "{messages.shown(text)}", expected FIRST:LAST, such '
      "as 10:13 for the three steps that follow step 10"
    )
  return int(match[1]), int(match[2])


def check(steps: tuple[int, int], total_steps: int) -> None:
  """Raises ValueError if a run has fewer steps."""
  if steps[1] > total_steps:
    raise ValueError(
      f"--profile_steps is {steps[0]}:{steps[1]}, but the run has only "
      f"{total_steps} steps"
    )


class Profiled:
  """A compiled step that writes a trace of some of its calls.

  Process 0 alone writes, in the format of XProf.
  """

  def __init__(
    self,
    compiled: jax.stages.Compiled,
    steps: tuple[int, int],
    folder: epath.Path,
    *,
    step: int,
    say: Callable[[str], None],
  ):
    """Says so, if the first of the steps is already done.

    Args:
      compiled: the step.
      steps: the first and the last, see `parse`.
      folder: of the run.
      step: steps done.
      say: prints the result.
    """
    self._first, self._last = steps
    self._compiled, self._folder, self._say = compiled, folder / FOLDER, say
    self._step = step
    self._is_tracing = False
    if self._first < step:
      say(f"no trace: the run goes on at step {step}, after {self._first}")

  def __call__(self, *arguments: Any) -> Any:
    if self._step == self._first and jax.process_index() == 0:
      options = jax.profiler.ProfileOptions()
      options.python_tracer_level = 0  # it would slow the steps down
      jax.profiler.start_trace(self._folder, profiler_options=options)
      self._is_tracing = True
    result = self._compiled(*arguments)
    self._step += 1
    if self._step == self._last and self._is_tracing:
      jax.block_until_ready(result)
      self.close()
      self._say(self._describe())
    return result

  def close(self) -> None:
    """Ends the trace, if one is being written."""
    if self._is_tracing:
      self._is_tracing = False
      jax.profiler.stop_trace()

  def _describe(self):
    """Lines on the longest ops."""
    file = max(self._folder.glob("plugins/profile/*/*.xplane.pb"))
    found = jax.profiler.ProfileData.from_file(str(file))
    hlo = self._compiled.as_text()
    nanoseconds = time_of_ops(found, re.match(r"HloModule ([\w.-]+)", hlo)[1])
    origins = {
      name: _NESTING.sub("", origin)
      for name, origin in _INSTRUCTION.findall(hlo)
    }
    total = sum(nanoseconds.values())
    steps = self._last - self._first
    rows = [("op", "ms per step", "share", "from")]
    for name, duration in nanoseconds.most_common(_LONGEST):
      row = f"{duration / 1e6 / steps:.3f}", f"{duration / total:.1%}"
      rows.append((name, *row, origins.get(name, "")))
    return "\n".join(
      [
        f"wrote {file}; steps {self._first + 1} to {self._last}, longest of "
        f"{len(nanoseconds)} ops, {total / 1e6 / steps:.3f} ms per step in "
        "all:",
        *messages.aligned(rows),
      ]
    )


def time_of_ops(
  trace: jax.profiler.ProfileData, module: str
) -> collections.Counter[str]:
  """Nanoseconds of each op of a compiled module, on all devices together.

  Time of ops that run at once on several threads or devices is added up.
  """
  total = collections.Counter()
  for plane in trace.planes:
    for name, duration in _ops(plane, module):
      if not _CONTAINERS.match(name):
        total[name] += duration
  return total


def _ops(plane, module) -> Iterator[tuple[str, float]]:
  """(name, nanoseconds) of each time that an op of the module has run."""
  lines = {line.name: line for line in plane.lines}
  if plane.name.startswith("/device:TPU"):
    runs = [
      (event.start_ns, event.end_ns)
      for event in lines["XLA Modules"].events
      if event.name.startswith(f"{module}(")
    ]
    for event in lines["XLA Ops"].events:
      if any(start <= event.start_ns < end for start, end in runs):
        # The name of an event is the whole instruction.
        yield event.name.partition(" = ")[0].lstrip("%"), event.duration_ns
    return
  for line in lines.values():  # threads of the CPU, streams of a GPU
    for event in line.events:
      stats = dict(event.stats)
      if stats.get("hlo_module") == module and "hlo_op" in stats:
        yield stats["hlo_op"], event.duration_ns
