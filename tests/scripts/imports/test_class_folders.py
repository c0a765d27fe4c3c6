"""A folder for each class, with splits above and without."""

import pytest

from scripts import import_data
from scripts.imports import class_folders
from tests.scripts.imports.reading import picture, read


def write(folder, *names):
  for name in names:
    picture(folder / name)
  return folder


def test_classes_are_answers(tmp_path):
  src = write(tmp_path / "src", "train/cat/1.jpg", "val/red_dog/x/2.png")
  write(tmp_path / "src", "val/cat/test_1.jpg", "train/cat/._1.jpg")
  found, labels, _ = read(class_folders.read, src, task="vqa")
  assert [(e.split, e.question, e.answers, e.fields) for e in found] == [
    ("train", class_folders.QUESTION, ("cat",), {"label": "cat"}),
    ("val", class_folders.QUESTION, ("cat",), {"label": "cat"}),
    ("val", class_folders.QUESTION, ("x",), {"label": "x"}),
  ]
  assert labels is None
  found, _, _ = read(class_folders.read, src, task="caption")
  assert [entry.captions for entry in found] == [("cat",), ("cat",), ("x",)]


def test_a_class_can_be_called_test(tmp_path):
  src = write(tmp_path / "src", "test/1.jpg", "boat/2.jpg")
  found, _, _ = read(class_folders.read, src, task="vqa")
  assert [(entry.split, entry.answers) for entry in found] == [
    ("train", ("boat",)),
    ("train", ("test",)),
  ]


def test_import(tmp_path):
  src = write(tmp_path / "src", "cat/1.jpg", "dog/2.jpg")
  records, _ = import_data.import_data(
    "class_folders", src, tmp_path / "out", task="vqa"
  )
  assert records["train"][1] == {
    "image": "../src/dog/2.jpg",
    "label": "dog",
    "prefix": "answer en what is in the picture?",
    "suffix": "dog",
    "question": "what is in the picture?",
    "answers": ["dog"],
  }


@pytest.mark.parametrize(
  ("names", "message"),
  [
    (["1.jpg", "cat/2.jpg"], "src: 1.jpg lies in no folder of a class; expect"),
    (["train/1.jpg", "test/2.jpg"], "src: test/2.jpg lies in no folder of a "),
    (["train/cat/1.jpg", "val/2.jpg"], "src: val/2.jpg lies in no folder of a"),
    (["cat/1.txt.jpg/x.gz.png/a.jpg", "x.png"], "src: x.png lies in no folder"),
  ],
)
def test_pictures_in_no_class(names, message, tmp_path):
  src = write(tmp_path / "src", *names)
  with pytest.raises(ValueError, match=message):
    read(class_folders.read, src, task="vqa")


def test_bad_arguments(tmp_path):
  with pytest.raises(
    ValueError, match="has no boxes; expected --task vqa or c"
  ):
    read(class_folders.read, tmp_path, task="detect")
  with pytest.raises(ValueError, match="--images is of no use"):
    read(class_folders.read, tmp_path, tmp_path, task="vqa")
  with pytest.raises(ValueError, match=r"no file of \*\.jpg"):
    read(class_folders.read, tmp_path, task="vqa")
