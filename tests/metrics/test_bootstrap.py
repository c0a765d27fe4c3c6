"""The bootstrap, against closed forms and against itself done slowly."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from paligemma.metrics import bootstrap, vqav2
from paligemma.metrics import metric as metric_lib


class Mean(metric_lib.Metric):
  """Reduced by Metric.reduce: all resamples at once."""


class Slow(metric_lib.Metric):
  """The same numbers, one resample after the other."""

  def reduce(self, rows):
    return super().reduce(rows)


class Declared(Slow):
  """All at once again, as it says that it may be."""

  is_mean = True


def rows_of(values, name="acc"):
  return [{name: float(value)} for value in values]


def test_interval_of_a_mean_is_that_of_the_normal_distribution():
  values = np.random.default_rng(1).normal(3, 2, 701)
  found = bootstrap.estimate(Mean(), rows_of(values), samples=20_000)["acc"]
  error = values.std() / math.sqrt(len(values))
  assert found.value == pytest.approx(values.mean())
  assert found.low == pytest.approx(values.mean() - 1.96 * error, abs=error / 5)
  assert found.high == pytest.approx(
    values.mean() + 1.96 * error, abs=error / 5
  )


def test_interval_of_a_share_is_that_of_the_binomial_distribution():
  values = [1] * 83 + [0] * 218
  found = bootstrap.estimate(Mean(), rows_of(values), samples=20_000)["acc"]
  low, high = stats.binom.ppf([0.025, 0.975], 301, 83 / 301) / 301
  assert found.low == pytest.approx(low, abs=1.1 / 301)
  assert found.high == pytest.approx(high, abs=1.1 / 301)


@pytest.fixture(scope="module")
def grouped_rows():
  """Rows some of which have a second name, in groups of different sizes."""
  rng = np.random.default_rng(2)
  rows = [{"acc": float(rng.random())} for _ in range(53)]
  for row in rows[::7]:
    row["acc/yesno"] = row["acc"]
  groups = [i // 3 if i < 30 else i for i in range(53)]
  return rows, groups


@pytest.mark.parametrize("grouped", [False, True])
def test_all_at_once_is_one_after_the_other(grouped_rows, grouped, monkeypatch):
  rows, groups = grouped_rows
  options = {"samples": 211, "groups": groups if grouped else None, "seed": 5}
  slow = bootstrap.estimate(Slow(), rows, **options)
  fast = bootstrap.estimate(Mean(), rows, **options)
  assert bootstrap.estimate(Declared(), rows, **options) == fast
  assert [m.is_mean for m in (Slow(), Mean(), Declared())] == [0, 1, 1]
  monkeypatch.setattr(bootstrap, "BLOCK", 53 * 17)
  in_blocks = bootstrap.estimate(Mean(), rows, **options)
  assert slow.keys() == {"acc", "acc/yesno", "num/yesno", "num"}
  for name, expected in slow.items():
    for found in (fast[name], in_blocks[name]):
      if name.startswith("num"):
        assert found == expected == (expected.value, None, None)
      else:
        assert found == pytest.approx(expected, abs=1e-12)
        assert found.low < found.value < found.high


def test_rows_of_a_group_stay_together():
  # Ten groups of ten equal rows are ten numbers: the error is sqrt(10) times
  # that of a hundred.
  values = np.random.default_rng(3).normal(size=10).repeat(10)
  alone = bootstrap.estimate(Mean(), rows_of(values))["acc"]
  together = bootstrap.estimate(
    Mean(), rows_of(values), groups=[i // 10 for i in range(100)]
  )["acc"]
  ratio = (together.high - together.low) / (alone.high - alone.low)
  assert ratio == pytest.approx(math.sqrt(10), rel=0.15)


def test_the_seed_decides():
  rows = rows_of(np.random.default_rng(4).random(41))
  first, again, other = (
    bootstrap.estimate(Mean(), rows, seed=seed)["acc"] for seed in (0, 0, 1)
  )
  assert first == again
  assert first.value == other.value
  assert (first.low, first.high) != (other.low, other.high)


def test_a_level_is_the_share_inside():
  rows = rows_of(np.random.default_rng(4).random(41))
  wide, narrow = (
    bootstrap.estimate(Mean(), rows, level=level)["acc"]
    for level in (0.95, 0.5)
  )
  assert wide.low < narrow.low < narrow.high < wide.high


def test_without_resamples_there_is_no_interval():
  for metric in (Mean(), Slow()):
    found = bootstrap.estimate(metric, rows_of([0, 1]), samples=0)
    assert found["acc"] == (0.5, None, None)
    compared = bootstrap.compare(
      metric, rows_of([1, 1]), rows_of([0, 1]), samples=0
    )
    assert compared["acc"] == (1.0, 0.5, 0.5, None, None, None, 1.0)


def test_a_score_that_some_resamples_lack():
  # A third of the resamples of three rows have none of "acc/rare".
  rows = [{"acc": 1.0}, {"acc": 0.0}, {"acc": 0.5, "acc/rare": 0.5}]
  for metric in (Mean(), Slow()):
    assert bootstrap.estimate(metric, rows)["acc/rare"] == (0.5, 0.5, 0.5)
    compared = bootstrap.compare(metric, rows, rows)["acc/rare"]
    assert compared == (0.5, 0.5, 0.0, 0.0, 0.0, 0.5, 1.0)


def test_a_constant_difference_is_certain_however_wide_the_scores():
  values = np.random.default_rng(6).normal(size=37)
  found = bootstrap.compare(Mean(), rows_of(values + 0.25), rows_of(values))
  acc = found["acc"]
  assert found.keys() == {"acc"}
  assert acc.difference == pytest.approx(0.25)
  assert (acc.low, acc.high) == pytest.approx((0.25, 0.25))
  assert acc.a_is_larger == 1
  assert acc.p_value == pytest.approx(1 / 10_000)


@pytest.mark.parametrize("metric", [Mean(), Slow()])
def test_interval_of_a_difference_is_that_of_paired_differences(metric):
  rng = np.random.default_rng(7)
  a, b = rng.normal(size=(2, 401)) + 3 * rng.normal(size=401)
  found = bootstrap.compare(metric, rows_of(a), rows_of(b))["acc"]
  error = (a - b).std() / math.sqrt(401)
  middle = (a - b).mean()
  assert found[:3] == pytest.approx((a.mean(), b.mean(), middle))
  assert found.low == pytest.approx(middle - 1.96 * error, abs=error / 4)
  assert found.high == pytest.approx(middle + 1.96 * error, abs=error / 4)
  assert found.a_is_larger == pytest.approx(
    stats.norm.cdf(middle / error), abs=0.05
  )
  expected = stats.ttest_rel(a, b).pvalue
  assert found.p_value == pytest.approx(expected, abs=0.02)


def test_swapping_the_two_turns_the_comparison():
  rng = np.random.default_rng(8)
  a, b = (rows_of(rng.integers(0, 2, 31)) for _ in range(2))
  one = bootstrap.compare(Mean(), a, b)["acc"]
  other = bootstrap.compare(Mean(), b, a)["acc"]
  assert (one.low, one.high) == pytest.approx((-other.high, -other.low))
  assert one.a_is_larger == pytest.approx(1 - other.a_is_larger)
  assert one.p_value == other.p_value


def test_p_value_of_few_differences_is_exact():
  differences = np.array([1.0, 2.0, -0.5, 0.0, 3.0])
  observed = abs(differences.sum())
  extreme = [
    abs(np.dot(signs, differences)) >= observed - 1e-12
    for signs in itertools.product((1, -1), repeat=5)
  ]
  p = bootstrap.sign_flip_p_value(differences)
  assert p == pytest.approx(np.mean(extreme))
  assert bootstrap.sign_flip_p_value(np.zeros(7)) == 1


def test_p_value_of_disagreements_is_that_of_the_sign_test():
  # 31 pictures that A alone gets right, 15 that B alone does: McNemar's test.
  differences = np.array([1.0] * 31 + [-1.0] * 15 + [0.0] * 300)
  exact = stats.binomtest(15, 46).pvalue
  p = bootstrap.sign_flip_p_value(differences)
  assert p == pytest.approx(exact, abs=4 * math.sqrt(exact / 9999))
  assert p == bootstrap.sign_flip_p_value(differences)


def test_p_values_are_evenly_spread_when_nothing_differs():
  rng = np.random.default_rng(9)
  p = [
    bootstrap.sign_flip_p_value(rng.normal(size=23), permutations=199)
    for _ in range(300)
  ]
  assert stats.kstest(p, "uniform").pvalue > 0.01


def test_no_p_value_of_what_is_no_mean():
  class Ratio(metric_lib.Metric):
    def reduce(self, rows):
      return {
        "ratio": sum(r["a"] for r in rows) / sum(r["b"] for r in rows),
        "a": sum(r["a"] for r in rows) / len(rows),
      }

  rng = np.random.default_rng(10)
  one, other = (
    [{"a": x, "b": y} for x, y in rng.random((29, 2)) + 1] for _ in range(2)
  )
  found = bootstrap.compare(Ratio(), one, other)
  assert found["ratio"].p_value is None
  assert found["ratio"].low < found["ratio"].high
  assert found["a"].p_value is not None


def test_rows_that_are_no_numbers():
  class Longest(metric_lib.Metric):
    def reduce(self, rows):
      return {"longest": float(max(map(len, rows)))}

  found = bootstrap.compare(Longest(), ["a", "bcd"], ["ab", "c"])["longest"]
  assert found[:3] == (3, 2, 1)
  assert found.p_value is None


def test_progress_goes_through_all_resamples():
  seen = []

  def progress(resamples):
    assert len(resamples) == 13
    for drawn in resamples:
      seen.append(drawn)
      yield drawn

  bootstrap.estimate(Slow(), rows_of([0, 1]), samples=13, progress=progress)
  assert len(seen) == 13


def test_a_real_metric():
  examples = [
    {"suffix": ["yes"] * 10, "answer_type": "yes/no"},
    {"suffix": ["2"] * 10, "answer_type": "number"},
  ] * 10
  metric = vqav2.VQAv2()
  right = metric.rows(["yes", "2"] * 10, examples)
  half = metric.rows(["yes", "3"] * 10, examples)
  found = bootstrap.compare(metric, right, half)
  assert found["acc/yesno"] == (1.0, 1.0, 0.0, 0.0, 0.0, 0.5, 1.0)
  assert found["acc/number"].difference == 1
  assert found["acc"].a_is_larger == 1
  assert found["acc"].p_value == pytest.approx(2 / 2**10)
  assert metric.group_key is None
