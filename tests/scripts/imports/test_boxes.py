"""How the boxes of a data set are read, and when that must be said."""

import math

import pytest
from PIL import Image

from scripts.imports import boxes, entries

SIZE = (61, 97)
CORNERS = [80, 40, 90, 50]  # reaches over the edge as sizes


def decide(values, size=SIZE, **options):
  found = [(x, size, f"a:{i}") for i, x in enumerate(values)]
  return boxes.decide(found, "a", entries.Problems(), **options)


@pytest.mark.parametrize(
  ("values", "reading"),
  [
    ([7, 11, 83, 29], ("xywh", False)),
    ([80, 40, 18.9, 22], ("xywh", False)),  # 2 % over the edge
    ([0, 0, 1, 1], ("xywh", True)),
    ([0.2, 0.1, 0.3, 0.5], ("xywh", True)),
    ([0.2, -0.01, 0.3, 1.01], ("xywh", True)),
    ([0.2, 0.1, 0.3, 1.5], ("xywh", False)),
    ([-0.1, 0.1, 0.3, 0.5], ("xywh", False)),
  ],
)
def test_pixels_and_shares(values, reading):
  found = decide([values])
  assert (found.name, found.shares) == reading


def test_no_box_is_in_pixels():
  assert decide([]) == boxes.Reading("xywh", False)


def test_a_tenth_over_the_edge_is_left_to_be_cut():
  good = [[50, 20, 30, 35], [10, 10, 60, 40], [7, 11, 83, 29]] * 3
  assert decide([*good, CORNERS]).name == "xywh"
  # Two of eleven, but no other reading fits the rest.
  assert decide([*good, CORNERS, CORNERS]).name == "xywh"


def test_what_is_stated_is_believed_as_long_as_boxes_are_few():
  assert decide([CORNERS] * 9, stated="xywh").name == "xywh"
  with pytest.raises(
    ValueError, match=r"read as xywh, 10 of 10 .* pass --boxes"
  ):
    decide([CORNERS] * 10, stated="xywh")


def test_shares_are_checked_too():
  corners = [0.5, 0.5, 0.9, 0.9]
  with pytest.raises(
    ValueError, match="read as xyxy they do: pass --boxes xyxy"
  ):
    decide([corners], size=None)
  assert decide([corners], stated="xyxy") == boxes.Reading("xyxy", True)


def test_images_of_unknown_size_prove_nothing():
  found = [(CORNERS, SIZE, "a:1")] + [(CORNERS, None, "a:2")] * 30
  with pytest.raises(ValueError, match="read as xywh, 1 of 1 boxes do not fit"):
    boxes.decide(found, "a", entries.Problems())
  assert decide([CORNERS], size=None).name == "xywh"


def test_other_readings():
  assert decide([[40, 7, 61, 90]] * 3, stated="yxyx").name == "yxyx"
  centres = [[90, 50, 14, 20], [5, 30, 10, 40]]
  assert decide(centres, stated="cxcywh").name == "cxcywh"
  with pytest.raises(ValueError, match="read as cxcywh they do"):
    decide(centres)
  with pytest.raises(
    ValueError, match="--boxes yxyx is none of this format, exp"
  ):
    decide(centres, stated="yxyx", among=["xyxy", "xywh"])


@pytest.mark.parametrize(
  ("value", "number"),
  [("12.5", 12.5), (3, 3), (" 7 ", 7), (True, math.nan), (None, math.nan)],
)
def test_numbers(value, number):
  assert boxes.number(value) == pytest.approx(number, nan_ok=True)


def test_sizes_of_the_first_images_are_read(tmp_path, monkeypatch):
  monkeypatch.setattr(boxes, "SAMPLE", 2)
  for name in "abc":
    Image.new("RGB", SIZE[::-1]).save(tmp_path / f"{name}.png")
  sizes = boxes.Sizes()
  found = [sizes(tmp_path / f"{x}.png") for x in ("a", "missing", "b", "a")]
  assert found == [SIZE, None, None, SIZE]
