"""The largest batch that fits, in few tries as each one is a compilation."""

from collections.abc import Callable


def search(
  peak: Callable[[int], float], limit: float, *, multiple: int, start: int
) -> int:
  """Finds the largest multiple whose peak does not exceed a limit.

  Peaks are nearly a straight line in the batch, so the next batch to try is
  where the line through the two peaks next to the limit meets it; after some
  tries without an end, the middle of what is left.

  Args:
    peak: function from a batch size to bytes, rising.
    limit: bytes.
    multiple: what the batch size must be a multiple of.
    start: the batch size to try first, or a number near it.

  Returns:
    int, 0 if not even `multiple` fits.
  """
  known = {}  # batch size / multiple -> bytes
  low, high = 0, None  # fits, does not fit
  guess = max(start // multiple, 1)
  while high is None or high - low > 1:
    known[guess] = peak(guess * multiple)
    if known[guess] <= limit:
      low = guess
    else:
      high = guess
    if high is None:
      at_most = 16 * low
    elif len(known) > 8:
      at_most = (low + high) // 2
    else:
      at_most = high - 1
    guess = min(max(_meeting(known, limit), low + 1), at_most)
  return low * multiple


def _meeting(known, limit):
  """Where the line through the two nearest peaks meets the limit."""
  if len(known) == 1:
    ((guess, found),) = known.items()
    return 2 * guess if found <= limit else guess // 2
  second, *others = sorted(known, key=lambda guess: abs(known[guess] - limit))
  # Near the limit a compiler makes room, and peaks may fall: then look farther.
  for first in others:
    slope = (known[second] - known[first]) / (second - first)
    if slope > 0:
      return second + int((limit - known[second]) // slope)
  return 2 * max(known)
