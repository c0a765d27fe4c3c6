"""How the boxes of a data set are read, and when that must be said."""

import math
import pathlib

import pytest
from PIL import Image

from scripts.imports import boxes, entries

SIZE = (61, 97)
CORNERS = [80, 40, 90, 50]  # reaches over the edge as sizes


def entry(values, size=SIZE, image="a.png"):
  """An image with a box that nobody says how to read."""
  obj = entries.Object("cat", values, f"{image}: 1", shares=None)
  return entries.Entry((pathlib.Path(image),), image, size=size, objects=(obj,))


def decide(values, size=SIZE, **options):
  request = entries.Request(pathlib.Path("a"), entries.Problems(), **options)
  return boxes.decide([entry(x, size) for x in values], request)


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
  assert decide([values]) == reading


def test_no_box_is_in_pixels():
  assert decide([]) == ("xywh", False)


def test_a_tenth_over_the_edge_is_left_to_be_cut():
  good = [[50, 20, 30, 35], [10, 10, 60, 40], [7, 11, 83, 29]] * 3
  assert decide([*good, CORNERS])[0] == "xywh"
  # Two of eleven, but no other reading fits the rest.
  assert decide([*good, CORNERS, CORNERS])[0] == "xywh"


def test_what_is_stated_is_believed_as_long_as_boxes_are_few():
  assert decide([CORNERS] * 9, boxes="xywh")[0] == "xywh"
  with pytest.raises(
    ValueError, match=r"read as xywh, 10 of 10 .* pass --boxes"
  ):
    decide([CORNERS] * 10, boxes="xywh")


def test_shares_are_checked_too():
  corners = [0.5, 0.5, 0.9, 0.9]
  with pytest.raises(
    ValueError, match="read as xyxy they do: pass --boxes xyxy"
  ):
    decide([corners], size=None)
  assert decide([corners], boxes="xyxy") == ("xyxy", True)


def test_images_of_unknown_size_prove_nothing():
  found = [entry(CORNERS)] + [entry(CORNERS, None)] * 30
  request = entries.Request(pathlib.Path("a"), entries.Problems())
  with pytest.raises(ValueError, match="read as xywh, 1 of 1 boxes do not fit"):
    boxes.decide(found, request)
  assert decide([CORNERS], size=None)[0] == "xywh"


def test_other_readings():
  assert decide([[40, 7, 61, 90]] * 3, boxes="yxyx")[0] == "yxyx"
  centres = [[90, 50, 14, 20], [5, 30, 10, 40]]
  assert decide(centres, boxes="cxcywh")[0] == "cxcywh"
  with pytest.raises(ValueError, match="read as cxcywh they do"):
    decide(centres)
  with pytest.raises(
    ValueError, match="--boxes yxyx is none of this format, exp"
  ):
    decide(centres, boxes="yxyx", forms=["xyxy", "xywh"])


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
  names = ("a", "missing", "b", "a")
  found = [entry(CORNERS, None, tmp_path / f"{x}.png") for x in names]
  request = entries.Request(tmp_path, entries.Problems())
  with pytest.raises(ValueError, match="read as xywh, 2 of 2 boxes do not fit"):
    boxes.decide(found, request)
