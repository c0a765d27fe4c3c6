"""Confidence intervals and comparisons of scores: the bootstrap over examples.

The examples count as a sample of all that might have been asked. A resample
draws as many of them with replacement; the spread of a score over resamples
estimates its spread over data sets of this size.

Source: Efron and Tibshirani 1993, "An Introduction to the Bootstrap", chapters
13 (percentile intervals) and 15 (permutation tests).
"""

import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from paligemma.metrics import metric as metric_lib

SAMPLES = 1000
LEVEL = 0.95
PERMUTATIONS = 9999

BLOCK = 2**24  # most random numbers held at a time


class Estimate(NamedTuple):
  """A score over all rows, and the bounds of its percentile interval.

  They are None for counts of rows ("num", "num/yesno", "num_tokens", "total")
  and without resamples.
  """

  value: float
  low: float | None = None
  high: float | None = None


class Comparison(NamedTuple):
  """The scores of two predictors, A and B, on the same examples.

  Attributes:
    low, high: bounds of the percentile interval of the difference, a - b.
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
  metric: Any,
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
    metric: a Metric, or any other object whose method `reduce` turns rows into
      scores.
    rows: of the metric, one per example; at least one.
    groups: per row, a key; rows with equal keys are drawn together. Default:
      each row is drawn by itself.
    samples: number of resamples; 0 for no interval.
    level: share of the resamples inside the interval.
    seed: the same seed and number of rows draw the same rows.
    progress: wraps the loop over resamples, as tqdm does. Means are resampled
      all at once, without it.
  """
  (drawn,) = _resample(metric, [rows], groups, samples, seed, progress)
  return {
    name: Estimate(value, *_interval(drawn.get(name), level))
    for name, value in metric.reduce(rows).items()
  }


def compare(
  metric: Any,
  rows_a: Sequence[Any],
  rows_b: Sequence[Any],
  *,
  groups: Sequence[Hashable] | None = None,
  samples: int = SAMPLES,
  level: float = LEVEL,
  seed: int = 0,
  progress: Callable[[Iterable], Iterable] = iter,
) -> dict[str, Comparison]:
  """Compares two predictors by their rows for the same examples in one order.

  Both are scored on the same resamples, so the difficulty of the examples, most
  of the spread, cancels. The other arguments are those of `estimate`.

  Returns:
    {name: Comparison} for the scores that both have, without counts of rows.
  """
  assert len(rows_a) == len(rows_b), (len(rows_a), len(rows_b))
  tables = rows_a, rows_b
  drawn_a, drawn_b = _resample(metric, tables, groups, samples, seed, progress)
  scores_a, scores_b = map(metric.reduce, tables)
  compared = {}
  for name, a in scores_a.items():
    if name not in scores_b or is_count(name):
      continue
    b, wins = scores_b[name], None
    differences = np.empty(0)
    if name in drawn_a and name in drawn_b:
      differences = drawn_a[name] - drawn_b[name]
      differences = differences[~np.isnan(differences)]
    if len(differences):
      wins = float(np.mean((np.sign(differences) + 1) / 2))
    compared[name] = Comparison(
      a,
      b,
      a - b,
      *_interval(differences, level),
      wins,
      _p_value(name, (a, b), tables, groups, seed),
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
  rng = np.random.default_rng(seed)
  found = [[] for _ in tables]
  for _ in progress(range(samples)):
    index = [i for group in _draw(rng, len(members)) for i in members[group]]
    for rows, results in zip(tables, found, strict=True):
      results.append(metric.reduce([rows[i] for i in index]))
  return [_columns(results) for results in found]


def _draw(rng, number):
  return rng.integers(number, size=number)


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
  rng = np.random.default_rng(seed)
  number = len(members)
  means = [np.empty((0, len(names)))]
  for count in _blocks(samples, number):
    drawn = [_draw(rng, number) for _ in range(count)]
    times = [np.bincount(groups, minlength=number) for groups in drawn]
    times = np.array(times, float)
    with np.errstate(invalid="ignore"):  # no row of a name: 0 / 0 is NaN
      means.append((times @ sums) / (times @ counts))
  return dict(zip(names, np.concatenate(means).T, strict=True))


def _columns(results):
  names = dict.fromkeys(name for scores in results for name in scores)
  return {
    name: np.array([scores.get(name, np.nan) for scores in results])
    for name in names
    if not is_count(name)
  }


def _members(groups, count):
  members = defaultdict(list)
  for i, group in enumerate(range(count) if groups is None else groups):
    members[group].append(i)
  return list(members.values())


def _interval(drawn, level):
  if drawn is None or not np.isfinite(drawn).any():
    return None, None
  tail = (1 - level) / 2
  return tuple(map(float, np.nanquantile(drawn, [tail, 1 - tail])))


def is_count(name: str) -> bool:
  """Returns whether a score counts rows, of which there is no interval."""
  return name == "total" or name == "num" or name.startswith(("num/", "num_"))


def _p_value(name, values, tables, groups, seed):
  """Returns the p-value of two scores, None if they are not means of rows."""
  if not all(isinstance(row, dict) for rows in tables for row in rows):
    return None
  columns = np.array(
    [[row.get(name, np.nan) for row in rows] for rows in tables], float
  )
  here = ~np.isnan(columns)
  if (here[0] != here[1]).any() or not here.any():
    return None
  for column, value in zip(columns, values, strict=True):
    if not math.isclose(column[here[0]].mean(), value, abs_tol=1e-9):
      return None
  differences = np.where(here[0], columns[0] - columns[1], 0)
  members = _members(groups, len(differences))
  summed = np.array([differences[group].sum() for group in members])
  return sign_flip_p_value(summed, seed=seed)


def _blocks(total, width):
  """Splits `total` rows of a width into counts that fit into memory."""
  most = max(BLOCK // max(width, 1), 1)
  return [min(most, total - start) for start in range(0, total, most)]
