"""YOLO as people have it: key points, folders, names, and what is missing."""

import pytest
from PIL import Image

from scripts.imports import yolo
from tests.scripts.imports import reading

LINE = "0 0.5 0.25 0.25 0.125"
BOX = (0.1875, 0.375, 0.3125, 0.625)  # (y0, x0, y1, x1)


def draw(*paths):
  for path in paths:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (13, 11)).save(path)


def write(path, text):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(text.encode())
  return path


def make(root, *lines, yaml="names: [cat, dog]", split="train"):
  """A data set of one image; its labels are lines."""
  draw(root / split / "images" / "a.jpg")
  write(root / split / "labels" / "a.txt", "\n".join(lines or [LINE]))
  write(root / "data.yaml", f"{yaml}\n{split}: {split}/images\n")
  return root


def read(src, **options):
  """The entries, the labels and the problems of a data set."""
  return reading.read(yolo.read, src, **options)


@pytest.mark.parametrize(
  ("shape", "points"),
  [
    ("[17, 2]", ["0.3", "0.8"] * 17),
    ("[17, 3]", ["0.3", "0.8", "2"] * 17),
    ("[5, 3]", ["0", "0", "0"] * 5),
    ("[1, 2]", ["0.1", "0.9"]),
    ("[2, 3]", ["0.1", "0.9", "1.0"] * 2),
    ("[4, 2]", []),
  ],
)
def test_key_points_follow_the_box(tmp_path, shape, points):
  yaml = f"names: [cat]\nkpt_shape: {shape}"
  found, _, _ = read(make(tmp_path, " ".join([LINE, *points]), yaml=yaml))
  (thing,) = found[0].objects
  assert thing.box == BOX and thing.shares and thing.mask is None


def test_polygons_and_turned_boxes(tmp_path):
  three = "1 0.1 0.2 0.5 0.2 0.3 0.7"
  four = "0 0.1 0.2 0.5 0.2 0.5 0.7 0.1 0.7"
  found, _, problems = read(make(tmp_path, three, four, four))
  assert [x.box for x in found[0].objects] == [(0.2, 0.1, 0.7, 0.5)] * 3
  assert found[0].objects[0].mask == [[0.1, 0.2, 0.5, 0.2, 0.3, 0.7]]
  ((what, (count, where)),) = problems.notes.items()
  assert what == "polygons of 4 points or turned boxes, read as the box around"
  assert count == 2 and where.endswith("a.txt:2")


def test_lines_of_windows_with_classes_as_floats(tmp_path):
  found, _, _ = read(make(tmp_path, "0.0 0.5 0.25 0.25 0.125\r", "\r", LINE))
  assert [x.box for x in found[0].objects] == [BOX, BOX]


@pytest.mark.parametrize(
  ("line", "message"),
  [
    (f"{LINE} 0.9", "found 6 numbers, expected 5: .* a confidence"),
    ("10 20 60 20 60 60 10 60 square 0", "found 10 numbers, expected a class"),
    (f"{LINE} 0.5 0.5 2", "found 8 numbers, .*; key points need kpt_shape in"),
    ("0 0.5 nan 0.25 0.125", "expected 5 numbers class x y width height"),
    ("0 0.5 0.25 inf 0.125", "expected 5 numbers class x y width height"),
    ("0 6.5 3 3 2", "expected shares of the image's sides, .* found 6.5"),
    ("0 0.5 0.25 -0.25 0.125", "expected shares .* found -0.25"),
    ("2 0.5 0.25 0.25 0.125", "unknown class 2, expected one from 0 to 1"),
    ("0.5 0.5 0.25 0.25 0.125", "unknown class 0.5, expected one from 0"),
    ("-1 0.5 0.25 0.25 0.125", "unknown class -1, expected one from 0 to 1"),
    ("cat 0.5 0.25 0.25 0.125", "expected 5 numbers class x y width height"),
  ],
)
def test_a_bad_line_takes_its_image_out(tmp_path, line, message):
  src = make(tmp_path, LINE, line)
  draw(tmp_path / "train" / "images" / "b.png")
  write(tmp_path / "train" / "labels" / "b.txt", LINE)
  with pytest.raises(ValueError, match=rf"labels.a\.txt:2: {message}"):
    read(src)
  found, _, problems = read(src, skip=True)
  assert [x.images[0].name for x in found] == ["b.png"]
  assert len(problems.messages) == 1


@pytest.mark.parametrize(
  ("names", "labels"),
  [
    ("[no, yes]", ("no", "yes")),
    ("[1, 2.50, 08]", ("1", "2.50", "08")),
    ("{0: on, 1: off, 2: ~}", ("on", "off", "~")),
    ('{"0": a, "1": b}', ("a", "b")),
    ("[red dog, 'red  dog ', cat]", ("red dog", "red  dog ", "cat")),
    ("\n- null\n- 2020-01-01", ("null", "2020-01-01")),
  ],
)
def test_names_are_text_as_it_is_written(tmp_path, names, labels):
  assert read(make(tmp_path, yaml=f"names: {names}"))[1] == labels


@pytest.mark.parametrize(
  ("yaml", "message"),
  [
    (
      "names: [a, b]\nnc: 3",
      "a name for each of 3 classes from 0, found names",
    ),
    ("names: {1: a, 2: b}", "a name for each of 2 .* found names of 1, 2"),
    ("names: coco.names", 'expected list or dict under "names", found'),
    ("names: [[a]]", "expected a text as name of class 0, found"),
    ("nc: 2", 'missing key "names"'),
  ],
)
def test_names_that_are_none(tmp_path, yaml, message):
  with pytest.raises(ValueError, match=f"data.yaml: .*{message}"):
    read(make(tmp_path, yaml=yaml))


def test_labels_in_a_folder_of_another_name(tmp_path):
  src = make(tmp_path)
  labels = tmp_path / "train" / "labels"
  labels.rename(tmp_path / "train" / "labelTxt")
  with pytest.raises(ValueError) as info:
    read(src)
  assert str(info.value) == (
    f'{tmp_path}/data.yaml: "train": none of 1 images has a label file, such '
    f"as {labels}/a.txt or one beside the image; other folders with text "
    f"files: {tmp_path}/train/labelTxt; an image of nothing has an empty file"
  )
  found, _, problems = read(src, skip=True)
  assert not found and len(problems.messages) == 1


def test_some_images_without_labels_are_noted(tmp_path):
  src = make(tmp_path)
  draw(*(tmp_path / "train" / "images" / f"{i}.png" for i in range(3)))
  found, _, problems = read(src)
  assert [len(x.objects) for x in found] == [0, 0, 0, 1]
  ((what, (count, where)),) = problems.notes.items()
  assert what == "images without a label file, taken as images of nothing"
  assert count == 3 and where.endswith("0.png")


def test_labels_beside_images(tmp_path):
  draw(tmp_path / "images" / "a.jpg", tmp_path / "images" / "b.jpg")
  write(tmp_path / "images" / "a.txt", LINE)
  write(tmp_path / "images" / "classes.txt", "cat")
  write(tmp_path / "x.yml", "names: [cat]\ntrain: images")
  found, _, _ = read(tmp_path)
  assert [len(x.objects) for x in found] == [1, 0]
  write(tmp_path / "labels" / "b.txt", LINE)
  found, _, _ = read(tmp_path)
  assert [len(x.objects) for x in found] == [1, 1]


def test_hidden_files_are_none(tmp_path):
  src = make(tmp_path)
  folder = tmp_path / "train"
  write(folder / "images" / "._a.jpg", "of macOS")
  write(folder / "images" / ".cache" / "b.jpg", "x")
  write(folder / "labels" / "._a.txt", "of macOS")
  found, _, problems = read(src)
  assert len(found) == 1 and not problems.notes


@pytest.mark.parametrize(
  "place",
  [
    "../train/images",
    "/home/somebody/pets/train/images",
    "C:\\pets\\train\\images",
    "./train/images",
    "train\\images",
  ],
)
def test_folders_of_another_machine(tmp_path, place):
  src = make(tmp_path / "pets")
  write(src / "data.yaml", f"names: [cat]\ntrain: {place}")
  found, _, problems = read(src)
  assert found[0].images[0] == src / "train" / "images" / "a.jpg"
  assert len(problems.notes) == ("pets" in place or ".." in place)


def test_a_folder_that_is_not_there(tmp_path):
  src = make(tmp_path)
  draw(tmp_path / "images" / "z.jpg")  # not that of valid
  yaml = src / "data.yaml"
  write(yaml, "names: [cat]\ntrain: train/images\nval: ../valid/images\ntest:")
  with pytest.raises(
    ValueError, match=r'yaml: "val": no such folder or list of images: .*; take'
  ):
    read(src)
  found, _, problems = read(src, skip=True)
  assert [x.split for x in found] == ["train"] and len(problems.messages) == 1


def test_a_path_of_another_machine(tmp_path):
  src = make(tmp_path, yaml="path: ~\nnames: [cat]\nval: null\ntest:")
  found, _, problems = read(src)
  assert len(found) == 1 and not problems.notes
  src = make(tmp_path, yaml="path: /datasets/pets\nnames: [cat]")
  found, _, problems = read(src)
  assert len(found) == 1
  assert list(problems.notes) == [
    '"path" that is not there, taken as the folder of the YAML'
  ]


def test_one_split_under_two_names(tmp_path):
  src = make(tmp_path)
  write(src / "data.yaml", "names: [cat]\ntrain: train\nvalid: a\nval: b")
  with pytest.raises(ValueError, match='"valid" and "val" are one split'):
    read(src)


@pytest.mark.parametrize(
  "line", ["./images/a.jpg", "images/a.jpg", "../s/x.jpg"]
)
def test_lists_of_images(tmp_path, line):
  # Beside the list as Ultralytics has it, or from the root.
  draw(tmp_path / "lists" / "images" / "a.jpg", tmp_path / "s" / "x.jpg")
  for path in ("lists/labels/a.txt", "s/x.txt"):
    write(tmp_path / path, LINE)
  write(tmp_path / "lists" / "train.txt", f"{line}\r\n\r\n")
  write(tmp_path / "data.yaml", "names: [cat]\ntrain: lists/train.txt")
  found, _, _ = read(tmp_path)
  assert found[0].images[0].is_file() and len(found[0].objects) == 1


def test_a_folder_without_yaml(tmp_path):
  for split in ("train", "valid"):
    make(tmp_path, split=split)
  (tmp_path / "data.yaml").unlink()
  with pytest.raises(
    ValueError, match=r"has no data\.yaml and no classes\.txt"
  ):
    read(tmp_path)
  write(tmp_path / "classes.txt", "cat\r\ndog\r\n")
  found, labels, _ = read(tmp_path)
  assert [x.split for x in found] == ["train", "val"]
  assert labels == ("cat", "dog")
  write(tmp_path / "a.yaml", "")
  write(tmp_path / "b.yml", "")
  with pytest.raises(
    ValueError, match=r"name one of its files as SRC: a\.yaml,"
  ):
    read(tmp_path)


def test_classes_beside_labels(tmp_path):
  draw(tmp_path / "images" / "a.jpg")
  write(tmp_path / "labels" / "a.txt", LINE)
  write(tmp_path / "labels" / "classes.txt", "cat")
  found, labels, _ = read(tmp_path)
  assert labels == ("cat",) and found[0].objects[0].box == BOX


POINTS = " 0.45 0.2 0.5 0.3 0 0 0.55 0.25"  # in the box of LINE, one unseen


def test_what_may_be_key_points_is_asked_for(tmp_path):
  lines = [f"{LINE}{POINTS}"] * 11
  with pytest.raises(ValueError) as info:
    read(make(tmp_path, *lines))
  assert str(info.value) == (
    f"{tmp_path}/train/labels/a.txt:1: this and all other lines fit a box with "
    "4 key points as well as an outline; say in data.yaml kpt_shape: [4, 2] if "
    "they are key points, kpt_shape: [] if they are outlines"
  )
  ((entry,), _, _) = read(
    make(tmp_path, *lines, yaml="names: [cat]\nkpt_shape: [4, 2]")
  )
  assert {thing.mask for thing in entry.objects} == {None}
  ((entry,), _, _) = read(
    make(tmp_path, *lines, yaml="names: [cat]\nkpt_shape: []")
  )
  assert all(thing.mask for thing in entry.objects)
  with pytest.raises(ValueError, match="3] under \"kpt_shape\", found '4'"):
    read(make(tmp_path, *lines, yaml="names: [cat]\nkpt_shape: 4"))


@pytest.mark.parametrize(
  ("points", "shape"),
  [
    (" 0.45 0.2 1 0.5 0.3 1", "[2, 3]"),
    (" 0.45 0.2 2 0 0 0 0.5 0.3 1 0.6 0.3 2", "[4, 3]"),
    (" 0.45 0.2 0.5 0.3", "[2, 2]"),
  ],
)
def test_key_points_of_other_shapes(tmp_path, points, shape):
  with pytest.raises(ValueError) as info:
    read(make(tmp_path, *[f"{LINE}{points}"] * 10))
  assert f"kpt_shape: {shape} if they are key points" in str(info.value)


@pytest.mark.parametrize(
  "other",
  [
    f"{LINE}{POINTS} 0.5 0.2",  # another length
    f"{LINE} 0.45 0.2 0.5 0.3 0 0 0.9 0.25",  # a point out of the box
    "0 0.1 0.25 0.25 0.125 0.1 0.2 0.1 0.3 0 0 0.1 0.25",  # boxes out of the
    "0 0.9 0.25 0.25 0.125 0.9 0.2 0.9 0.3 0 0 0.9 0.25",  # image
  ],
)
def test_outlines_that_are_no_key_points(tmp_path, other):
  ((entry,), _, _) = read(make(tmp_path, *[f"{LINE}{POINTS}"] * 20, other))
  assert len(entry.objects) == 21 and entry.objects[0].mask
  ((entry,), _, _) = read(make(tmp_path, *[f"{LINE}{POINTS}"] * 9))
  assert len(entry.objects) == 9  # they are too few to tell
  lines = [f"{LINE} 0.45 0.2 0.9 0.5 0.3 0.9"] * 20  # 0.9 is no visibility
  ((entry,), _, _) = read(make(tmp_path, *lines))
  assert len(entry.objects) == 20
