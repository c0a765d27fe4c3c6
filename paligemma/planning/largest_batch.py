"""The largest batch that fits, in few tries as each one is a compilation."""

from collections.abc import Callable


def search(
  peak: Callable[[int], float], limit: float, *, multiple: int, start: int
) -> int:
  """Returns the largest multiple whose peak does not exceed a limit, or 0.

  Peaks are nearly linear in the batch, so the next batch to try is where the
  line through the two peaks nearest to the limit meets it; after some tries
  without an end, the middle of the range that is left.

  Args:
    peak: Rising function from a batch size to bytes.
    limit: Bytes.
    multiple: Divides the batch size.
    start: The batch size to try first, or a number near it.
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
  """Returns where the line through the two nearest peaks meets the limit."""
  if len(known) == 1:
    ((guess, found),) = known.items()
    return 2 * guess if found <= limit else guess // 2
  second, *others = sorted(known, key=lambda guess: abs(known[guess] - limit))
  # Near the limit a compiler saves memory, so peaks may fall: then try others.
  for first in others:
    slope = (known[second] - known[first]) / (second - first)
    if slope > 0:
      return second + int((limit - known[second]) // slope)
  return 2 * max(known)
