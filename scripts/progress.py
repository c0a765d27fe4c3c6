"""How far an evaluation is, and when it will end; on stderr of process 0."""

import sys
from collections.abc import Callable, Iterable

import jax
from tqdm import tqdm


def bar(name: str) -> Callable[[int, int], None]:
  """A function of (examples done, of all) that shows a bar with time left."""
  shown = None

  def show(done, total):
    nonlocal shown
    if shown is None:  # what an earlier start has done is not this one's speed
      shown = tqdm(
        desc=name, total=total, initial=done, unit="example", disable=_quiet()
      )
    shown.update(done - shown.n)
    if done == total:
      shown.close()

  return show


def say(lines: Iterable[str]) -> None:
  """Prints lines."""
  if not _quiet():
    for line in lines:
      print(line, file=sys.stderr)


def resampling(resamples: Iterable) -> Iterable:
  """Goes through what takes long enough to be shown."""
  return tqdm(resamples, desc="resamples", delay=2, disable=_quiet())


def _quiet():
  return jax.process_index() != 0
