"""What programs print while they work, on stderr of process 0 alone."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator

import jax
from tqdm import tqdm

from paligemma.planning.memory import GIB
from trainers import compilation_cache

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


@contextlib.contextmanager
def bar(
  name: str, *, unit: str = "examples", size: int = 1
) -> Iterator[Callable[[int, int], None]]:
  """Yields a function of (done, of all) that shows how far something is.

  On a terminal it is a bar with the time left; elsewhere a line at the first
  call, and one with the time left every SECONDS. A line says how long programs
  were compiled meanwhile.

  Args:
    name: what is shown in front.
    unit: what is counted.
    size: how many of what the function is given make one unit.
  """
  shown = first = last = None

  def units(count):
    return count if size == 1 else count / size

  def amount(count):
    return f"{count:,}" if size == 1 else f"{units(count):.3g}"

  with contextlib.ExitStack() as stack:
    compiled = stack.enter_context(compilation_cache.watching())

    def show(done, total):
      nonlocal shown, first, last
      now = time.monotonic()
      if shown is None:
        # What an earlier start has done is not this one's speed.
        first, last = (done, now), now
        shown = stack.enter_context(
          tqdm(
            desc=name,
            total=units(total),
            initial=units(done),
            unit=f" {unit}",
            unit_scale=size > 1,
            leave=None,  # only if it is the only one
            disable=_quiet() or None,  # None: only on a terminal
          )
        )
        if shown.disable:
          say([f"{name}: {amount(done)} of {amount(total)} {unit} ..."])
      elif compiled.seconds:
        cached = ", from the cache" * compiled.from_cache
        say([f"{name}: compiled in {compiled.seconds:.1f} s{cached}"])
        compiled.seconds = 0.0
        first, last = (done, now), now
      shown.update(units(done) - shown.n)
      if shown.disable and now - last >= SECONDS and first[0] < done < total:
        last = now
        rest = (total - done) * (now - first[1]) / (done - first[0])
        left = tqdm.format_interval(rest)
        say([f"{name}: {amount(done)} of {amount(total)} {unit}, {left} left"])

    yield show


@contextlib.contextmanager
def copying(name: str) -> Iterator[Callable[[int, int], None]]:
  """A bar over bytes that ends in a line with their speed."""
  copied, start = 0, time.perf_counter()
  with bar(name, unit="GiB", size=GIB) as show:

    def count(done, total):
      nonlocal copied
      copied = done / GIB
      show(done, total)

    yield count
  seconds = time.perf_counter() - start
  speed = f"{copied / seconds:.3g} GiB/s"
  say([f"{name}: {copied:.3g} GiB, {speed}, {seconds:.1f} s"])


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
