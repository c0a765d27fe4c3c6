"""Progress bars and notes, on stderr of process 0 alone."""

import sys
from collections.abc import Callable, Iterable

import jax
from tqdm import tqdm


def bar(name: str) -> Callable[[int, int], None]:
  """Returns a function of (examples done, of all) that updates a bar."""
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
  """Prints lines on stderr."""
  if not _quiet():
    for line in lines:
      print(line, file=sys.stderr)


def resampling(resamples: Iterable) -> Iterable:
  """Iterates over resamples, with a bar if they take over two seconds."""
  return tqdm(resamples, desc="resamples", delay=2, disable=_quiet())


def _quiet():
  return jax.process_index() != 0
