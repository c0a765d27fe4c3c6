"""Contestants run in turns, so that what slows the machine slows all alike."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Spread = dict[str, float]  # median, min and max


def seconds(
  contestants: Mapping[Any, Callable[[], Any]],
  runs: int,
  *,
  clock: Callable[[], float] = time.perf_counter,
) -> dict[Any, list[float]]:
  """Times every contestant `runs` times, in turns, after one run to warm up.

  A contestant does its work and waits for its end. Returns, by name, the
  seconds of each run.
  """
  for work in contestants.values():
    work()
  taken = {name: [] for name in contestants}
  for _ in range(runs):
    for name, work in contestants.items():
      start = clock()
      work()
      taken[name].append(clock() - start)
  return taken


def rates(
  contestants: Mapping[str, Callable[[], Any]],
  amount: float,
  runs: int,
  **options: Any,
) -> dict[str, Spread]:
  """Name -> how much of an amount it does a second; options as of `seconds`."""
  taken = seconds(contestants, runs, **options)
  return {n: spread([amount / s for s in each]) for n, each in taken.items()}


def spread(values: Sequence[float]) -> Spread:
  """The median, min and max of some values."""
  return {
    "median": statistics.median(values),
    "min": min(values),
    "max": max(values),
  }


def against(
  ours: Mapping[str, Any], theirs: Mapping[str, Spread]
) -> dict[str, float]:
  """Our median and our floor over the best median of theirs."""
  best = max(each["median"] for each in theirs.values())
  return {
    "ratio_to_best": ours["median"] / best,
    "floor_to_best": ours["floor"] / best,
  }
