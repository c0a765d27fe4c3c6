"""The scans arrive unchanged, and the folder is whole or not there."""

import json

import numpy as np
import pytest
from PIL import Image

from scripts import make_digits


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  out = tmp_path_factory.mktemp("digits") / "set"
  assert make_digits.make_digits(out)
  return out


def _examples(folder, split):
  lines = (folder / f"{split}.jsonl").read_text().splitlines()
  return [json.loads(line) for line in lines]


def test_gray_values_span_the_range():
  gray = make_digits.to_gray(np.array([0, 1, 8, 16], np.uint8))
  np.testing.assert_array_equal(gray, np.array([0, 16, 128, 255], np.uint8))


def test_files_hold_every_scan_in_order(folder):
  images, labels = make_digits.load_scans()
  train, test = _examples(folder, "train"), _examples(folder, "test")
  assert (len(train), len(test)) == (1297, 500)
  for i, example in enumerate(train + test):
    assert example["suffix"] == str(example["label"]) == str(labels[i])
    assert example["prefix"] == make_digits.PREFIX
  for i, example in ((0, train[0]), (1296, train[-1]), (1297, test[0])):
    with Image.open(folder / example["image"]) as picture:
      assert (picture.mode, picture.size) == ("L", (8, 8))
      # Gray values keep the 17 levels apart, so the scan can be read back.
      levels = np.round(np.asarray(picture) * (16 / 255))
    np.testing.assert_array_equal(levels, images[i])


def test_train_and_test_share_no_scan(folder):
  pixels = {
    split: {
      (folder / e["image"]).read_bytes() for e in _examples(folder, split)
    }
    for split in ("train", "test")
  }
  assert not pixels["train"] & pixels["test"]


def test_complete_folder_is_left_alone(folder):
  before = (folder / "train.jsonl").stat().st_mtime_ns
  assert not make_digits.make_digits(folder)
  assert (folder / "train.jsonl").stat().st_mtime_ns == before


def test_same_content_every_time(folder, tmp_path):
  make_digits.make_digits(tmp_path / "again")
  assert make_digits.digest(tmp_path / "again") == make_digits.digest(folder)
  assert [p.name for p in tmp_path.iterdir()] == ["again"]


def test_changed_folder_is_refused_and_kept(tmp_path):
  out = tmp_path / "set"
  make_digits.make_digits(out)
  (out / "train" / "0007.png").write_bytes(b"")
  with pytest.raises(OSError, match="exists already, expected a new folder"):
    make_digits.make_digits(out)
  assert (out / "train.jsonl").is_file()


def test_stopped_half_way_leaves_nothing(tmp_path, monkeypatch):
  def stop(*_):
    raise KeyboardInterrupt

  monkeypatch.setattr(make_digits, "to_gray", stop)
  with pytest.raises(KeyboardInterrupt):
    make_digits.make_digits(tmp_path / "set")
  assert not list(tmp_path.iterdir())
