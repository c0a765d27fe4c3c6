"""What the runs of a sweep have reached: a table of the folder.

combination.json in the folder of each run   its values, and how it ended
sweep.json, table.txt in that of the sweep   all of them, the best first
"""

import json
import math
from collections.abc import Mapping
from typing import Any

from etils import epath

from paligemma import disk, messages
from trainers import best, report, workdir

FILE = "combination.json"


def write(
  folder: epath.Path,
  values: Mapping[str, str],
  status: str,
  *,
  seconds: float = 0.0,
  error: str = "",
) -> None:
  """Writes how a run stands; `seconds` add to those of earlier starts."""
  before = workdir.read(folder / FILE) or {}
  found = {
    "values": dict(values),
    "status": status,
    "seconds": before.get("seconds", 0.0) + seconds,
    "error": error,
  }
  disk.write(folder / FILE, f"{json.dumps(found)}\n")


def scores(folder: epath.Path, metric: str) -> dict[int, float]:
  """The values of a metric of a run, by step."""
  file = folder / "metrics.jsonl"
  if not file.exists():
    return {}
  lines, _ = report.read(file)
  return {
    values["step"]: values[metric] for _, values in lines if metric in values
  }


def collect(
  folder: epath.Path, metric: str, higher_is_better: bool
) -> list[dict[str, Any]]:
  """Every run in the folder of a sweep, the best first."""
  runs = []
  for run in sorted(path for path in folder.iterdir() if path.is_dir()):
    found = workdir.read(run / FILE)
    if found is None:
      continue
    values = scores(run, metric)
    step = best.first_best(values, higher_is_better)
    runs.append(
      {
        "name": run.name,
        **found,
        "best": values.get(step),
        "best_step": step,
        "last": values[max(values)] if values else None,
      }
    )

  def rank(run):
    if run["best"] is None:
      return math.inf
    return -run["best"] if higher_is_better else run["best"]

  return sorted(runs, key=rank)


def table(runs: list[dict[str, Any]], metric: str) -> list[str]:
  """Aligned lines of `collect`."""
  names = sorted({name for run in runs for name in run["values"]})
  rows = [(*names, f"best {metric}", "at step", "last", "minutes", "status")]
  for run in runs:
    row = [run["values"].get(name, "") for name in names]
    row += [_shown(run["best"]), _shown(run["best_step"]), _shown(run["last"])]
    rows.append((*row, f"{run['seconds'] / 60:.1f}", run["status"]))
  return messages.aligned(rows)


def publish(
  folder: epath.Path, metric: str, higher_is_better: bool
) -> list[str]:
  """Writes sweep.json and table.txt, and returns the lines of the latter."""
  runs = collect(folder, metric, higher_is_better)
  found = {
    "metric": metric,
    "higher_is_better": higher_is_better,
    "runs": runs,
  }
  disk.write(folder / "sweep.json", f"{json.dumps(found, indent=2)}\n")
  lines = table(runs, metric)
  disk.write(folder / "table.txt", "\n".join([*lines, ""]))
  return lines


def _shown(number):
  return "" if number is None else f"{number:.5g}"
