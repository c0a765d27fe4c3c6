"""Ridge regression beside NumPy's solver, and few-shot accuracy of a source."""

import dataclasses
import math

import numpy as np
import pytest

from paligemma import evals
from paligemma.evals import few_shot

RNG = np.random.default_rng(0)


def solved(x, y, x_test, regularizer):
  """The normal equations, in float64."""
  x, x_test = x.astype("f8"), x_test.astype("f8")
  mean, std = x.mean(0), x.std(0) + 1e-5
  x, x_test = (
    np.hstack([(z - mean) / std, np.full((len(z), 1), 100.0)])
    for z in (x, x_test)
  )
  targets = np.where(y[:, None] == np.arange(y.max() + 1), 1.0, -1.0)
  gram = x.T @ x + regularizer * np.eye(x.shape[1])
  return x_test @ np.linalg.solve(gram, x.T @ targets)


@pytest.mark.parametrize("count", [5, 71])  # fewer and more than features
@pytest.mark.parametrize("regularizer", [2.0**-3, 1.0, 2.0**10])
def test_ridge_is_that_of_numpy(count, regularizer):
  x, x_test = (RNG.standard_normal((n, 13)).astype("f4") for n in (count, 17))
  y = np.arange(count) % 4
  found = few_shot.ridge(x, y)(x_test, regularizer)
  expected = solved(x, y, x_test, regularizer)
  np.testing.assert_allclose(found, expected, atol=1e-6)


def clusters(count, noise):
  y = np.arange(count) % 3
  centres = np.random.default_rng(7).standard_normal((3, 13))
  # Of its own, so that no other test decides what is drawn here.
  rng = np.random.default_rng((count, 1))
  x = centres[y] + noise * rng.standard_normal((count, 13))
  return x.astype("f4"), y


@pytest.mark.parametrize("shots", [1, 5])
def test_the_held_out_choose_the_regularizer(shots):
  (x, y), (x_test, _) = clusters(60, 0.8), clusters(31, 0.8)
  rng = np.random.default_rng(2)
  learned, held = [], []
  for label in range(3):
    own = rng.permutation(np.flatnonzero(y == label))
    held += own[:4].tolist()  # a fifth of 20
    learned += own[4:][:shots].tolist()
  accuracies = [
    np.mean(solved(x[learned], y[learned], x[held], r).argmax(1) == y[held])
    for r in few_shot.REGULARIZERS
  ]
  assert len(set(accuracies)) > 1
  equal = [i for i, a in enumerate(accuracies) if a == max(accuracies)]
  best = few_shot.REGULARIZERS[equal[len(equal) // 2]]
  expected = solved(x[learned], y[learned], x_test, best).argmax(1)
  found = few_shot.classify(x, y, x_test, shots=shots, seed=2)
  np.testing.assert_array_equal(found, expected)


def test_a_class_of_one_example_is_learned():
  (x, y), (x_test, _) = clusters(60, 0.1), clusters(31, 0.1)
  kept = (y != 1) | (np.arange(60) == 1)
  found = few_shot.classify(x[kept], y[kept], x_test, shots=5, seed=0)
  np.testing.assert_array_equal(found, np.arange(31) % 3)


def test_more_examples_are_better():
  (x, y), (x_test, y_test) = clusters(150, 1.0), clusters(200, 1.0)
  one, many = (
    np.mean(
      [
        few_shot.classify(x, y, x_test, shots=shots, seed=seed) == y_test
        for seed in range(5)
      ]
    )
    for shots in (1, 25)
  )
  assert one < many - 0.05 and many > 0.8


@pytest.fixture(scope="module")
def evaluator(examples, alone, siglip_tok):
  labelled = [{**x, "suffix": "ab"[i % 2]} for i, x in enumerate(examples)]
  return evals.FewShot(
    "few",
    [*labelled[:6], {**labelled[6], "suffix": "c"}],
    alone,
    siglip_tok,
    train=(labelled, alone),
    batch_size=4,
  )


def test_scores_of_a_source(evaluator, siglip, one_device, eight_devices):
  found = evaluator.run(*siglip, one_device)
  names = {f"{n}_shot_accuracy" for n in (1, 5, 10, 25)}
  assert found.keys() == {*names, "num_examples"}
  assert evaluator.higher_is_better == dict.fromkeys(names, True)
  assert found["num_examples"] == 7
  rows = evaluator.rows(*siglip, one_device)
  # Means over three draws; a class that was not learned is never right.
  assert {3 * row[name] % 1 for row in rows for name in names} <= {0.0}
  assert {rows[6][name] for name in names} == {0.0}
  for row, truth in zip(rows, "abababc", strict=True):
    assert row["suffix"] == truth and row["prediction"] in "ab"
    assert row["correct"] == (row["prediction"] == truth)
    votes = round(3 * math.exp(row["score"]))
    right = votes if row["correct"] else 3 - votes
    assert row["25_shot_accuracy"] == pytest.approx(right / 3) or truth == "c"
  assert 0 < found["5_shot_accuracy"] < 1
  said = []
  evaluator.rows(*siglip, one_device, progress=lambda *x: said.append(x))
  assert said[0] == (0, 18) and said[-1] == (18, 18)
  assert (11, 18) in said
  spread = dataclasses.replace(evaluator, batch_size=8)
  assert spread.run(*siglip, eight_devices) == found


def test_numbers_are_classes(evaluator, siglip, one_device):
  def numbered(source):
    return [{**x, "suffix": "abc".index(x["suffix"])} for x in source]

  other = dataclasses.replace(
    evaluator,
    source=numbered(evaluator.source),
    train=(numbered(evaluator.train[0]), evaluator.preprocess),
  )
  rows = other.rows(*siglip, one_device)
  assert [x["suffix"] for x in rows] == list("0101012")
  assert other.reduce(rows) == evaluator.run(*siglip, one_device)


@pytest.mark.parametrize(
  ("suffixes", "message"),
  [
    ("aaaa", '"few": one class alone to learn, "a", expected 2 or more'),
    ("abcd", '"few": 4 classes of one example each, expected 2 of some class'),
  ],
)
def test_too_few_examples(evaluator, siglip, one_device, suffixes, message):
  source = [
    {**x, "suffix": y}
    for x, y in zip(evaluator.train[0], suffixes, strict=False)
  ]
  other = dataclasses.replace(evaluator, train=(source, evaluator.preprocess))
  with pytest.raises(ValueError, match=message):
    other.run(*siglip, one_device)
