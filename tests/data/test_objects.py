"""Objects stay where they belong when their image is cut, padded or turned."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paligemma.data import masks, objects

HEIGHT, WIDTH = 23, 31


def thing(box=(2, 3, 7, 14), label="cat", **more):
  return {"box": box, "label": label, **more}


def with_mask(box, **more):
  y0, x0, y1, x1 = box
  mask = np.zeros((HEIGHT, WIDTH), bool)
  mask[y0:y1, x0:x1] = True
  return thing(box, mask=mask, **more)


def span(side):
  """Two different places along a side, in order."""
  places = st.integers(0, side)
  return st.tuples(places, places).map(sorted).filter(lambda p: p[0] < p[1])


@st.composite
def boxes(draw):
  (y0, y1), (x0, x1) = draw(span(HEIGHT)), draw(span(WIDTH))
  return y0, x0, y1, x1


def test_crop_by_hand():
  things = [
    thing((2, 3, 7, 14), "cut in two", iscrowd=0, area=55),
    thing((0, 0, 3, 30), "above"),
    thing((4, 9.5, 5.25, 12), "inside"),
    thing((4, 2, 14, 9), "a tenth of it"),
    thing((5, 5, 5, 8), "no area"),
  ]
  found = objects.crop(things, (3, 8, 9, 25), 0.25)
  assert found == [
    {"box": (0, 0, 4, 6), "label": "cut in two", "iscrowd": 0},
    {"box": (1, 1.5, 2.25, 4), "label": "inside"},
  ]
  labels = [t["label"] for t in objects.crop(things, (3, 8, 9, 25), 0)]
  assert labels == ["cut in two", "inside", "a tenth of it"]
  assert things[0]["area"] == 55  # those of the caller stay as they were


def test_crop_counts_the_mask_where_there_is_one():
  corner = with_mask((0, 0, 10, 10))  # an L: the left column and the last row
  corner["mask"][:9, 1:] = False
  (left,) = objects.crop([corner], (0, 0, 5, 20), 0.25)
  assert left["box"] == (0, 0, 5, 1)
  assert left["mask"].shape == (5, 20)
  assert left["mask"].sum() == 5
  assert not objects.crop([corner], (0, 0, 5, 20), 0.27)
  assert not objects.crop([corner], (0, 3, 5, 20), 0)  # half of the box
  loose = with_mask((4, 2, 10, 10)) | {"box": (4.3, 1.5, 9.75, 10)}
  (left,) = objects.crop([loose], (0, 0, HEIGHT, 5), 0)
  assert left["box"] == (4.3, 2, 9.75, 5)  # within the box, and the mask
  empty = with_mask((0, 0, 10, 10))
  empty["mask"] = np.zeros_like(empty["mask"])
  assert not objects.crop([empty], (0, 0, HEIGHT, WIDTH), 0)


@given(boxes(), boxes())
def test_crop_of_box_and_mask_agree(box, window):
  y0, x0, y1, x1 = window
  masked = objects.crop([with_mask(box)], window, 0)
  bare = objects.crop([thing(box)], window, 0)
  assert [t["box"] for t in masked] == [t["box"] for t in bare]
  for found in masked:
    assert found["mask"].shape == (y1 - y0, x1 - x0)
    assert found["box"] == masks.bounding_box(found["mask"])


@given(boxes(), boxes(), st.floats(0, 1))
def test_crop_keeps_by_share(box, window, min_visible):
  whole = np.zeros((HEIGHT, WIDTH))
  whole[box[0] : box[2], box[1] : box[3]] = 1
  y0, x0, y1, x1 = window
  share = whole[y0:y1, x0:x1].sum() / whole.sum()
  kept = objects.crop([thing(box)], window, min_visible)
  assert bool(kept) == (share > 0 and share >= min_visible)


@given(boxes())
def test_flip_twice_is_nothing(box):
  before = with_mask(box)
  (once,) = objects.flip([before], WIDTH)
  assert once["box"] == masks.bounding_box(once["mask"])
  (twice,) = objects.flip([once], WIDTH)
  assert twice["box"] == box
  np.testing.assert_array_equal(twice["mask"], before["mask"])


@given(boxes(), st.integers(0, 7), st.integers(0, 11))
def test_crop_undoes_pad(box, y, x):
  before = with_mask(box)
  size = (HEIGHT + 7, WIDTH + 11)
  (padded,) = objects.pad([before], (y, x), size)
  assert padded["box"] == masks.bounding_box(padded["mask"])
  assert padded["mask"].shape == size
  window = (y, x, y + HEIGHT, x + WIDTH)
  (after,) = objects.crop([padded], window, 1)
  assert after["box"] == box
  np.testing.assert_array_equal(after["mask"], before["mask"])


@given(boxes(), st.integers(1, 97), st.integers(1, 97))
def test_resize(box, height, width):
  before = with_mask(box, area=7)
  (after,) = objects.resize([before], (HEIGHT, WIDTH), (height, width))
  y, x = height / HEIGHT, width / WIDTH
  expected = (box[0] * y, box[1] * x, box[2] * y, box[3] * x)
  assert after["box"] == pytest.approx(expected)
  assert "area" not in after
  # A pixel is inside if its centre is.
  rows, columns = np.arange(height) + 0.5, np.arange(width) + 0.5
  y0, x0, y1, x1 = after["box"]
  inside = np.outer(
    (rows >= y0) & (rows < y1), (columns >= x0) & (columns < x1)
  )
  # float64 puts a centre that falls on the edge on either side of it.
  near = np.add.outer(
    np.isclose(rows, y0) | np.isclose(rows, y1),
    np.isclose(columns, x0) | np.isclose(columns, x1),
  )
  assert (after["mask"] == inside)[~near].all()


@pytest.mark.parametrize(
  ("value", "message"),
  [
    ("cat", r'expected a list of boxes with labels under "objects", found'),
    ([thing(), 7], r'object 1 of "objects" is 7, expected \{"box"'),
    (
      [thing(label=3)],
      r'object 0 of .* expected \{"box": ..., "label": text\}',
    ),
    ([thing(box=(1, 2, 3))], r"expected \(y0, x0, y1, x1\) in pixels with y0"),
    ([thing(box=(5, 2, 3, 4))], r"expected \(y0, x0, y1, x1\) in pixels with"),
    ([thing(box=(1, 2, 3, np.nan))], r"expected \(y0, x0, y1, x1\) in pixels"),
    ([thing(box="here")], r"expected \(y0, x0, y1, x1\) in pixels with y0"),
    (
      [thing(mask=np.ones((3, 5)))],
      r'expected bool\[height, width\] as "mask"',
    ),
    ([thing(box=None)], r"expected \(y0, x0, y1, x1\) in pixels with y0"),
  ],
)
def test_malformed_objects_are_named(value, message):
  with pytest.raises(ValueError, match=message) as info:
    objects.read({"objects": value, "_where": "a.jsonl:7"})
  assert str(info.value).startswith("a.jsonl:7: ")
  assert "\n" not in str(info.value)


def test_what_is_null_is_not_there():
  null = thing(mask=None, area=None, iscrowd=None)
  assert objects.read({"objects": [null]}) == [thing()]
  assert null["mask"] is None  # that of the caller stays as it was


def test_read():
  things = [thing(), with_mask((0, 0, 1, 1))]
  assert objects.read({"objects": things}) == things
  with pytest.raises(ValueError, match='missing key "objects", found image'):
    objects.read({"image": b""})


CAT = "<loc0000><loc0512><loc0512><loc1023>" + "<seg001>" * 16 + " cat"
FLAT = "<loc0512><loc0512><loc0512><loc0512> flat"


def test_an_answer_is_parsed():
  answer = f"{FLAT} ; {CAT} ; <loc0001> bad ; sky"
  (found,) = objects.parse(answer, (1023, 2046), scores=[0.5, 0.9])
  assert found == {"box": (0, 1024, 512, 2046), "label": "cat", "score": 0.9}
  assert objects.parse("a barn", (7, 7)) == []
  (found,) = objects.parse(CAT, (1023, 1023))
  assert found.keys() == {"box", "label"}
  with pytest.raises(ValueError, match="1 scores for 2 boxes, expected one f"):
    objects.parse(answer, (7, 7), scores=[0.5])


def test_masks_of_an_answer_are_decoded():
  def decode(codes):
    assert codes.tolist() == [[1] * 16]
    upper = np.ones((1, 64, 64), np.float32)
    upper[:, 32:] = -1
    return upper

  (found,) = objects.parse(CAT, (1023, 1023), decode=decode)
  expected = np.zeros((1023, 1023), bool)
  expected[:256, 512:] = True
  np.testing.assert_array_equal(found["mask"], expected)


def test_objects_go_through_json():
  item = with_mask((2, 3, 7, 14), score=0.25)
  written = json.loads(json.dumps(objects.to_json(item)))
  assert written["mask"]["size"] == [HEIGHT, WIDTH]
  assert isinstance(written["mask"]["counts"], str)
  for either in (written, item):  # what is no JSON stays
    read = objects.from_json(either)
    np.testing.assert_array_equal(read.pop("mask"), item["mask"])
    assert read == {k: v for k, v in item.items() if k != "mask"}
  assert objects.to_json(thing((0, 1 / 3, 2, 3)))["box"] == [0, 0.33, 2, 3]
