"""The sheet shows every prediction, green where correct and red where not."""

import json
import pathlib

import numpy as np
import pytest
from PIL import Image, ImageColor

from paligemma.data import location
from paligemma.evals import judged
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


def test_an_example_without_a_prediction_has_no_picture(tmp_path):
  bad = {"index": 0, "error": "val.jsonl:1: no image"}
  path = _write(tmp_path, [bad, _prediction()])
  assert draw_predictions.read_predictions(path) == {f"{path}:2": _prediction()}


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


def test_a_min_score_needs_scores(tmp_path):
  path = _write(tmp_path, [_prediction(prediction=_boxes(ONE))])
  with pytest.raises(
    ValueError, match='jsonl:1: has no "confidences", which --min_score needs'
  ):
    draw_predictions.draw_predictions(
      path, tmp_path / "out.png", image_root=tmp_path, num=1, min_score=0.5
    )


def test_truth_is_beside_the_prediction():
  """Green and red on the left; on the right white, and red what is missing."""
  other = ((30, 60, 50, 95), "7")
  prediction = _prediction(
    suffix=_boxes(ONE, TWO), prediction=_boxes(other, ONE)
  )
  picture = Image.new("RGB", (100, 100))
  cell = draw_predictions.draw_cell(picture, prediction, beside=True)
  cell = np.asarray(cell)[: draw_predictions.PICTURE]

  def colours(half, box):
    """Of the lower edge, which no label covers."""
    _, x0, y1, x1 = (round(edge * 1.68) for edge in box)
    return {tuple(pixel) for pixel in half[y1 - 1, x0 + 3 : x1 - 3].tolist()}

  left, right = cell[:, :168], cell[:, -168:]
  green = judged.RIGHT
  red = judged.WRONG
  assert colours(left, ONE[0]) == {green} and colours(left, other[0]) == {red}
  assert colours(right, ONE[0]) == {(255, 255, 255)}
  assert colours(right, TWO[0]) == {red}
  assert colours(left, TWO[0]) == {(0, 0, 0)}


def test_bad_boxes_are_not_drawn():
  text = "<loc0100> 3 ; <loc0900><loc0900><loc0100><loc0100> 7 ; 5"
  prediction = _prediction(suffix=text, prediction=text)
  picture = Image.new("RGB", (100, 100))
  cell = draw_predictions.draw_cell(picture, prediction, beside=True)
  assert not np.asarray(cell)[:168, :168].any()


def test_errors_come_first(tmp_path):
  for name, colour in (("a.png", "blue"), ("b.png", "lime")):
    Image.new("RGB", (8, 8), colour).save(tmp_path / name)
  predictions = [
    _prediction(image="b.png" if i in (2, 4) else "a.png", correct=i != 4)
    for i in range(5)
  ]
  path, out = _write(tmp_path, predictions), tmp_path / "out.png"
  for num, expected in ((1, "lime"), (5, "lime")):
    drawn = draw_predictions.draw_predictions(
      path, out, image_root=tmp_path, num=num
    )
    assert drawn == (num, 5, 4)
    with Image.open(out) as sheet:
      assert sheet.getpixel((20, 20)) == ImageColor.getrgb(expected)
      if num == 5:
        assert sheet.getpixel((20 + 3 * 176, 20)) == (0, 255, 0)


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
    assert drawn == (2, 2, 2)
    with Image.open(tmp_path / "out.png") as sheet:
      sheets.append(np.asarray(sheet))
  assert (sheets[0] != sheets[1]).any()


def test_sheet_holds_at_most_num_cells(tmp_path):
  Image.new("L", (8, 8), 99).save(tmp_path / "a.png")
  path = _write(tmp_path, [_prediction(correct=i < 3) for i in range(23)])
  sizes = []
  for num, expected in ((5, (5, 23, 3)), (11, (11, 23, 3)), (97, (23, 23, 3))):
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
    draw_predictions.read_predictions(path)


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
