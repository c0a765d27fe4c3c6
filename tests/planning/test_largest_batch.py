import math

import pytest

from paligemma.planning import largest_batch


def steps(batch):
  """Rises in stairs, as padded layouts do."""
  return 40 + 7 * math.ceil(batch / 24) * 24


CURVES = {
  "line": lambda batch: 500 + 17.3 * batch,
  "bent": lambda batch: 100 + batch**1.3,
  "stairs": steps,
  "flat": lambda batch: 100 + 1e-3 * batch,
  "recomputed": lambda batch: min(300 + 20 * batch, 9_000 + 1.5 * batch),
}


@pytest.mark.parametrize("name", CURVES)
@pytest.mark.parametrize("multiple", [1, 8])
@pytest.mark.parametrize("start", [1, 32, 5000])
def test_finds_the_last_that_fits(name, multiple, start):
  limit, tried = 10_000, []

  def peak(batch):
    assert batch % multiple == 0
    tried.append(batch)
    return CURVES[name](batch)

  found = largest_batch.search(peak, limit, multiple=multiple, start=start)
  assert found > 0
  assert CURVES[name](found) <= limit < CURVES[name](found + multiple)
  assert len(tried) == len(set(tried))
  if name == "line":
    assert len(tried) <= 6
  assert len(tried) <= 30


def test_peaks_that_fall_next_to_the_limit():
  found = {64: 8.98, 128: 11.23, 256: 15.44, 265: 15.68, 267: 15.65}
  tried = []

  def peak(batch):
    tried.append(batch)
    return found.get(batch, 15 + (batch > 269))

  assert largest_batch.search(peak, 15.75, multiple=1, start=64) == 269
  assert max(tried) < 300


def test_nothing_fits():
  tried = []

  def peak(batch):
    tried.append(batch)
    return 10.0 + batch

  assert largest_batch.search(peak, 5, multiple=4, start=32) == 0
  assert min(tried) == 4
