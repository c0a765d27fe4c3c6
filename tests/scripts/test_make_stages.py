"""What the stages learn from: every picture has its caption and its digits."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from scripts import make_stages
from scripts.assets import draw_pictures

NUM = 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  out = tmp_path_factory.mktemp("stages") / "data"
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(make_stages, "NUM_VAL", 9)
    make_stages.make_stages(out, num=NUM, seed=3)
  return out


def lines(folder, name):
  text = (folder / f"{name}.jsonl").read_text()
  return [json.loads(line) for line in text.splitlines()]


def test_every_picture_has_a_caption_and_a_question(folder):
  captions = lines(folder, "caption")
  questions = {
    line["image"]: line
    for task in ("answer", "ocr")
    for line in lines(folder, task)
  }
  assert len(captions) == len(questions) == len(lines(folder, "text")) == NUM
  for caption in captions:
    digits = questions[caption["image"]]["suffix"]
    pattern = rf"the digits? {digits} in (\w+) on (\w+)"
    colour, ground = re.fullmatch(pattern, caption["suffix"]).groups()
    assert colour in draw_pictures.contrasting(ground)
    with Image.open(folder / caption["image"]) as picture:
      assert picture.size[0] == picture.size[1]
      assert 8 <= picture.size[0] <= 20


def test_one_digit_is_asked_for_and_two_are_read(folder):
  assert {len(x["suffix"]) for x in lines(folder, "answer")} == {1}
  assert {len(x["suffix"]) for x in lines(folder, "ocr")} == {3}
  assert {x["prefix"] for x in lines(folder, "ocr")} == {"ocr"}


def test_what_is_held_out_is_in_no_file_to_train_on(folder):
  held_out = {x["image"] for x in lines(folder, "val")}
  assert held_out == {x["image"] for x in lines(folder, "val_caption")}
  assert len(held_out) == 9
  assert not held_out & {x["image"] for x in lines(folder, "caption")}
  apart = lines(folder, "val_answer") + lines(folder, "val_ocr")
  assert lines(folder, "val") == apart


def test_a_picture_is_that_of_its_caption():
  rng = np.random.default_rng(0)
  for _ in range(5):
    picture, text, _ = make_stages.draw(1, rng)
    colour, ground = re.findall(r"in (\w+) on (\w+)", text)[0]
    pixels = np.asarray(picture, np.float32).reshape(-1, 3)
    for name in (colour, ground):
      distance = np.linalg.norm(pixels - draw_pictures.GROUNDS[name], axis=1)
      assert distance.min() < 60, (text, name)


def test_texts_tell_the_truth():
  rng = np.random.default_rng(0)
  for _ in range(50):
    text = make_stages.write_text(rng)
    if match := re.fullmatch(r"after (\d) comes (\d)", text):
      assert int(match[2]) == int(match[1]) + 1
    elif match := re.fullmatch(r"(\w+) is written (\d)", text):
      assert draw_pictures.WORDS[int(match[2])] == match[1]
    else:
      assert re.fullmatch(r"the digits? \d( \d)? in \w+ on \w+", text)


def test_the_same_seed_draws_the_same(folder, tmp_path, monkeypatch):
  monkeypatch.setattr(make_stages, "NUM_VAL", 9)
  make_stages.make_stages(tmp_path / "again", num=NUM, seed=3)
  for path in folder.rglob("*.*"):
    again = tmp_path / "again" / path.relative_to(folder)
    assert again.read_bytes() == path.read_bytes()
