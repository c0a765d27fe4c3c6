"""Each object is right or wrong by itself, whatever the order."""

import pytest

from paligemma.data import location, objects
from paligemma.evals import judged


def _prediction(**changes):
  return {"suffix": "7", "prediction": "1", "correct": False} | changes


def _boxes(*things):
  """The text of boxes in a picture of 100x100, each with its label."""
  objects = [location.Object(box, label) for box, label in things]
  return location.encode(objects, (100, 100))


ONE, TWO = ((10, 20, 60, 50), "3"), ((70, 60, 95, 90), "7")
NEAR_ONE = ((14, 22, 62, 50), "3")


@pytest.mark.parametrize(
  ("found", "right"),
  [
    (_boxes(ONE, TWO), True),
    (_boxes(TWO, NEAR_ONE), True),
    (_boxes(ONE), False),
    (_boxes(ONE, TWO, TWO), False),
    (_boxes(NEAR_ONE, ONE), False),
    (_boxes((ONE[0], "7"), (TWO[0], "3")), False),
    (_boxes(ONE, ((70, 60, 80, 90), "7")), False),
    (_boxes(ONE, TWO) + " ; <loc0001>", False),
    ("", False),
    ("3 ; 7", False),
  ],
)
def test_boxes_are_right_if_each_is_found_once(found, right):
  prediction = _prediction(suffix=_boxes(ONE, TWO), prediction=found)
  assert judged.is_right(prediction) == right


@pytest.mark.parametrize(
  ("found", "right", "is_found"),
  [
    ([TWO, NEAR_ONE], [1, 1], [1, 1]),
    ([ONE, NEAR_ONE], [1, 0], [1, 0]),
    ([NEAR_ONE, ONE], [0, 1], [1, 0]),  # the nearest, not the first
    ([(ONE[0], "7"), TWO, ONE], [0, 1, 1], [1, 1]),
    ([((70, 60, 80, 90), "7"), ONE], [0, 1], [1, 0]),
    ([], [], [0, 0]),
  ],
)
def test_each_box_is_judged_by_itself(found, right, is_found):
  found, truths = (
    objects.parse(_boxes(*items), (100, 100)) for items in (found, [ONE, TWO])
  )
  assert judged.judge(found, truths) == (right, is_found)


def test_boxes_below_a_score_are_left_out():
  prediction = _prediction(
    suffix=_boxes(ONE), prediction=_boxes(TWO, ONE), confidences=[0.4, 0.6]
  )
  rights = [judged.is_right(prediction, s) for s in (0, 0.5, 0.7)]
  assert rights == [False, True, False]


def test_text_of_boxes_is_shortened_to_labels():
  assert judged.shorten(_boxes(ONE, TWO)) == "3 ; 7"
  for text in ("a red circle ; 7", "<loc0100> 3", ""):
    assert judged.shorten(text) == text


def test_a_pair_may_have_two_labels_once_those_of_one_are_found():
  """For a table of which label is taken for which."""
  near_two = ((72, 61, 95, 90), "9")
  found, truths = (
    objects.parse(_boxes(*items), (100, 100))
    for items in ([near_two, (ONE[0], "7"), NEAR_ONE], [ONE, TWO])
  )
  assert judged.pair(found, truths) == [(2, 0), (0, 1)]
  assert judged.judge(found, truths) == ([0, 0, 1], [1, 0])


def test_the_truth_may_be_a_list_of_objects_in_pixels():
  truth = [{"box": [5, 20, 30, 50], "label": "3", "mask": {}}]
  record = _prediction(
    prediction=_boxes(ONE), objects=truth, height=50, width=100
  )
  _, truths = judged.read_objects(record, (100, 100), answer_key="objects")
  assert truths == [{"box": (10, 20, 60, 50), "label": "3"}]
  assert judged.is_right(record, answer_key="objects")
