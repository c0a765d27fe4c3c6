"""The metric that fits the answers of a data set."""

import re

import pytest

from paligemma.metrics import METRICS, choice

BOX = "<loc0001><loc0002><loc0300><loc0400>"
CAT = f"{BOX} cat"
CODES = f"{BOX}{'<seg001>' * 16} cat"
MASK = {"size": [3, 5], "counts": [15]}
OBJECT = {"box": (1, 2, 3, 4), "label": "cat"}


@pytest.mark.parametrize(
  ("examples", "name", "why"),
  [
    ([{"a": "cat"}, {"a": ["7", "8"]}, {}, {"a": 3}], "exact_match", "^$"),
    ([{"a": ""}, {"a": None}], "exact_match", "^$"),
    ([], "exact_match", "^$"),
    ([{"a": ""}, {"a": CAT}], "detection", "as the answers hold boxes$"),
    ([{"a": [OBJECT]}, {"a": []}], "detection", "answers hold boxes$"),
    ([{"a": CODES, "mask": MASK}], "segmentation", "IoU .*hold masks$"),
    ([{"a": CODES}, {"a": CAT}], "detection", 'for want of a "mask" beside'),
    ([{"a": CAT}, {"a": "7"}, {"a": "8"}], "exact_match", "as 2 of 3 answers"),
  ],
)
def test_the_metric_of_answers(examples, name, why):
  found, note = choice.choose(examples, "a")
  assert found == name
  assert found in METRICS
  assert re.search(why, note)


def test_with_a_codec_masks_need_no_answer():
  examples = [{"mask": MASK}, {"mask": MASK, "a": "1"}]
  assert choice.choose(examples, "a", has_codec=True)[0] == "segmentation"
  assert choice.choose(examples, "a")[0] == "exact_match"
  examples.append({"a": "1"})
  assert choice.choose(examples, "a", has_codec=True)[0] == "exact_match"
