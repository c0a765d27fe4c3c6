"""What a run tells: the table at its start, a line or bar, metrics on disk."""

import json
import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import tensorboardX
from etils import epath
from tqdm import tqdm

from paligemma import disk, messages, tree
from paligemma.planning import memory
from paligemma.planning.memory import GIB
from paligemma.training import sharding


def parameter_table(
  trainable: Mapping[str, Any],
  frozen: Mapping[str, Any],
  opt_state: Any,
  *,
  rules: Sequence[str],
) -> str:
  """Says of every parameter its size, fate and place, and the sums.

  Args:
    trainable, frozen: name -> leaf with shape, dtype and sharding.
    opt_state: tree of the same.
    rules: the regexes that chose what trains.

  Returns:
    str of several lines.
  """
  trained_by = tree.match_first([(rule, rule) for rule in rules], trainable)
  rows = [("parameter", "shape", "dtype", "sharding", "trained by")] + [
    (
      name,
      "x".join(map(str, leaf.shape)),
      str(leaf.dtype),
      sharding.describe(leaf.sharding),
      trained_by.get(name, ""),
    )
    for name, leaf in sorted({**trainable, **frozen}.items())
  ]
  lines = messages.aligned(rows)
  groups = (
    ("trainable", trainable),
    ("frozen", frozen),
    ("optimizer", opt_state),
  )
  for name, group in groups:
    leaves = jax.tree.leaves(group)
    here = sum(map(memory.bytes_per_device, leaves))
    everywhere = sum(math.prod(x.shape) * x.dtype.itemsize for x in leaves)
    lines.append(
      f"{name:<10}{sum(math.prod(x.shape) for x in leaves):>16,} numbers  "
      f"{everywhere / GIB:9.3f} GiB  "
      f"{here / GIB:9.3f} GiB per device"
    )
  return "\n".join(lines)


def memory_line(compiled: jax.stages.Compiled) -> str:
  """Memory of a compiled step per device, as the compiler reckons it."""
  found = memory.of(compiled)
  return (
    f"expected memory per device: {found.peak / GIB:.3f} GiB "
    f"(arguments {found.arguments / GIB:.3f}, "
    f"temporaries {found.temporaries / GIB:.3f}, "
    f"new outputs {found.outputs / GIB:.3f})"
  )


def peak_memory_gib() -> float | None:
  """Most memory a local device has used so far, None where it is not kept."""
  stats = [device.memory_stats() for device in jax.local_devices()]
  peaks = [s["peak_bytes_in_use"] for s in stats if s]
  return max(peaks) / GIB if peaks else None


class Report:
  """metrics.jsonl, TensorBoard, and a bar or lines; only process 0 writes."""

  def __init__(
    self,
    workdir: epath.PathLike,
    *,
    first_step: int,
    total_steps: int,
    repeated: Sequence[str] = (),
  ):
    """Opens the files, and drops the lines that will be written again.

    Args:
      workdir: folder of the run.
      first_step: int, the step of the checkpoint it resumes; a run that was
        killed may have written beyond it.
      total_steps: int, for the bar.
      repeated: names of the evaluators that will run at `first_step`.
    """
    self._writes = jax.process_index() == 0
    if not self._writes:
      return
    self._path = epath.Path(workdir) / "metrics.jsonl"
    evaluators = tuple(f"{name}/" for name in repeated)
    damaged = drop(self._path, first_step, evaluators)
    self._board = tensorboardX.SummaryWriter(
      str(epath.Path(workdir) / "tensorboard"), purge_step=first_step + 1
    )
    self._bar = None
    if sys.stderr.isatty():
      self._bar = tqdm(total=total_steps, initial=first_step, unit="step")
    if damaged:
      self.say(damaged)

  def write(self, step: int, values: Mapping[str, Any]) -> None:
    """Keeps named numbers of a step and shows them."""
    if not self._writes:
      return
    values = {k: float(v) for k, v in values.items() if v is not None}
    with disk.named(self._path), self._path.open("a") as file:
      file.write(json.dumps({"step": step, **values}) + "\n")
    for name, value in values.items():
      self._board.add_scalar(name, value, step)
    shown = "  ".join(f"{name}={value:.5g}" for name, value in values.items())
    self.say(f"step {step}  {shown}")

  def step(self, step: int) -> None:
    """Moves the bar."""
    if self._writes and self._bar is not None:
      self._bar.update(step - self._bar.n)

  def say(self, text: str) -> None:
    """Prints a line, above the bar if there is one."""
    if self._writes:
      tqdm.write(text, file=sys.stderr)

  def close(self) -> None:
    """Flushes everything."""
    if self._writes:
      with disk.named(self._path.with_name("tensorboard")):
        self._board.close()
      if self._bar is not None:
        self._bar.close()


def read(
  path: epath.PathLike,
) -> tuple[list[tuple[bytes, dict[str, Any]]], str]:
  """Reads a metrics.jsonl; a damaged line does not stop it, and is reported.

  Args:
    path: epath.Path of the file.

  Returns:
    Tuple of a list of (line in bytes, its values), and what to say of damaged
    lines: one line, "" without any.

  Raises:
    ValueError, OSError: it cannot be read at all.
  """
  whole, damaged = [], []
  lines = disk.path(path).read_bytes().split(b"\n")
  for number, line in enumerate(lines, start=1):
    if not line.strip():
      continue
    try:
      values = json.loads(line)
      is_whole = math.isfinite(values["step"])
    except (KeyError, OverflowError, RecursionError, TypeError, ValueError):
      is_whole = False  # as when the machine went down
    if is_whole:
      whole.append((line, values))
    else:
      damaged.append(number)
  more = f", as are {len(damaged) - 1} more lines" if damaged[1:] else ""
  remark = damaged and f"{path}:{damaged[0]}: damaged, left out{more}"
  return whole, remark or ""


def drop(path: epath.Path, first_step: int, repeated: tuple[str, ...]) -> str:
  """Takes out of a metrics.jsonl what will be written again, and the damaged.

  Args:
    path: epath.Path of the file, which need not exist.
    first_step: int, the step that a run resumes.
    repeated: starts of the names of what is written of that step again.

  Returns:
    What to say of damaged lines, as `read`.
  """

  def keep(values):
    again = any(name.startswith(repeated) for name in values)
    last_kept = first_step - 1 if again else first_step
    return values["step"] <= last_kept

  if not path.exists():
    return ""
  whole, remark = read(path)
  kept = (line for line, values in whole if keep(values))
  disk.write(path, b"".join(line + b"\n" for line in kept))
  return remark
