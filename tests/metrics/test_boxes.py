import numpy as np
import pytest

from paligemma.metrics import boxes

A = (2.0, 3.0, 7.0, 14.0)  # 5 x 11


@pytest.mark.parametrize(
  ("other", "common"),
  [
    (A, 55),
    ((7, 3, 9, 14), 0),  # side by side
    ((20, 30, 40, 50), 0),
    ((0, 0, 4, 5), 2 * 2),
    ((3, 4, 6, 8), 3 * 4),  # inside
    ((0, 0, 100, 4), 5 * 1),
  ],
)
def test_iou(other, common):
  other = np.array(other, float)
  area = (other[2] - other[0]) * (other[3] - other[1])
  (found,) = boxes.iou(np.array(A), other[None])
  assert found == pytest.approx(common / (55 + area - common))
  (back,) = boxes.iou(other, np.array([A]))
  assert back == pytest.approx(found)


def test_iou_of_none():
  assert boxes.iou(np.array(A), np.empty((0, 4))).shape == (0,)


def test_suppress_keeps_the_surest_of_those_that_overlap():
  found = np.array(
    [
      [0, 0, 10, 10],
      [0, 1, 10, 11],  # IoU 9/11 with the first
      [0, 2, 10, 12],  # 9/11 with the second, 8/12 with the first
      [50, 50, 60, 60],
    ],
    float,
  )
  scores = np.array([0.5, 0.7, 0.6, 0.1])
  assert boxes.suppress(found, scores, 0.5) == [1, 3]
  assert boxes.suppress(found, scores, 9 / 11) == [1, 2, 0, 3]
  assert boxes.suppress(found, scores, 9 / 11 - 1e-9) == [1, 3]
  # What is dropped drops nothing: the first is far enough from the third.
  scores = np.array([0.7, 0.6, 0.5, 0.1])
  assert boxes.suppress(found, scores, 0.7) == [0, 2, 3]


def test_suppress_takes_the_first_of_equal_ones():
  twice = np.array([[0, 0, 2, 3]] * 3, float)
  assert boxes.suppress(twice, np.array([0.3, 0.4, 0.4]), 0.5) == [1]
  assert boxes.suppress(twice, np.array([0.4, 0.4, 0.4]), 1.0) == [0, 1, 2]
  assert boxes.suppress(np.empty((0, 4)), np.empty(0), 0.5) == []


def test_suppress_equals_a_table_of_all_pairs():
  rng = np.random.default_rng(11)
  for _ in range(20):
    corner = rng.uniform(0, 20, (23, 2))
    found = np.concatenate([corner, corner + rng.uniform(1, 15, (23, 2))], 1)
    scores = rng.integers(0, 7, 23) / 7
    overlap = np.array([boxes.iou(box, found) for box in found]) > 0.3
    kept = []
    for i in sorted(range(23), key=lambda i: (-scores[i], i)):
      if not overlap[i, kept].any():
        kept.append(i)
    assert boxes.suppress(found, scores, 0.3) == kept
