"""Confidence intervals and comparisons of scores: the bootstrap over examples.

The examples count as a sample of all that might have been asked. A resample
draws as many of them with replacement; the spread of a score over resamples
estimates its spread over data sets of this size.

Source: Efron and Tibshirani 1993, "An Introduction to the Bootstrap", chapters
13 (percentile intervals) and 15 (permutation tests).
"""

import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from paligemma.metrics import metric as metric_lib

SAMPLES = 1000
LEVEL = 0.95
PERMUTATIONS = 9999

BLOCK = 2**24  # most random numbers held at a time


@runtime_checkable
class Reducible(Protocol):
  """A Metric, or any other object that reduces rows to scores."""

  def reduce(self, rows: Sequence[Any]) -> dict[str, float]: ...


class Estimate(NamedTuple):
  """A score and its interval.

  Attributes:
    value: score over all rows.
    low, high: bounds of the percentile interval; None for counts of rows
      ("num", "num/yesno", "num_tokens", "total") and without resamples.
  """

  value: float
  low: float | None = None
  high: float | None = None


class Comparison(NamedTuple):
  """The scores of two predictors, A and B, on the same examples.

  Attributes:
    a, b: the scores.
    difference: a - b.
    low, high: bounds of the percentile interval of the difference.
    a_is_larger: share of the resamples in which a > b; ties count half.
    p_value: of the two-sided sign-flip permutation test: how often the means
      differ at least as much if A and B are swapped at random, example by
      example. None for a score that is not a mean over the rows.
  """

  a: float
  b: float
  difference: float
  low: float | None = None
  high: float | None = None
  a_is_larger: float | None = None
  p_value: float | None = None


def estimate(
  metric: Reducible,
  rows: Sequence[Any],
  *,
  groups: Sequence[Hashable] | None = None,
  samples: int = SAMPLES,
  level: float = LEVEL,
  seed: int = 0,
  progress: Callable[[Iterable], Iterable] = iter,
) -> dict[str, Estimate]:
  """Returns every score over the rows, with its percentile interval.

  Args:
    metric: reduces the rows.
    rows: of the metric, one per example; at least one.
    groups: per row, a key; rows with equal keys are drawn together. Default
      None: each row is drawn by itself.
    samples: number of resamples; 0 for no interval. Default 1000.
    level: share of the resamples inside the interval. Default 0.95.
    seed: the same seed and number of rows draw the same rows. Default 0.
    progress: wraps the loop over resamples, as tqdm does. Means are resampled
      all at once, without it.

  Returns:
    {name: Estimate}.
  """
  values = metric.reduce(rows)
  drawn = _resample(metric, [rows], groups, samples, seed, progress)[0]
  return {
    name: Estimate(value, *_interval(drawn.get(name), level))
    for name, value in values.items()
  }


def compare(
  metric: Reducible,
  rows_a: Sequence[Any],
  rows_b: Sequence[Any],
  *,
  groups: Sequence[Hashable] | None = None,
  samples: int = SAMPLES,
  level: float = LEVEL,
  seed: int = 0,
  progress: Callable[[Iterable], Iterable] = iter,
) -> dict[str, Comparison]:
  """Compares two predictors example by example.

  Both are scored on the same resamples, so the difficulty of the examples, most
  of the spread, cancels.

  Args:
    metric: reduces the rows.
    rows_a, rows_b: of the two predictors, for the same examples in one order.
    groups, samples, level, seed, progress: as in `estimate`.

  Returns:
    {name: Comparison} for the scores that both have, without counts of rows.
  """
  assert len(rows_a) == len(rows_b), (len(rows_a), len(rows_b))
  of_a, of_b = metric.reduce(rows_a), metric.reduce(rows_b)
  drawn_a, drawn_b = _resample(
    metric, [rows_a, rows_b], groups, samples, seed, progress
  )
  compared = {}
  for name, a in of_a.items():
    if name not in of_b or _is_number_of_rows(name):
      continue
    differences, wins = None, None
    if name in drawn_a and name in drawn_b:
      differences = drawn_a[name] - drawn_b[name]
      differences = differences[~np.isnan(differences)]
    if differences is not None and len(differences):
      wins = float(np.mean((np.sign(differences) + 1) / 2))
    compared[name] = Comparison(
      a,
      of_b[name],
      a - of_b[name],
      *_interval(differences, level),
      wins,
      _p_value(name, (a, of_b[name]), (rows_a, rows_b), groups, seed),
    )
  return compared


def sign_flip_p_value(
  differences: Float[np.ndarray, " N"],
  *,
  permutations: int = PERMUTATIONS,
  seed: int = 0,
) -> float:
  """Returns the two-sided p-value, in (0, 1], of a mean difference of 0.

  Args:
    differences: of pairs; under the null hypothesis their signs are random.
    permutations: number of random sign vectors. Where all 2**N are not more,
      each of them is tried once instead.
    seed: of the draws.

  Returns:
    (1 + number of permutations as extreme) / (1 + permutations), or the exact
    share of all 2**N.
  """
  moved = differences[differences != 0]  # the sign of a 0 changes nothing
  observed = abs(moved.sum())
  slack = 1e-9 * np.abs(moved).sum()  # sums in another order round differently
  if 2 ** len(moved) <= permutations + 1:
    numbers = np.arange(2 ** len(moved))[:, None]
    signs = 1 - 2 * (numbers >> np.arange(len(moved)) & 1)
    return float(np.mean(np.abs(signs @ moved) >= observed - slack))
  rng = np.random.default_rng(seed)
  extreme = 0
  for count in _blocks(permutations, len(moved)):
    signs = rng.integers(0, 2, (count, len(moved)), np.int8)
    # sum of +-d = 2 * sum of those that stay - sum of all
    sums = 2 * (signs @ moved) - moved.sum()
    extreme += int((np.abs(sums) >= observed - slack).sum())
  return (1 + extreme) / (1 + permutations)


def _resample(metric, tables, groups, samples, seed, progress):
  """Per table of rows, {name: float[samples], NaN where a score is missing}."""
  members = _members(groups, len(tables[0]))
  # For a mean, it suffices to know how often each row is drawn.
  if getattr(metric, "is_mean", False):
    return [_means(rows, members, samples, seed) for rows in tables]
  found = [[] for _ in tables]
  for drawn in progress(_Draws(members, samples, seed)):
    index = [i for group in drawn for i in members[group]]
    for rows, results in zip(tables, found, strict=True):
      results.append(metric.reduce([rows[i] for i in index]))
  return [_columns(results) for results in found]


class _Draws:
  """Iterates over the resamples: int[G], the groups that were drawn."""

  def __init__(self, members, samples, seed):
    self._groups, self._samples, self._seed = len(members), samples, seed

  def __len__(self) -> int:
    return self._samples

  def __iter__(self) -> Iterator[np.ndarray]:
    rng = np.random.default_rng(self._seed)
    for _ in range(self._samples):
      yield rng.integers(self._groups, size=self._groups)


def _means(rows, members, samples, seed):
  """Returns {name: float[samples]}, the means of the resamples."""
  names = list(metric_lib.means(rows))
  table = np.array([[row.get(n, np.nan) for n in names] for row in rows])
  here = ~np.isnan(table)
  group = np.empty(len(rows), int)
  for i, rows_of in enumerate(members):
    group[rows_of] = i
  sums, counts = np.zeros((2, len(members), len(names)))
  np.add.at(sums, group, np.where(here, table, 0))
  np.add.at(counts, group, here)
  drawn = iter(_Draws(members, samples, seed))
  means = [np.empty((0, len(names)))]
  for count in _blocks(samples, len(members)):
    times = np.stack(
      [np.bincount(next(drawn), minlength=len(members)) for _ in range(count)]
    ).astype(float)
    with np.errstate(invalid="ignore"):  # no row of a name: 0 / 0 is NaN
      means.append((times @ sums) / (times @ counts))
  return dict(zip(names, np.concatenate(means).T, strict=True))


def _columns(results):
  names = {name: None for scores in results for name in scores}
  return {
    name: np.array([scores.get(name, np.nan) for scores in results])
    for name in names
    if not _is_number_of_rows(name)
  }


def _members(groups, count):
  """Returns the row indices of each group."""
  if groups is None:
    return [[i] for i in range(count)]
  members = {}
  for i, group in enumerate(groups):
    members.setdefault(group, []).append(i)
  return list(members.values())


def _interval(drawn, level):
  if drawn is None or not np.isfinite(drawn).any():
    return None, None
  tail = (1 - level) / 2
  return tuple(map(float, np.nanquantile(drawn, [tail, 1 - tail])))


def _is_number_of_rows(name):
  return name == "total" or name == "num" or name.startswith(("num/", "num_"))


def _p_value(name, values, tables, groups, seed):
  """Returns the p-value of two scores, None if they are not means of rows."""
  columns = []
  for rows, value in zip(tables, values, strict=True):
    if not all(isinstance(row, dict) for row in rows):
      return None
    column = np.array([row.get(name, np.nan) for row in rows], float)
    here = column[~np.isnan(column)]
    if not len(here) or not math.isclose(here.mean(), value, abs_tol=1e-9):
      return None
    columns.append(column)
  differences = columns[0] - columns[1]
  if (np.isnan(columns[0]) != np.isnan(columns[1])).any():
    return None
  summed = [
    np.nansum(differences[rows]) for rows in _members(groups, len(differences))
  ]
  return sign_flip_p_value(np.array(summed), seed=seed)


def _blocks(total, width):
  """Splits `total` rows of a width into counts that fit into memory."""
  most = max(BLOCK // max(width, 1), 1)
  return [min(most, total - start) for start in range(0, total, most)]
