"""Masks in pixels: annotations, 64x64 of a box and back, and through text."""

import math

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco

from paligemma.data import location, masks

cheap = settings(max_examples=100, deadline=None, database=None)
PRIMES = (2, 3, 5, 37, 211)


def ellipse(size, box):
  """bool[height, width], as wide and high as the box."""
  y0, x0, y1, x1 = box
  y, x = (np.arange(side) + 0.5 for side in size)
  y = (2 * y - y0 - y1) / (y1 - y0)
  x = (2 * x - x0 - x1) / (x1 - x0)
  return y[:, None] ** 2 + x**2 <= 1


def boxes(size):
  """Boxes of whole pixels, which may touch the border."""

  def interval(side):
    pairs = st.sets(st.integers(0, side), min_size=2, max_size=2)
    return pairs.map(sorted)

  intervals = st.tuples(interval(size[0]), interval(size[1]))
  return intervals.map(lambda yx: (yx[0][0], yx[1][0], yx[0][1], yx[1][1]))


SIZES = st.tuples(st.sampled_from(PRIMES), st.sampled_from(PRIMES))
BOXES = SIZES.flatmap(lambda size: st.tuples(boxes(size), st.just(size)))


def iou(a, b):
  return (a & b).sum() / (a | b).sum()


def test_bounding_box():
  mask = np.zeros((11, 7), np.uint8)
  mask[3, 5] = mask[8, 2] = 255
  assert masks.bounding_box(mask) == (3, 2, 9, 6)
  assert masks.bounding_box(np.ones((11, 7), bool)) == (0, 0, 11, 7)
  with pytest.raises(ValueError, match="mask is empty"):
    masks.bounding_box(np.zeros((11, 7)))


@pytest.mark.parametrize(
  "box", [(2, 3, 13, 97), (0, 0, 101, 103), (5, 7, 6, 8)]
)
def test_crop_is_antialiased_bilinear(box):
  mask = np.random.default_rng(0).random((101, 103), np.float32)
  y0, x0, y1, x1 = box
  # jax.image.resize has the definition of tf.image.resize.
  expected = jax.image.resize(mask[y0:y1, x0:x1], (64, 64), "bilinear")
  found = masks.crop(mask, box)
  assert found.dtype == np.float32
  np.testing.assert_allclose(found, expected, atol=1e-5)


def test_crop_rounds_and_clips_the_box():
  mask = np.random.default_rng(0).random((11, 7)) < 0.5
  np.testing.assert_array_equal(
    masks.crop(mask, (-3.0, 1.6, 4.4, 9.0)), masks.crop(mask, (0, 2, 4, 7))
  )


@pytest.mark.parametrize(
  ("thin", "wide"),
  [
    ((3, 2, 3.4, 5), (3, 2, 4, 5)),
    ((3.6, 2, 3.9, 5), (3, 2, 4, 5)),
    ((3, 4.9, 5, 5.2), (3, 5, 5, 6)),
    ((10.8, 6.7, 13, 9), (10, 6, 11, 7)),
  ],
)
def test_crop_takes_a_thin_box_as_one_pixel(thin, wide):
  mask = np.random.default_rng(0).random((11, 7), np.float32)
  np.testing.assert_array_equal(masks.crop(mask, thin), masks.crop(mask, wide))


@pytest.mark.parametrize(
  ("mask", "box", "message"),
  [
    (
      np.zeros((11, 7, 1)),
      (0, 0, 1, 1),
      r"shape \(11, 7, 1\), expected \(height",
    ),
    (
      np.zeros((11, 7)),
      (3, 2, 3, 5),
      r"\(3, 2, 3, 5\) covers no .* of 11x7",
    ),
    (np.zeros((11, 7)), (12, 2, 15, 5), "covers no pixel"),
    (np.full((11, 7), 255), (0, 0, 1, 1), "from 255 to 255, .*; divide pixels"),
    (np.full((11, 7), -0.1), (0, 0, 1, 1), "from -0.1 to -0.1"),
    (np.full((11, 7), math.nan), (0, 0, 1, 1), "from nan to nan"),
    (np.zeros((11, 7)), (5, 0, 1, 1), "y0 <= y1"),
  ],
)
def test_crop_refuses(mask, box, message):
  with pytest.raises(ValueError, match=message):
    masks.crop(mask, box)


@pytest.mark.parametrize(
  "box",
  [(2, 3, 13, 97), (0, 0, 101, 103), (100, 102, 101, 103), (7, 0, 9, 103)],
)
def test_paste_equals_the_evaluator_of_big_vision(box):
  """Which resizes by Pillow what lies in [-1, 1], and is inside above 0."""
  decoded = np.random.default_rng(0).uniform(-1.2, 1.2, (64, 64))
  decoded = decoded.astype(np.float32)
  y0, x0, y1, x1 = box
  resized = np.asarray(
    Image.fromarray(decoded).resize((x1 - x0, y1 - y0), Image.BILINEAR)
  )
  found = masks.paste(decoded, box, (101, 103))
  assert found.dtype == np.float32 and found.shape == (101, 103)
  np.testing.assert_allclose(
    found[y0:y1, x0:x1], np.clip(resized / 2 + 0.5, 0, 1), atol=1e-6
  )
  sure = np.abs(resized) > 1e-5
  inside = found[y0:y1, x0:x1] > 0.5
  np.testing.assert_array_equal(inside[sure], (resized > 0)[sure])
  found[y0:y1, x0:x1] = 0
  assert not found.any()


def test_paste_rounds_and_clips_the_box():
  decoded = np.random.default_rng(0).uniform(-1, 1, (64, 64))
  np.testing.assert_array_equal(
    masks.paste(decoded, (-3.0, 1.6, 4.4, 9.0), (11, 7)),
    masks.paste(decoded, (0, 2, 4, 7), (11, 7)),
  )


@pytest.mark.parametrize(
  "box", [(3, 2, 3, 5), (3, 2, 3.4, 5), (3, 2, 5, 2), (12, 8, 15, 9)]
)
def test_paste_into_a_box_without_area(box):
  assert not masks.paste(np.ones((64, 64)), box, (11, 7)).any()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_paste_refuses_what_is_not_finite(bad):
  decoded = np.zeros((64, 64))
  decoded[3, 5] = bad
  with pytest.raises(ValueError, match="decoded mask is not finite"):
    masks.paste(decoded, (0, 0, 1, 1), (11, 7))
  with pytest.raises(
    ValueError, match=r"shape \(1, 64, 64\), expected \(64, 64\)"
  ):
    masks.paste(np.zeros((1, 64, 64)), (0, 0, 1, 1), (11, 7))


@cheap
@given(BOXES)
def test_a_full_box_is_itself_again_through_text(box_and_size):
  box, size = box_and_size
  y0, x0, y1, x1 = box
  mask = np.zeros(size, bool)
  mask[y0:y1, x0:x1] = True
  assert masks.bounding_box(mask) == box
  (found,) = location.parse(location.encode_box(box, size), size)
  small = masks.crop(mask, box)
  np.testing.assert_allclose(small, 1, atol=1e-5)
  pasted = masks.paste(2 * small - 1, found.box, size)
  np.testing.assert_array_equal(pasted > 0.5, mask)


@cheap
@given(BOXES)
def test_an_ellipse_is_nearly_itself_again_through_text(box_and_size):
  box, size = box_and_size
  mask = ellipse(size, box)
  if not mask.any():  # in a box of one pixel row it may miss all centres
    return
  box = masks.bounding_box(mask)
  (found,) = location.parse(location.encode_box(box, size), size)
  pasted = masks.paste(2 * masks.crop(mask, box) - 1, found.box, size) > 0.5
  area = (box[2] - box[0]) * (box[3] - box[1])
  # Up to 64 pixels nothing is lost; a side of 211 loses single edge pixels.
  if max(box[2] - box[0], box[3] - box[1]) <= 64:
    assert (pasted != mask).sum() <= 0.02 * area
  else:
    assert iou(pasted, mask) > 0.9


TRIANGLE = [1.0, 2.0, 10.0, 2.0, 1.0, 12.0]
SQUARE = [4, 6, 8, 6, 8, 10, 4, 10]


def test_polygons_are_filled():
  found = masks.from_polygons([SQUARE], 13, 11)
  assert found.dtype == bool and found.shape == (13, 11)
  assert masks.bounding_box(found) == (6, 4, 10, 8)
  assert found.sum() == 16


def test_polygons_are_united():
  both = masks.from_polygons([TRIANGLE, SQUARE], 13, 11)
  one, other = (masks.from_polygons([p], 13, 11) for p in (TRIANGLE, SQUARE))
  assert 0 < (one & other).sum() < one.sum()
  np.testing.assert_array_equal(both, one | other)


def test_a_polygon_may_leave_the_image():
  assert masks.from_polygons(
    [[-11, -13, 22, -13, 22, 26, -11, 26]], 13, 11
  ).all()


@pytest.mark.parametrize(
  ("polygons", "message"),
  [
    ([], "no polygon"),
    (
      [TRIANGLE, [1, 2, 3, 4, 5, 6, 7]],
      r"polygon 1 has shape \(7,\), .* 3 points",
    ),
    ([[1, 2, 3, 4]], r"polygon 0 has shape \(4,\)"),
    ([[[1, 2], [3, 4], [5, 6]]], r"polygon 0 has shape \(3, 2\)"),
    ([["a"] * 6], r"polygon 0 has shape \(0,\)"),
    (TRIANGLE, r"polygon 0 has shape \(\)"),
    ([[1, 2, 3, 4, math.nan, 6]], r"polygon 0 has a point .* = \(nan, 6.0\)"),
    ([[1, 2, 3, math.inf, 5, 6]], r"= \(3.0, inf\)"),
    ([[1, 2, 3, 4, 5, 27]], r"\(5.0, 27.0\), expected it not .* of 13x11 than"),
    ([[1, 2, 3, 4, -12, 6]], r"\(-12.0, 6.0\)"),
  ],
)
def test_bad_polygons(polygons, message):
  with pytest.raises(ValueError, match=message):
    masks.from_polygons(polygons, 13, 11)


@pytest.mark.parametrize("size", [(0, 11), (-3, -5), (10**6, 10**6)])
def test_bad_sizes(size):
  message = f"image of {size[0]}x{size[1]} pixels, expected at least 1"
  with pytest.raises(ValueError, match=message):
    masks.from_polygons([TRIANGLE], *size)
  with pytest.raises(ValueError, match=message):
    masks.from_rle({"size": list(size), "counts": [0]}, *size)


def test_runs_go_down_the_columns():
  found = masks.from_rle({"size": [3, 2], "counts": [1, 3, 2]}, 3, 2)
  assert found.tolist() == [[False, True], [True, False], [True, False]]
  assert masks.from_rle({"size": [3, 2], "counts": [0, 6]}, 3, 2).all()


@cheap
@given(st.integers(0, 2**32 - 1), st.sampled_from([0, 0.01, 0.5, 1]), SIZES)
def test_run_lengths_equal_pycocotools(seed, density, size):
  mask = np.random.default_rng(seed).random(size) < density
  runs = coco.encode(np.asfortranarray(mask))
  np.testing.assert_array_equal(masks.from_rle(runs, *size), mask)
  text = {**runs, "counts": runs["counts"].decode()}
  np.testing.assert_array_equal(masks.from_rle(text, *size), mask)

  column = mask.T.ravel()
  edges = np.flatnonzero(np.diff(column, prepend=False)).tolist()
  counts = np.diff([0, *edges, mask.size]).tolist()
  found = masks.from_rle({"size": list(size), "counts": counts}, *size)
  np.testing.assert_array_equal(found, mask)


def test_long_runs_are_compressed_to_several_characters():
  mask = np.zeros((1009, 1013), bool)
  mask[5:900, 7:1000] = True
  runs = coco.encode(np.asfortranarray(mask))
  np.testing.assert_array_equal(masks.from_rle(runs, *mask.shape), mask)


@pytest.mark.parametrize(
  ("rle", "message"),
  [
    (None, 'no dict with "size" and "counts"'),
    ({"counts": [15]}, 'no dict with "size" and "counts"'),
    ({"size": [5, 3], "counts": [15]}, r"size \[5, 3\], expected \[3, 5\]"),
    ({"size": 3, "counts": [15]}, r"size 3, expected \[3, 5\]"),
    ({"size": [3, 5], "counts": [3, 4]}, "sum to 7, expected 15 = 3 [*] 5"),
    ({"size": [3, 5], "counts": []}, "sum to 0"),
    ({"size": [3, 5], "counts": [10**30]}, "sum to 10000"),
    ({"size": [3, 5], "counts": [-3, 18]}, "not all integers from 0"),
    ({"size": [3, 5], "counts": [15.0]}, "not all integers from 0"),
    ({"size": [3, 5], "counts": [[15]]}, "not all integers from 0"),
    ({"size": [3, 5], "counts": None}, "not all integers from 0"),
    ({"size": [3, 5], "counts": {}}, "not all integers from 0"),
    ({"size": [3, 5], "counts": "@"}, "not all integers from 0"),
    ({"size": [3, 5], "counts": "o"}, "cut short"),
    ({"size": [3, 5], "counts": b"3~"}, "hold b'~' where compressed"),
    ({"size": [3, 5], "counts": "é"}, "hold b'.xc3' where compressed"),
    ({"size": [3, 5], "counts": "o" * 10**6}, "hold b'o' where compressed"),
  ],
)
def test_bad_run_lengths(rle, message):
  with pytest.raises(ValueError, match=message):
    masks.from_rle(rle, 3, 5)


@cheap
@given(st.text(st.characters(min_codepoint=40, max_codepoint=120)))
def test_any_compressed_text_is_read_or_refused(text):
  try:
    found = masks.from_rle({"size": [3, 5], "counts": text}, 3, 5)
  except ValueError as error:
    assert "run-length" in str(error) and "\n" not in str(error)
  else:
    assert found.shape == (3, 5)


def test_run_lengths_back_and_forth():
  mask = np.random.default_rng(0).random((5, 7)) < 0.5
  for found in (mask, ~mask, np.zeros((3, 2), bool), np.ones((3, 2), bool)):
    runs = masks.to_rle(found)
    assert runs["size"] == list(found.shape)
    assert all(type(n) is int and n > 0 for n in runs["counts"][1:])
    np.testing.assert_array_equal(masks.from_rle(runs, *found.shape), found)
  assert masks.to_rle(np.ones((3, 2), bool))["counts"] == [0, 6]
