"""Answers are true of the pixels, and a seed decides everything."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from scripts.assets import draw_pictures

SIZE = 4 * 53


def _rng(*seed):
  return np.random.default_rng(seed)


def _covered(thing):
  """Rows and columns (first, last + 1) with ink, found without the box."""
  mask = np.asarray(thing.mask) >= 64
  rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
  return rows[0], columns[0], rows[-1] + 1, columns[-1] + 1


def _boxes(suffix):
  numbers = [int(n) for n in re.findall(r"<loc(\d{4})>", suffix)]
  return np.array(numbers).reshape(-1, 4)


def _draw(number):
  if number == 0:
    return draw_pictures.draw_shapes
  return lambda size, rng: draw_pictures.draw_digits(
    size, number, (0.5, 0.9), rng
  )


@pytest.mark.parametrize("number", [0, 1, 2])
def test_detect_boxes_hold_their_thing_and_no_more(number):
  for seed in range(23):
    _, things = _draw(number)(SIZE, _rng(seed))
    for name in {thing.name for thing in things}:
      prefix, suffix = draw_pictures.detect(name, things)
      assert prefix == f"detect {name}"
      assert re.sub(r"<loc\d{4}>", "", suffix).split(" ; ") == [
        f" {name}" for thing in things if thing.name == name
      ]
      expected = sorted(_covered(t) for t in things if t.name == name)
      # A bin is 1/1024 of the picture; floor and the last bin cost one each.
      np.testing.assert_allclose(
        _boxes(suffix) / 1024, np.array(expected) / SIZE, atol=2 / 1024
      )


def test_box_finds_the_thing_in_the_painted_picture():
  for seed in range(11):
    ground, things = draw_pictures.draw_shapes(SIZE, _rng(3, seed))
    picture = draw_pictures.compose(ground, things[:1], 53, 0, _rng(seed))
    empty = draw_pictures.compose(ground, [], 53, 0, _rng(seed))
    changed = np.abs(np.asarray(picture, int) - np.asarray(empty, int)).sum(-1)
    rows, columns = np.nonzero(changed > 20)
    y0, x0, y1, x1 = np.multiply(things[0].box, 53)
    assert (rows.min(), columns.min()) == pytest.approx((y0, x0), abs=1)
    assert (rows.max(), columns.max()) == pytest.approx((y1, x1), abs=1.5)


def test_shapes_do_not_touch():
  for seed in range(31):
    _, things = draw_pictures.draw_shapes(SIZE, _rng(seed))
    cover = sum((np.asarray(t.mask) > 0).astype(int) for t in things)
    assert cover.max() == 1


def test_colours_can_be_told_from_the_background():
  assert "orange" not in draw_pictures.contrasting("red")
  for ground in draw_pictures.GROUNDS:
    assert ground not in draw_pictures.contrasting(ground)
    assert len(draw_pictures.contrasting(ground)) >= 4


def _thing(name, colour, left, size=""):
  mask = Image.new("L", (64, 64))
  mask.paste(255, (left, 16, left + 8, 32))
  return draw_pictures.Object(name, colour, size, mask)


def _answers(ask, *arguments):
  """All the questions that occur in 700 tries, with their answers."""
  answers = {}
  for seed in range(700):
    prefix, suffix = ask(*arguments, _rng(seed))
    answers.setdefault(prefix, set()).add(suffix)
  return answers


def test_answers_about_shapes():
  things = [
    _thing("star", "orange", 0, "small"),
    _thing("circle", "red", 16),
    _thing("circle", "blue", 32, "large"),
  ]
  answers = _answers(draw_pictures.ask_shapes, things)
  expected = {
    "caption en": ("a small orange star, a red circle and a large blue circle"),
    "answer en how many shapes are there?": "3",
    "answer en is there a star?": "yes",
    "answer en is there a triangle?": "no",
    "answer en how many circle shapes are there?": "2",
    "answer en how many ring shapes are there?": "0",
    "answer en what colour is the star?": "orange",
    "detect circle": (
      "<loc0256><loc0256><loc0512><loc0384> circle ;"
      " <loc0256><loc0512><loc0512><loc0640> circle"
    ),
  }
  for prefix, suffix in expected.items():
    assert answers[prefix] == {suffix}
  assert "answer en what colour is the circle?" not in answers


def test_answers_about_one_digit():
  answers = _answers(draw_pictures.ask_digit, "black", _thing("7", "white", 16))
  expected = {
    "caption en": "the digit 7 in white on black",
    "answer en what digit is this?": "7",
    "answer en spell the digit": "seven",
    "answer en is the digit even?": "no",
    "answer en is the digit greater than 6?": "yes",
    "answer en is the digit greater than 7?": "no",
    "answer en what colour is the digit?": "white",
    "answer en how many digits are there?": "1",
    "detect 7": "<loc0256><loc0256><loc0512><loc0384> 7",
  }
  for prefix, suffix in expected.items():
    assert answers[prefix] == {suffix}


@pytest.mark.parametrize("value", range(10))
def test_comparisons_are_true(value):
  answers = _answers(
    draw_pictures.ask_digit, "black", _thing(str(value), "white", 16)
  )
  for prefix, suffixes in answers.items():
    if limit := re.search(r"greater than (\d)", prefix):
      assert suffixes == {"yes" if value > int(limit[1]) else "no"}


def test_answers_about_two_digits():
  things = [_thing("5", "red", 8), _thing("0", "red", 40)]
  answers = _answers(draw_pictures.ask_digits, "white", things)
  expected = {
    "answer en read the digits": "5 0",
    "answer en what is the left digit?": "5",
    "answer en what is the right digit?": "0",
    "answer en how many digits are there?": "2",
    "caption en": "the digits 5 and 0 in red on white",
    "detect 0": "<loc0256><loc0640><loc0512><loc0768> 0",
  }
  for prefix, suffix in expected.items():
    assert answers[prefix] == {suffix}


def test_locations_stay_in_their_1024_bins():
  assert draw_pictures.locations((0, 0.25, 0.9999, 1)) == (
    "<loc0000><loc0256><loc1023><loc1023>"
  )


def test_every_font_prints_ten_different_digits():
  for font in (*draw_pictures.FONTS, draw_pictures.PILLOW_FONT):
    printed = {
      draw_pictures.print_digit(str(i), font, 4).tobytes() for i in range(10)
    }
    assert len(printed) == 10
    for mask in printed:
      frame = np.frombuffer(mask, np.uint8).reshape(104, 104)
      assert frame.any(), font
      assert not frame[[0, -1]].any() and not frame[:, [0, -1]].any(), font


def test_digits_answer_most_of_the_questions():
  suffixes = [
    draw_pictures.make_example(0, "train", i, 17)[2] for i in range(311)
  ]
  read = sum(bool(re.fullmatch(r"\d( \d)?", suffix)) for suffix in suffixes)
  assert 0.4 < read / len(suffixes) < 0.7


def _files(folder):
  return {
    path.relative_to(folder): path.read_bytes()
    for path in folder.rglob("*")
    if path.is_file()
  }


def test_seed_decides_everything(tmp_path):
  for name, seed in (("one", 3), ("two", 3), ("other", 5)):
    draw_pictures.draw_pictures(
      tmp_path / name, num=13, num_val=7, seed=seed, res=29
    )
  one, two, other = (_files(tmp_path / n) for n in ("one", "two", "other"))
  assert len(one) == 13 + 7 + 2
  assert one == two
  assert one.keys() == other.keys() and one != other


def test_workers_and_number_do_not_change_the_pictures(tmp_path):
  draw_pictures.draw_pictures(tmp_path / "one", num=5, num_val=3, seed=0)
  draw_pictures.draw_pictures(
    tmp_path / "two", num=7, num_val=3, seed=0, workers=2
  )
  one, two = _files(tmp_path / "one"), _files(tmp_path / "two")
  for name in one:
    assert two[name].startswith(one[name])


def test_lines_name_pictures_of_the_asked_size(tmp_path, monkeypatch):
  monkeypatch.setattr(draw_pictures, "FOLDER_SIZE", 4)
  out = tmp_path / "set"
  draw_pictures.draw_pictures(out, num=11, num_val=3, seed=0, res=31)
  for split, number in (("train", 11), ("val", 3)):
    lines = (out / f"{split}.jsonl").read_text().splitlines()
    assert len(lines) == number
    for i, example in enumerate(map(json.loads, lines)):
      assert example["image"] == f"{split}/{i // 4:03d}/{i:06d}.png"
      assert example["prefix"] and example["suffix"]
      with Image.open(out / example["image"]) as picture:
        assert (picture.mode, picture.size) == ("RGB", (31, 31))


def test_existing_folder_is_refused(tmp_path):
  (tmp_path / "mine.txt").write_text("mine")
  with pytest.raises(OSError, match="exists already, expected a new"):
    draw_pictures.draw_pictures(tmp_path, num=1, seed=0)
