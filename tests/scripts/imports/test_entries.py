"""What every format comes down to."""

import pathlib

import pytest

from scripts.imports import entries


@pytest.mark.parametrize("kind", entries.BOXES)
def test_numbers_of_a_box(kind):
  numbers = {
    "xywh": (2, 3, 6, 4),
    "xyxy": (2, 3, 8, 7),
    "cxcywh": (5, 5, 6, 4),
    "yxyx": (3, 2, 7, 8),
  }
  assert entries.BOXES[kind](*numbers[kind]) == (3, 2, 7, 8)


@pytest.mark.parametrize(
  ("path", "split"),
  [
    ("train_0.parquet", "train"),
    ("vqa-dev-data/train-00000-of-00001.parquet", "train"),
    ("dev/part.parquet", "val"),
    ("Validation/x/a.jpg", "val"),
    ("my valid.2.csv", "val"),
    ("contest/a.jpg", None),
    ("trainings/a.jpg", None),
    ("test2017/x.json", "test"),
  ],
)
def test_splits_of_paths(path, split):
  assert entries.split_of(pathlib.PurePath(path), None) == split
  assert entries.split_of(path) == (split or "train")


def test_problems_pass_other_errors_on():
  with pytest.raises(KeyError), entries.Problems(skip=True):
    raise KeyError


def test_notes_count_and_keep_the_first_place():
  problems = entries.Problems()
  for place in "abc":
    problems.note("boxes cut", place)
  problems.note("names", "d")
  assert problems.notes == {"boxes cut": (3, "a"), "names": (1, "d")}
