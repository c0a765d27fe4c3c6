"""Darknet's obj.data, lists and labels."""

import pytest

from scripts.imports import darknet
from tests.scripts.imports.reading import picture, read

LINE = "1 0.5 0.25 0.2 0.1\n"


def write(
  folder, image="data/obj/a.jpg", label="obj/a.txt", line=LINE, **fields
):
  """A folder that darknet is run above."""
  folder.mkdir(parents=True, exist_ok=True)
  (folder / "obj.names").write_text("cat\nred dog\n\n")
  (folder / "train.txt").write_text(f"{image}\r\n\n")
  names = {"train": "data/train.txt", "names": "data/obj.names"} | fields
  (folder / "obj.data").write_text(
    "classes= 2\n" + "".join(f"{k}  = {v}\n" for k, v in names.items() if v)
  )
  path = folder / label
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(line)
  return folder


def test_boxes(tmp_path):
  src = write(tmp_path / "data")
  image = picture(src / "obj" / "a.jpg")
  for given in (src, src / "obj.data"):
    ((entry,), labels, problems) = read(darknet.read, given)
    assert (entry.images[0], entry.split) == (image, "train")
    assert labels == ("cat", "red dog")
    (thing,) = entry.objects
    assert (thing.label, thing.shares) == ("red dog", True)
    assert thing.box == pytest.approx((0.2, 0.4, 0.3, 0.6))
    assert thing.where == f"{src}/obj/a.txt:1"
    assert not problems.notes


@pytest.mark.parametrize(
  ("folder", "listed"),
  [
    ("export", "data/obj/a.jpg"),  # CVAT's, unpacked anywhere
    ("data", "data/obj/a.jpg"),
    ("data", "obj/a.jpg"),
    ("data", "obj\\a.jpg"),
  ],
)
def test_paths_of_lists(folder, listed, tmp_path):
  src = write(tmp_path / folder, listed)
  image = picture(src / "obj" / "a.jpg")
  ((entry,), _, _) = read(darknet.read, src)
  assert entry.images[0].resolve() == image


def test_splits_labels_elsewhere_and_images(tmp_path):
  src = write(tmp_path / "data", valid="data/val.txt", label="labels/a.txt")
  (src / "train.txt").write_text("")
  (src / "val.txt").write_text("/home/me/images/a.jpg\n")
  image = picture(src / "images" / "a.jpg")
  ((entry,), _, _) = read(darknet.read, src, src / "images")
  assert (entry.images[0], entry.split) == (image, "val")
  assert entry.where == f"{src}/labels/a.txt"


def test_folders_of_roboflow(tmp_path):
  for split in ("train", "valid"):
    picture(tmp_path / split / "a_jpg.rf.12.jpg")
    (tmp_path / split / "a_jpg.rf.12.txt").write_text(LINE)
    (tmp_path / split / "_darknet.labels").write_text("cat\nred dog\n")
  found, labels, _ = read(darknet.read, tmp_path)
  assert [entry.split for entry in found] == ["train", "val"]
  assert [entry.objects[0].label for entry in found] == ["red dog"] * 2
  assert labels == ("cat", "red dog")


def test_an_empty_file_of_labels_says_that_nothing_is_there(tmp_path):
  src = write(tmp_path / "data", line="\n")
  picture(src / "obj" / "a.jpg")
  ((entry,), _, _) = read(darknet.read, src)
  assert entry.objects == ()
  (src / "obj" / "a.txt").unlink()
  with pytest.raises(
    ValueError, match="none of 1 images has a label file, suc"
  ):
    read(darknet.read, src)


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    (
      {"line": "2 0.5 0.5 0.1 0.1"},
      "a.txt:1: unknown class 2, expected one fro",
    ),
    (
      {"line": "0.5 0.5 0.5 1 1"},
      "a.txt:1: unknown class 0.5, expected one fr",
    ),
    ({"line": "1 0.5 0.5 0.1"}, "a.txt:1: found 4 numbers, expected a class"),
    ({"names": ""}, 'obj.data: missing key "names", found classes, train'),
    ({"names": "x.names"}, "x.names: cannot read it: No such file"),
    ({"classes": "3"}, "obj.data: classes = 3, but 2 names"),
    ({"train": ""}, "obj.data: names no list, expected train = train.txt"),
    ({"train": "x.txt"}, "x.txt: cannot read it: No such file"),
  ],
)
def test_bad_files(fields, message, tmp_path):
  src = write(tmp_path / "data", **fields)
  picture(src / "obj" / "a.jpg")
  with pytest.raises(ValueError) as info:
    read(darknet.read, src)
  assert message in str(info.value)


def test_several_data_files(tmp_path):
  src = write(tmp_path / "data")
  (src / "other.data").write_text("")
  with pytest.raises(
    ValueError, match=r"several files \*\.data, name one of t"
  ):
    read(darknet.read, src)
  with pytest.raises(ValueError, match=r"no file of \*\.data in it"):
    read(darknet.read, src / "obj")
