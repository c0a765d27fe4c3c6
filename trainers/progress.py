"""What programs print while they work, on stderr of process 0 alone."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator

import jax
from tqdm import tqdm

# Between two lines on progress where there is no terminal.
SECONDS = 10


@contextlib.contextmanager
def stage(name: str) -> Iterator[list[str]]:
  """Prints that a stage begins, and how long it took once it has ended.

  Yields a list of what the last line says besides.
  """
  say([f"{name} ..."])
  start, details = time.perf_counter(), []
  yield details
  seconds = f"{time.perf_counter() - start:.1f} s"
  say([f"{name}: {', '.join([*details, seconds])}"])


def bar(name: str) -> Callable[[int, int], None]:
  """Returns a function of (examples done, of all) that shows how far it is.

  On a terminal it is a bar with the time left, elsewhere a line with both
  every SECONDS.
  """
  shown = first = last = None

  def show(done, total):
    nonlocal shown, first, last
    now = time.monotonic()
    if shown is None:  # what an earlier start has done is not this one's speed
      first, last = (done, now), now
      shown = tqdm(
        desc=name,
        total=total,
        initial=done,
        unit="example",
        leave=None,  # only if it is the only one
        disable=_quiet() or None,  # None: only on a terminal
      )
    shown.update(done - shown.n)
    if done == total:
      shown.close()
    elif shown.disable and now - last >= SECONDS and done > first[0]:
      last = now
      rest = (total - done) * (now - first[1]) / (done - first[0])
      left = tqdm.format_interval(rest)
      say([f"{name}: {done:,} of {total:,} examples, {left} left"])

  return show


def byte_bar(name: str, total: int) -> tqdm:
  """Returns a bar over bytes that a terminal shows after two seconds."""
  return tqdm(
    desc=name,
    total=total,
    unit="B",
    unit_scale=True,
    unit_divisor=1024,
    delay=2,
    leave=None,
    disable=_quiet() or None,
  )


def say(lines: Iterable[str]) -> None:
  """Prints lines on stderr, above a bar if there is one."""
  if not _quiet():
    for line in lines:
      tqdm.write(line, file=sys.stderr)


def resampling(resamples: Iterable) -> Iterable:
  """Iterates over resamples, with a bar if they take over two seconds."""
  return tqdm(resamples, desc="resamples", delay=2, disable=_quiet())


def _quiet():
  return jax.process_index() != 0
