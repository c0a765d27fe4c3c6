"""What the comparisons share: a bound that is checked, and the largest seen.

They need the extra `[parity]`; each file skips itself where that is missing.
"""

import numpy as np
import pytest


@pytest.fixture
def agree(record_property):
  """Asserts max |ours - theirs| <= bound, and keeps it for the summary."""

  def check(what, ours, theirs, bound):
    ours, theirs = (np.asarray(x, np.float32) for x in (ours, theirs))
    assert ours.shape == theirs.shape
    difference = float(np.abs(ours - theirs).max())
    record_property(what, difference)
    assert difference <= bound, f"{what}: differ by {difference:.1e}"

  return check


def pytest_terminal_summary(terminalreporter):
  """Prints the largest difference of each kind: the figures of the README."""
  largest = {}
  for reports in terminalreporter.stats.values():
    for report in reports:
      if getattr(report, "when", None) == "call":
        for what, value in report.user_properties:
          largest[what] = max(largest.get(what, 0.0), value)
  if largest:
    terminalreporter.section("largest differences")
  for what, value in sorted(largest.items()):
    terminalreporter.write_line(f"{what:<40} {value:.1e}")
