"""The sheet shows every prediction, green where correct and red where not."""

import json
import pathlib

import numpy as np
import pytest
from PIL import Image, ImageFont

from paligemma.data import location
from scripts import draw_predictions

CODEC = pathlib.Path(__file__).parents[1] / "goldens/mask_codec/mask_codec.npz"


def _prediction(**changes):
  return {
    "image": "a.png",
    "prefix": "answer en what number is written here?",
    "suffix": "7",
    "prediction": "1",
    "correct": False,
  } | changes


def _write(folder, predictions):
  path = folder / "predictions.jsonl"
  path.write_text("".join(json.dumps(p) + "\n" for p in predictions))
  return path


def _has_tint(image, channel):
  """Whether some pixel has clearly more of one channel than of the others."""
  pixels = np.asarray(image, int)
  others = np.delete(pixels, channel, axis=-1).max(-1)
  return (pixels[..., channel] > others + 50).any()


@pytest.mark.parametrize("correct", [True, False])
def test_colour_tells_right_from_wrong(correct):
  picture = Image.new("L", (8, 8), 255)
  cell = draw_predictions.draw_cell(picture, _prediction(correct=correct))
  red, green = 0, 1
  assert _has_tint(cell, green) == correct
  assert _has_tint(cell, red) != correct


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
  assert draw_predictions.is_right(prediction) == right


def test_boxes_are_drawn_where_they_are():
  picture = Image.new("RGB", (200, 100))  # twice as wide
  draw_predictions.draw_objects(picture, _boxes(ONE, TWO), (0, 0, 255))
  pixels = np.asarray(picture)[..., 2] == 255
  expected = np.zeros((100, 200), bool)
  for y0, x0, y1, x1 in ((10, 40, 60, 100), (70, 120, 95, 180)):
    expected[y0:y1, x0:x1] = True
    expected[y0 + 1 : y1 - 1, x0 + 1 : x1 - 1] = False
  np.testing.assert_array_equal(pixels, expected)


def test_masks_tint_the_picture():
  def decode(codes):
    assert codes.shape == (1, 16) and codes[0, 1] == 5
    half = np.ones((1, 64, 64), np.float32)
    half[:, :32] = -1
    return half

  thing = location.Object((0, 0, 80, 40), "3", (3, 5) * 8)
  text = location.encode([thing], (100, 100))
  picture = Image.new("RGB", (100, 100), (100, 100, 100))
  draw_predictions.draw_objects(picture, text, (0, 0, 200), decode)
  pixels = np.asarray(picture)
  assert (pixels[5:30, 5:30] == (100, 100, 100)).all()
  assert (
    np.abs(np.subtract(pixels[50:70, 5:30], (50, 50, 150), dtype=int)).max()
    <= 1
  )
  assert (pixels[82:, 42:] == 100).all()


def test_bad_boxes_are_not_drawn():
  picture = Image.new("RGB", (100, 100))
  text = "<loc0100> 3 ; <loc0900><loc0900><loc0100><loc0100> 7 ; 5"
  draw_predictions.draw_objects(picture, text, (0, 0, 255))
  assert not np.asarray(picture).any()


def test_text_of_boxes_is_shortened_to_labels():
  assert draw_predictions.shorten(_boxes(ONE, TWO)) == "3 ; 7"
  for text in ("a red circle ; 7", "<loc0100> 3", ""):
    assert draw_predictions.shorten(text) == text


def test_sheet_of_masks_needs_their_codec(tmp_path):
  Image.new("L", (100, 100), 99).save(tmp_path / "a.png")
  thing = location.Object((10, 10, 90, 90), "3", range(16))
  text = location.encode([thing], (100, 100))
  path = _write(tmp_path, [_prediction(suffix=text, prediction=text)] * 2)
  sheets = []
  for codec in (None, CODEC):
    drawn = draw_predictions.draw_predictions(
      path, tmp_path / "out.png", image_root=tmp_path, num=3, codec=codec
    )
    assert drawn == (2, 2)
    with Image.open(tmp_path / "out.png") as sheet:
      sheets.append(np.asarray(sheet))
  assert (sheets[0] != sheets[1]).any()


def test_small_pictures_keep_their_pixels():
  pixels = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
  large = draw_predictions.enlarge(Image.fromarray(pixels), 128)
  np.testing.assert_array_equal(
    np.asarray(large)[..., 0], pixels.repeat(16, 0).repeat(16, 1)
  )


def test_large_pictures_keep_their_shape():
  assert draw_predictions.enlarge(Image.new("RGB", (640, 320)), 128).size == (
    128,
    64,
  )


def test_text_is_broken_and_cut_to_fit():
  font = ImageFont.load_default(12)
  lines = list(draw_predictions.wrap("one two three four", font, 60, 3))
  assert lines == ["one two", "three four"]
  cut = list(draw_predictions.wrap("<loc0123>" * 9, font, 60, 2))
  assert len(cut) == 2 and cut[1].endswith("…")
  assert all(font.getlength(line) <= 66 for line in lines + cut)
  assert list(draw_predictions.wrap("", font, 60, 2)) == [""]


def test_sheet_holds_at_most_num_cells(tmp_path):
  Image.new("L", (8, 8), 99).save(tmp_path / "a.png")
  path = _write(tmp_path, [_prediction(correct=i < 3) for i in range(23)])
  sizes = []
  for num, expected in ((5, (5, 3)), (11, (11, 3)), (97, (23, 3))):
    out = tmp_path / f"{num}.png"
    drawn = draw_predictions.draw_predictions(
      path, out, image_root=tmp_path, num=num
    )
    assert drawn == expected
    with Image.open(out) as sheet:
      sizes.append(sheet.size)
  cell = 168 + 6 * 15 + 8
  assert sizes == [
    (5 * 176 + 8, cell + 8),
    (8 * 176 + 8, 2 * cell + 8),
    (8 * 176 + 8, 3 * cell + 8),
  ]


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("", "holds no prediction"),
    ("{}\n", "predictions.jsonl:1: has no image, prefix"),
    ("[1,\n", "predictions.jsonl:1: not JSON"),
  ],
)
def test_bad_files_are_named(tmp_path, text, message):
  path = tmp_path / "predictions.jsonl"
  path.write_text(text)
  with pytest.raises(ValueError, match=message):
    draw_predictions.read_predictions(path, 5)


def test_missing_picture_is_named(tmp_path):
  path = _write(tmp_path, [_prediction()])
  with pytest.raises(ValueError, match=r"jsonl:1: image .*a.png is missing"):
    draw_predictions.draw_predictions(
      path, tmp_path / "out.png", image_root=tmp_path, num=1
    )


def test_pictures_stand_upright_as_in_training(tmp_path):
  """A picture of a phone that lies, and of several pictures the first."""
  exif = Image.Exif()
  exif[0x0112] = 6
  lying = Image.new("RGB", (80, 40), "white")
  lying.paste("blue", (0, 0, 20, 40))  # what is above when it stands
  lying.save(tmp_path / "a.png", exif=exif)
  sheets = []
  for image in ("a.png", ["a.png", "no.png"]):
    path = _write(tmp_path, [_prediction(image=image)])
    out = tmp_path / "out.png"
    draw_predictions.draw_predictions(path, out, image_root=tmp_path, num=1)
    sheets.append(np.asarray(Image.open(out)))
  np.testing.assert_array_equal(*sheets)
  blue = (sheets[0] == (0, 0, 255)).all(-1)
  rows, columns = np.nonzero(blue.any(1))[0], np.nonzero(blue.any(0))[0]
  assert np.ptp(columns) > np.ptp(rows)


def test_a_damaged_picture_is_named(tmp_path):
  path = _write(tmp_path, [_prediction()])
  (tmp_path / "a.png").write_bytes(b"hello")
  with pytest.raises(
    ValueError, match=r"jsonl:1: \S+a.png: not a readable image: 5 bytes"
  ):
    draw_predictions.draw_predictions(
      path, tmp_path / "out.png", image_root=tmp_path, num=1
    )
