"""Each published data set: the publisher's files become the config's fields."""

import dataclasses
import functools

import numpy as np
import pytest

from paligemma.data import image_files
from scripts.datasets import catalog, folder
from tests.scripts.datasets import publishers


def prepare(name, tmp_path, made=None):
  """Returns the lines of a made-up data set, and what they should be."""
  made = made or getattr(publishers, name)()
  raw = publishers.write_all(tmp_path / "raw", made.files)
  folder.prepare(name, raw, tmp_path / "out", splits=list(made.lines))
  found = {
    split: publishers.read_lines(tmp_path / f"out/{split}.jsonl")
    for split in made.lines
  }
  return found, made.lines


@pytest.mark.parametrize("name", catalog.DATA_SETS)
def test_every_example_has_its_fields(name, tmp_path):
  found, expected = prepare(name, tmp_path)
  if name != "coco35l":  # in all its languages
    assert expected.keys() == catalog.DATA_SETS[name].splits.keys()
  for split, lines in expected.items():
    assert len(lines) >= 24, split
    for line, should in zip(found[split], lines, strict=True):
      assert line == should, split
  has_videos = "video" in next(iter(found.values()))[0]
  _, wrong = folder.check(
    name, tmp_path / "out", splits=list(expected), decode=not has_videos
  )
  # Made-up files have few examples, and some the same picture everywhere.
  assert not [
    line for line in wrong if "published" not in line and "share" not in line
  ]


def test_letters_are_drawn_as_large_as_there_is_room(tmp_path):
  prepare("ai2d", tmp_path)
  pixels = image_files.decode(tmp_path / "out/images/letters/0.png").copy()
  before = image_files.decode(tmp_path / "raw/ai2d/images/0.png")
  inside = pixels[5:26, 4:25]
  assert (inside == inside[..., :1]).all(), "black on white"
  assert inside.min() < 60 and inside.max() == 255
  dark = np.argwhere(inside[..., 0] < 128)
  assert np.ptp(dark[:, 1]) > 8
  pixels[5:26, 4:25] = before[5:26, 4:25]
  assert (pixels == before).all()


def test_answers_of_rsvqa_belong_to_its_questions(tmp_path):
  made = publishers.rsvqa_lr()
  answers = made.files["LR_split_val_answers.json"]["answers"]
  answers[0], answers[1] = answers[1], answers[0]
  with pytest.raises(ValueError, match="answers 0 answers another question"):
    prepare("rsvqa_lr", tmp_path, made)
  answers.clear()
  with pytest.raises(ValueError, match="differ in length"):
    prepare("rsvqa_lr", tmp_path, made)


def without_a_video(tmp_path):
  """Writes the files of a data set, all but the first video of val."""
  made = publishers.activitynet_cap()
  gone = made.lines["val"][0]["video"].removeprefix("../raw/")
  del made.files[gone]
  return publishers.write_all(tmp_path / "raw", made.files), made.lines


def test_videos_that_are_gone_are_left_out(tmp_path):
  raw, lines = without_a_video(tmp_path)
  out = tmp_path / "out"
  with pytest.raises(ValueError, match=r"1 of 36 examples name videos .*val_1"):
    folder.prepare("activitynet_cap", raw, out)
  written = folder.prepare("activitynet_cap", raw, out, skip_bad=True)
  found = {split: (x.examples, x.left_out) for split, x in written.items()}
  assert found == {"val": (35, 1), "test": (36, 0)}, "train is complete"
  kept = publishers.read_lines(out / "val.jsonl")
  assert kept == lines["val"][1:]
  rows, wrong = folder.check("activitynet_cap", out)
  assert rows[2] == ("val", "35", "1", "17,505", "35")
  assert wrong[1].endswith("17,470 less; --skip_bad left out 1")
  assert "clips/v_" in wrong[-1]  # one byte is no video
  assert "106 more cannot be decoded" in wrong[-1]


def test_what_was_left_out_may_be_missing(tmp_path, monkeypatch):
  """And what is gone afterwards is named."""
  raw, lines = without_a_video(tmp_path)
  data_set = catalog.DATA_SETS["activitynet_cap"]
  split = dataclasses.replace(data_set.splits["val"], count=36)
  only = dataclasses.replace(data_set, splits={"val": split})
  monkeypatch.setitem(catalog.DATA_SETS, "activitynet_cap", only)
  out = tmp_path / "out"
  folder.prepare("activitynet_cap", raw, out, skip_bad=True)
  check = functools.partial(
    folder.check, "activitynet_cap", out, decode=False, skip_bad=True
  )
  assert check()[1] == []
  (line,) = check(skip_bad=False)[1]
  assert line.endswith("36 were published: 1 less; --skip_bad left out 1")
  (out / lines["val"][-1]["video"]).unlink()
  (line,) = check()[1]
  assert line.endswith("no such file, and 0 more of 35 are missing")
