"""Contestants run in turns, so that what slows the machine slows all alike."""

import statistics
import time


def seconds(contestants, runs, *, clock=time.perf_counter):
  """Times every contestant `runs` times, in turns, after one run to warm up.

  Args:
    contestants: name -> function that does the work and waits for its end.
    runs: int.
    clock: function that gives seconds.

  Returns:
    name -> list of seconds, one per run.
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


def spread(values):
  """The median, min and max of some values."""
  return {
    "median": statistics.median(values),
    "min": min(values),
    "max": max(values),
  }


def ratio(ours, theirs):
  """Our rate over the best median of theirs."""
  return ours / max(each["median"] for each in theirs.values())
