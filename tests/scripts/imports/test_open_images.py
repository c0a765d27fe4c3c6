"""Boxes of Open Images, of the pictures that are there."""

import pytest

from scripts.imports import open_images
from tests.scripts.imports.reading import picture, read

HEADER = (
  "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,"
  "IsTruncated,IsGroupOf,IsDepiction,IsInside\n"
)


def row(
  key="0001", label="/m/01", edges="0.25,0.75,0.1,0.5", group=0, confidence=1
):
  return f"{key},xclick,{label},{confidence},{edges},0,1,{group},0,0\n"


def write(folder, text, name="train-annotations-bbox.csv", header=HEADER):
  folder.mkdir(parents=True, exist_ok=True)
  (folder / "oidv7-class-descriptions-boxable.csv").write_text(
    'LabelName,DisplayName\n/m/01,Cat\n/m/02,"Dog, red"\n'
  )
  (folder / name).write_text(header + text)
  return folder


def test_boxes_are_shares(tmp_path):
  src = write(tmp_path, row() + row(label="/m/02", group=1) + row("0002"))
  image = picture(src / "train" / "0001.jpg")
  ((entry,), labels, problems) = read(open_images.read, src)
  assert (entry.images[0], entry.split) == (image, "train")
  assert entry.where == f"{src}/train-annotations-bbox.csv:2"
  cat, dogs = entry.objects
  assert (cat.label, cat.box, cat.shares, cat.crowd) == (
    "Cat",
    (0.1, 0.25, 0.5, 0.75),
    True,
    False,
  )
  assert (dogs.label, dogs.crowd) == ("Dog, red", True)
  assert dogs.where == f"{src}/train-annotations-bbox.csv:3"
  assert labels is None and not problems.notes


@pytest.mark.parametrize("zero", ["0", "0.0", " 0"])
def test_a_row_of_confidence_0_is_no_box(tmp_path, zero):
  absent = {"label": "/m/02", "edges": ",,,", "confidence": zero}
  src = write(tmp_path, row() + row(**absent) + row("0002", **absent))
  for name in ("0001", "0002"):
    picture(src / "train" / f"{name}.jpg")
  ((entry,), _, problems) = read(open_images.read, src)
  assert [x.label for x in entry.objects] == ["Cat"]
  table = f"{src}/train-annotations-bbox.csv"
  assert problems.notes == {
    "rows of Confidence 0, which are no boxes": (2, f"{table}:3"),
    "pictures without a box left out": (1, f"{src}/train/0002.jpg"),
  }


def test_splits_and_pictures_elsewhere(tmp_path):
  src = write(tmp_path / "csv", row())
  write(src, row("0002"), "validation-annotations-bbox.csv")
  for name in ("0001", "0002", "0003"):
    picture(tmp_path / "jpg" / f"{name}.jpg")
  found, _, problems = read(open_images.read, src, tmp_path / "jpg")
  assert [(entry.split, entry.images[0].stem) for entry in found] == [
    ("train", "0001"),
    ("val", "0002"),
  ]
  assert problems.notes == {
    "pictures without a box left out": (1, f"{tmp_path}/jpg/0003.jpg")
  }
  found, _, _ = read(
    open_images.read,
    src / "validation-annotations-bbox.csv",
    tmp_path / "jpg",
  )
  assert [entry.split for entry in found] == ["val"]


def test_the_layout_of_fiftyone(tmp_path):
  for split, key in (("train", "0001"), ("validation", "0002")):
    folder = tmp_path / split
    write(folder / "labels", row(key), "detections.csv")
    name = "oidv7-class-descriptions-boxable.csv"
    (folder / "metadata").mkdir()
    (folder / "labels" / name).rename(folder / "metadata" / "classes.csv")
    picture(folder / "data" / f"{key}.jpg")
  found, _, _ = read(open_images.read, tmp_path)
  assert [(e.split, e.images[0].stem, e.objects[0].label) for e in found] == [
    ("train", "0001", "Cat"),
    ("val", "0002", "Cat"),
  ]


@pytest.mark.parametrize(
  ("text", "message"),
  [
    (
      row(label="/m/9"),
      "bbox.csv:2: unknown label /m/9, the 2 known are others",
    ),
    (row(edges="0,1,0,x"), "bbox.csv:2: expected 4 numbers YMin, XMin, YMax"),
    (row() + row("0002") + row(), "bbox.csv:4: rows of image 0001 stand apart"),
  ],
)
def test_bad_rows(text, message, tmp_path):
  src = write(tmp_path, text)
  for name in ("0001", "0002"):
    picture(src / f"{name}.jpg")
  with pytest.raises(ValueError) as info:
    read(open_images.read, src)
  assert message in str(info.value)
  _, _, problems = read(open_images.read, src, skip=True)
  assert len(problems.messages) == 1


@pytest.mark.parametrize(
  ("text", "header", "message"),
  [
    (
      row(),
      HEADER.replace("XMax", "X"),
      "bbox.csv:1: no column XMax, found Im",
    ),
    (row() + "1,2\n", HEADER, "bbox.csv:3: found 2 cells, expected 13"),
    ("", "", "bbox.csv: holds no row, expected at least one"),
    ("\udcff", HEADER, "bbox.csv:2: not UTF-8, but byte 0xff"),
  ],
)
def test_bad_files(text, header, message, tmp_path):
  src = write(tmp_path, "", header=header)
  with (src / "train-annotations-bbox.csv").open("ab") as file:
    file.write(text.encode(errors="surrogateescape"))
  picture(src / "0001.jpg")
  with pytest.raises(ValueError) as info:
    read(open_images.read, src)
  assert message in str(info.value)


def test_missing_files(tmp_path):
  src = write(tmp_path, row())
  with pytest.raises(ValueError, match=r"no file of \*\.jpg"):
    read(open_images.read, src)
  picture(src / "0001.jpg")
  (src / "oidv7-class-descriptions-boxable.csv").unlink()
  with pytest.raises(ValueError, match="no class-descriptions-boxable"):
    read(open_images.read, src)
