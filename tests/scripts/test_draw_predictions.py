"""The sheet shows every prediction, green where correct and red where not."""

import json

import numpy as np
import pytest
from PIL import Image, ImageFont

from scripts import draw_predictions


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
