"""Boxes, masks and labels are where they belong, inside and legible."""

import numpy as np
import pytest
from PIL import Image, ImageFont

from paligemma.data import drawing

RED, BLUE = (230, 60, 60), (0, 0, 255)


def thing(box, label="", **more):
  return {"box": box, "label": label, **more}


def differs(picture, ground):
  return (np.asarray(picture) != ground).any(-1)


def test_boxes_are_drawn_at_their_edges():
  picture = Image.new("RGB", (200, 100))
  boxes = (10, 40, 60, 100), (70, 120, 95, 180)
  drawing.draw_objects(picture, [thing(box) for box in boxes], [BLUE] * 2)
  expected = np.zeros((100, 200), bool)
  for y0, x0, y1, x1 in boxes:
    expected[y0:y1, x0:x1] = True
    expected[y0 + 1 : y1 - 1, x0 + 1 : x1 - 1] = False
  np.testing.assert_array_equal(differs(picture, 0), expected)


def test_masks_let_the_picture_through():
  mask = np.zeros((100, 120), bool)
  mask[20:80, 30:90] = True
  picture = Image.new("RGB", (120, 100), (100, 100, 100))
  item = thing((0, 0, 100, 120), mask=mask)
  drawing.draw_objects(picture, [item], [(0, 0, 200)])
  inner = np.asarray(picture, int)[2:-2, 2:-2]
  expected = np.where(mask[..., None], (50, 50, 150), (100, 100, 100))
  assert np.abs(inner - expected[2:-2, 2:-2]).max() <= 1


@pytest.mark.parametrize("scale", [1, 7])
def test_lines_grow_with_the_picture(scale):
  size = 640 * scale
  picture = Image.new("RGB", (size, 31))
  drawing.draw_objects(picture, [thing((0, 0, 31, size // 2))], [RED])
  column = differs(picture, 0)[15, : size // 4]
  assert column.sum() == 2 * scale


@pytest.mark.parametrize(
  "box",
  [(0, 0, 100, 640), (0, 0, 5, 5), (470, 630, 480, 640), (200, 600, 210, 640)],
)
@pytest.mark.parametrize("label", ["cat", "a very long label " * 9])
def test_labels_stay_inside(box, label):
  """As many pixels of letters as in the middle, where there is room."""
  texts = []
  for at in (box, (200, 200, 210, 240)):
    picture = Image.new("RGB", (640, 480))
    drawing.draw_objects(picture, [thing(at, label)], [(1, 1, 1)])
    texts.append(differs(picture, 0) & differs(picture, (1, 1, 1)))
  assert texts[0].sum() == texts[1].sum() > 50


def test_labels_do_not_cover_each_other():
  """The letters of two boxes with one corner are those of both alone."""
  items = [thing((40, 40, 200, 200), "cat"), thing((40, 40, 120, 90), "dog")]
  counts = []
  for chosen in (items[:1], items[1:], items):
    picture = Image.new("RGB", (640, 480))
    drawing.draw_objects(picture, chosen, [(1, 1, 1)] * len(chosen))
    counts.append((np.asarray(picture) > 1).any(-1).sum())
  assert counts[0] + counts[1] == counts[2]


def test_each_label_has_its_colour():
  labels = [f"label {i}" for i in range(len(drawing.COLOURS))]
  items = [thing((0, 0, 5, 5), label) for label in labels + labels]
  colours = drawing._colours(items)
  assert set(colours.values()) == set(drawing.COLOURS)
  more = drawing._colours([thing((0, 0, 5, 5), f"{i}") for i in range(40)])
  assert set(more.values()) == set(drawing.COLOURS)


@pytest.mark.parametrize(
  ("item", "expected"),
  [
    (thing((), "cat", score=0.934), "cat 0.93"),
    (thing((), "two\nlines"), "two lines"),
    (thing((), score=1.0), "1.00"),
    (thing(()), ""),
  ],
)
def test_captions(item, expected):
  assert drawing.caption(item) == expected


def test_small_pictures_are_enlarged_with_their_objects():
  mask = np.zeros((7, 11), bool)
  mask[2:5, 3:9] = True
  item = thing((2, 3, 5, 9), mask=mask)
  drawn = drawing.draw(Image.new("L", (11, 7)), [item])
  assert drawn.mode == "RGB" and drawn.size == (11 * 44, 7 * 44)
  expected = mask.repeat(44, 0).repeat(44, 1)
  np.testing.assert_array_equal(differs(drawn, 0), expected)


def test_a_text_is_below_the_picture():
  drawn = drawing.draw(Image.new("RGB", (640, 480), BLUE), [], "a red barn")
  assert drawn.width == 640 and drawn.height > 490
  assert not differs(drawn.crop((0, 0, 640, 480)), BLUE).any()
  below = np.asarray(drawn.crop((0, 480, *drawn.size)))
  assert (below == drawing.INK).all(-1).any()


def test_small_pictures_keep_their_pixels():
  pixels = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
  large = drawing.enlarge(Image.fromarray(pixels), 128)
  np.testing.assert_array_equal(
    np.asarray(large)[..., 0], pixels.repeat(16, 0).repeat(16, 1)
  )


def test_large_pictures_keep_their_shape():
  assert drawing.enlarge(Image.new("RGB", (640, 320)), 128).size == (128, 64)


def test_text_is_broken_and_cut_to_fit():
  font = ImageFont.load_default(12)
  lines = list(drawing.wrap("one two three four", font, 60, 3))
  assert lines == ["one two", "three four"]
  cut = list(drawing.wrap("<loc0123>" * 9, font, 60, 2))
  assert len(cut) == 2 and cut[1].endswith("…")
  assert all(font.getlength(line) <= 66 for line in lines + cut)
  assert list(drawing.wrap("", font, 60, 2)) == [""]
  assert list(drawing.wrap("ab", font, 1, 2)) == ["a", "b"]  # and ends
