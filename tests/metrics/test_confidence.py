import math

import numpy as np
import pytest

from paligemma.data import location
from paligemma.metrics import confidence

SIZE = (97, 89)
PIECES = [
  *("<loc0001>", "<loc0002>", "<loc0500>", "<loc0600>"),
  *(" c", "at ;", " "),
  *("<loc0003>", "<loc0004>", "<loc0700>", "<loc0800>"),
  *[f"<seg{i:03d}>" for i in range(16)],
  *(" ", "", "日", " dog", " ", "; ", "sky", ""),
]
LOG_PROBS = -np.random.default_rng(0).uniform(0.1, 3.0, len(PIECES))


def mean(*places):
  return math.exp(np.mean(LOG_PROBS[list(places)]))


def test_fields_of_objects_by_hand():
  first, second, third = confidence.of_objects(PIECES, LOG_PROBS, SIZE)
  assert first.box == pytest.approx(mean(0, 1, 2, 3))
  assert first.codes is None
  # "at ;" has letters of the label, and " " behind it has none.
  assert first.label == pytest.approx(mean(4, 5))
  assert first.overall == pytest.approx(mean(0, 1, 2, 3, 4, 5))
  assert second.object.label == "日 dog"
  assert second.box == pytest.approx(mean(*range(7, 11)))
  assert second.codes == pytest.approx(mean(*range(11, 27)))
  # The first byte of a character, "", counts for it.
  assert second.label == pytest.approx(mean(28, 29, 30))
  assert second.overall == pytest.approx(mean(*range(7, 31)))
  assert (third.box, third.codes) == (None, None)
  assert third.label == third.overall == pytest.approx(mean(33))


def test_things_are_those_of_the_parser():
  found = confidence.of_objects(PIECES, LOG_PROBS, SIZE)
  text = "".join(PIECES)
  assert [one.object for one in found] == location.parse(text, SIZE)


def test_boxes_without_a_label_and_malformed_ones():
  pieces = [f"<loc{i:04d}>" for i in (1, 2, 3, 4, 5, 6, 7, 8)]
  one, two = confidence.of_objects(pieces, LOG_PROBS[:8], SIZE)
  assert one.box == one.overall == pytest.approx(mean(0, 1, 2, 3))
  assert two.box == two.overall == pytest.approx(mean(4, 5, 6, 7))
  assert one.label is None and two.label is None
  (bad,) = confidence.of_objects([*pieces[:3], " cat"], LOG_PROBS[:4], SIZE)
  assert bad.object.problem and bad.box is None
  assert bad.label == pytest.approx(mean(3))
  assert bad.overall == pytest.approx(mean(0, 1, 2, 3))
  assert confidence.of_objects(["", ""], LOG_PROBS[:2], SIZE) == []


def test_errors():
  with pytest.raises(ValueError, match="2 log-probabilities of 1 pieces, exp"):
    confidence.of_objects(["cat"], [0.0, 0.0], SIZE)
