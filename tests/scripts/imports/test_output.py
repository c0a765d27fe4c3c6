"""A folder that an import writes as a whole or not at all."""

import json
import os
import pathlib

import pytest

from scripts.imports import entries, output


def everything(folder):
  return {
    path.relative_to(folder).as_posix(): path.read_bytes()
    for path in folder.rglob("*")
    if path.is_file()
  }


def image(folder, name, data):
  path = folder / "src" / name
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(data)
  return path


def test_images_of_one_name_get_different_places(tmp_path):
  out = tmp_path / "deep" / "out"
  first = image(tmp_path, "x/a.png", b"1")
  second = image(tmp_path, "y/A.png", b"2")
  stored = entries.Contents(pathlib.Path("a.png"), b"3")
  with output.Output(out) as written:
    placed = written.store(entries.Entry((stored,), "row 0"))
    names = [
      written.name(first, "train", copy=True),
      written.name(second, "train", copy=True),
      written.name(first, "train", copy=True),
      written.name(first, "val", copy=True),
      written.name(first, "val", copy=False),
      written.name(placed.images[0], "train", copy=False),
    ]
    assert placed.images[0].read_bytes() == b"3"
    assert written.images[names[1]].read_bytes() == b"2"
    assert not out.exists()
    written.write("train.jsonl", [{"image": names[0], "é": 1}])
  assert names == [
    "images/train/a-2.png",
    "images/train/A-3.png",
    "images/train/a-2.png",
    "images/val/a.png",
    "../../src/x/a.png",
    "images/train/a.png",
  ]
  assert everything(out) == {
    "images/train/a.png": b"3",
    "images/train/a-2.png": b"1",
    "images/train/A-3.png": b"2",
    "images/val/a.png": b"1",
    "train.jsonl": '{"image": "images/train/a-2.png", "é": 1}\n'.encode(),
  }
  assert sorted(os.listdir(tmp_path)) == ["deep", "src"]


def test_several_images_that_are_no_files(tmp_path):
  name = pathlib.Path("a.png")
  images = tuple(entries.Contents(name, data) for data in (b"1", b"2"))
  entry = entries.Entry(images, "row 0", "val")
  with output.Output(tmp_path / "out") as written:
    placed = written.store(entry)
    for path in placed.images:
      written.name(path, "val", copy=False)
  assert everything(tmp_path / "out") == {
    "images/val/a.png": b"1",
    "images/val/a-2.png": b"2",
  }


def test_what_no_line_names_does_not_appear(tmp_path):
  with output.Output(tmp_path / "out") as written:
    for name in ("a.png", "b.png"):
      image = entries.Contents(pathlib.Path(name), b"")
      placed = written.store(entries.Entry((image,), "row"))
    written.name(placed.images[0], "train", copy=False)
  assert list(everything(tmp_path / "out")) == ["images/train/b.png"]


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt, OSError])
def test_an_error_leaves_everything_as_it_was(kind, tmp_path):
  out = tmp_path / "out"
  out.mkdir()
  (out / "mine.txt").write_text("mine")
  with pytest.raises(kind), output.Output(out) as written:
    written.name(image(tmp_path, "a.png", b"1"), "train", copy=True)
    written.write("train.jsonl", [{"image": "a"}])
    raise kind
  assert everything(out) == {"mine.txt": b"mine"}
  assert sorted(os.listdir(tmp_path)) == ["out", "src"]
  assert os.listdir(out) == ["mine.txt"]


def test_other_files_are_not_overwritten(tmp_path):
  out = tmp_path / "out"
  for name in ("same.png", "other.png"):
    path = out / "images" / "train" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"1")
  before = everything(out)
  same = image(tmp_path, "same.png", b"1")
  other = image(tmp_path, "other.png", b"2")
  message = r"train/other\.png: exists; remove it or name another folder"
  with pytest.raises(ValueError, match=message), output.Output(out) as written:
    written.name(same, "train", copy=True)
    written.name(other, "train", copy=True)
    written.write("train.jsonl", [{}])
  assert everything(out) == before
  # What is there already, as after an import whose JSONL was removed.
  with output.Output(out) as written:
    there = out / "images" / "train" / "other.png"
    assert written.name(same, "train", copy=True) == "images/train/same.png"
    assert written.name(there, "train", copy=True) == "images/train/other.png"
    written.write("train.jsonl", [{}])
  assert everything(out) == {**before, "train.jsonl": b"{}\n"}


def test_a_place_that_cannot_be_written_to(tmp_path):
  (tmp_path / "file").write_text("")
  message = r"file/out: cannot write to it: Not a directory"
  with (
    pytest.raises(ValueError, match=message),
    output.Output(tmp_path / "file" / "out") as written,
  ):
    written.write("train.jsonl", [{}])
  assert sorted(os.listdir(tmp_path)) == ["file"]
  message = r"out: cannot write to it: No such file or directory"
  with (
    pytest.raises(ValueError, match=message),
    output.Output(tmp_path / "out") as written,
  ):
    written.name(tmp_path / "gone.png", "train", copy=True)


def test_lines_are_json_that_every_program_reads(tmp_path):
  with (
    pytest.raises(ValueError, match="not JSON compliant"),
    output.Output(tmp_path) as written,
  ):
    written.write("train.jsonl", [{"a": float("nan")}])
  with output.Output(tmp_path) as written:
    written.write("train.jsonl", [{"a": "\u2028"}, {"b": "\r\n"}])
  lines = (tmp_path / "train.jsonl").read_bytes().split(b"\n")
  assert [json.loads(line) for line in lines[:2]] == [
    {"a": "\u2028"},
    {"b": "\r\n"},
  ]
