"""What a run prints and logs: tables, lines or a bar, metrics, predictions."""

import collections
import json
import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from etils import epath
from tqdm import tqdm

from paligemma import disk, evals, messages, tree
from paligemma.evals import annotated, predictions
from paligemma.planning import memory
from paligemma.planning.memory import GIB
from paligemma.training import sharding
from trainers import inputs, writers


def parameter_table(
  trainable: Mapping[str, Any],
  frozen: Mapping[str, Any],
  opt_state: Any,
  *,
  rules: Sequence[str],
  verbose: bool = False,
) -> str:
  """What trains by which rule, in each tower, and the sums.

  Args:
    trainable, frozen: leaves with shape, dtype and sharding.
    opt_state: tree of the same.
    rules: the regexes that chose what trains.
    verbose: whether every parameter has a line, with its sharding.
  """
  trained_by = tree.match_first([(rule, rule) for rule in rules], trainable)
  rows = [("parameter", "shape", "dtype", "sharding", "trained by")]
  groups = collections.defaultdict(list)
  for name, leaf in sorted({**trainable, **frozen}.items()):
    shape = "x".join(map(str, leaf.shape))
    where = sharding.describe(leaf.sharding)
    rule = trained_by.get(name, "")
    rows.append((name, shape, str(leaf.dtype), where, rule))
    groups[name.partition("/")[0], rule].append(leaf)
  if not verbose:
    rows = [("tower", "parameters", "dtype", "trained by")]
    for (tower, rule), leaves in groups.items():
      dtypes = sorted({str(leaf.dtype) for leaf in leaves})
      rows.append((tower, str(len(leaves)), ", ".join(dtypes), rule or "-"))
  lines = messages.aligned(rows)
  groups = dict(trainable=trainable, frozen=frozen, optimizer=opt_state)
  for name, group in groups.items():
    leaves = jax.tree.leaves(group)
    here = sum(map(memory.bytes_per_device, leaves))
    everywhere = sum(math.prod(x.shape) * x.dtype.itemsize for x in leaves)
    lines.append(
      f"{name:<10}{sum(math.prod(x.shape) for x in leaves):>16,} numbers  "
      f"{everywhere / GIB:9.3f} GiB  {here / GIB:9.3f} GiB per device"
    )
  return "\n".join(lines)


def memory_line(compiled: jax.stages.Compiled) -> str:
  """Memory of a compiled step per device, as the compiler expects it."""
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
  """metrics.jsonl, writers, and a bar or lines; only process 0 writes."""

  def __init__(
    self,
    workdir: epath.PathLike,
    *,
    first_step: int,
    total_steps: int,
    repeated: Sequence[str] = (),
    writes: Sequence[str] = (),
    config: Mapping[str, Any] | None = None,
    bundle: Mapping[str, Any] | None = None,
  ):
    """Opens the files, and drops the lines that will be written again.

    Args:
      workdir: folder of the run.
      first_step: of the checkpoint it resumes; a run that was killed may have
        written beyond it.
      total_steps: for the bar.
      repeated: names of the evaluators that will run at `first_step`.
      writes: as config.writers.
      config: of the run, as JSON values, for writers.
      bundle: as of bundle.of_start; lines and predictions name its id.
    """
    self._writes = jax.process_index() == 0
    if not self._writes:
      return
    self._folder = epath.Path(workdir)
    self._path = self._folder / "metrics.jsonl"
    self._names = {"bundle": bundle["id"]} if bundle else {}
    evaluators = tuple(f"{name}/" for name in repeated)
    damaged = drop(self._path, first_step, evaluators)
    self._writers = writers.Writers(
      writes,
      self._folder,
      first_step=first_step,
      about={"config": config, "bundle": bundle},
      say=self.say,
    )
    self._bar = tqdm(  # None: only on a terminal
      total=total_steps, initial=first_step, unit="step", disable=None
    )
    if damaged:
      self.say(damaged)

  def write(self, step: int, values: Mapping[str, Any], line: str = "") -> None:
    """Logs named numbers of a step; prints them, or a line in their place."""
    if not self._writes:
      return
    values = {k: float(v) for k, v in values.items() if v is not None}
    with disk.named(self._path), self._path.open("a") as file:
      file.write(json.dumps({"step": step, **values, **self._names}) + "\n")
    self._writers.scalars(step, values)
    shown = "  ".join(f"{name}={value:.5g}" for name, value in values.items())
    self.say(line or f"step {step}  {shown}")

  def show(self, step: int, evaluator: inputs.Evaluator) -> None:
    """Says beside an evaluator's predictions whose they are; shows some."""
    if not self._writes or not isinstance(evaluator, evals.PREDICT):
      return
    path = self._folder / evaluator.name / "predictions.jsonl"
    predictions.describe(path, {"step": step, **self._names})
    if self._writers:
      records = predictions.read(path, len(evaluator))
      found = annotated.samples(evaluator, records)
      self._writers.samples(step, evaluator.name, found)

  def step(self, step: int) -> None:
    """Moves the progress bar."""
    if self._writes:
      self._bar.update(step - self._bar.n)

  def say(self, text: str) -> None:
    """Prints a line, above the bar if there is one."""
    if self._writes:
      tqdm.write(text, file=sys.stderr)

  def close(self) -> None:
    """Flushes everything."""
    if self._writes:
      self._writers.close()
      self._bar.close()


def read(
  path: epath.PathLike,
) -> tuple[list[tuple[bytes, dict[str, Any]]], str]:
  """Reads a metrics.jsonl, and leaves damaged lines out.

  Returns:
    (line, its values) pairs, and a line on the damaged ones, "" without any.

  Raises:
    ValueError, OSError: it cannot be read at all.
  """
  intact, damaged = [], []
  lines = disk.path(path).read_bytes().split(b"\n")
  for number, line in enumerate(lines, start=1):
    if not line.strip():
      continue
    try:
      values = json.loads(line)
      if not math.isfinite(values["step"]):
        raise ValueError
      intact.append((line, values))
    except (KeyError, OverflowError, RecursionError, TypeError, ValueError):
      damaged.append(number)  # as when the machine went down
  more = f", as are {len(damaged) - 1} more lines" if damaged[1:] else ""
  remark = f"{path}:{damaged[0]}: damaged, left out{more}" if damaged else ""
  return intact, remark


def drop(path: epath.Path, first_step: int, repeated: tuple[str, ...]) -> str:
  """Removes from a metrics.jsonl what will be written again, and the damaged.

  The run resumes at `first_step`, and of that step writes again what has a name
  with one of the prefixes `repeated`. Returns a line on the damaged, as `read`.
  """
  if not path.exists():
    return ""
  intact, remark = read(path)
  kept = b""
  for line, values in intact:
    again = any(name.startswith(repeated) for name in values)
    if values["step"] <= first_step - again:
      kept += line + b"\n"
  disk.write(path, kept)
  return remark
