"""VOC as people have it: names, folders and counts of other programs."""

import pytest
from PIL import Image

from scripts.imports import voc
from tests.scripts.imports import reading


def draw(*paths):
  for path in paths:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (97, 61)).save(path, "PNG")


def thing(*edges, label="cat", more=""):
  x0, y0, x1, y1 = edges
  return (
    f"<object><name>{label}</name>{more}<bndbox><xmin>{x0}</xmin><ymin>{y0}"
    f"</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox></object>"
  )


def write(path, *things, name="a.png", size=(61, 97), head="<annotation>"):
  path.parent.mkdir(parents=True, exist_ok=True)
  name = f"<filename>{name}</filename>" if name is not None else ""
  path.write_text(
    f"{head}{name}<size><width>{size[1]}</width><height>{size[0]}</height>"
    f"</size>{''.join(things or [thing(8, 12, 90, 40)])}</annotation>"
  )
  return path


def read(src, **options):
  """The entries and the problems of a data set."""
  found, _, problems = reading.read(voc.read, src, **options)
  return found, problems


def boxes(found):
  return [x.box for entry in found for x in entry.objects]


def test_boxes_count_from_1(tmp_path):
  draw(tmp_path / "a.png")
  write(tmp_path / "a.xml", thing(1, 1, 97, 61), thing("8.5", 12, "90.0", 40))
  found, problems = read(tmp_path)
  assert boxes(found) == [(0, 0, 61, 97), (11, 7.5, 40, 90)]
  assert not problems.notes


@pytest.mark.parametrize("zero", [0, "0.5"])
def test_a_box_at_0_makes_all_count_from_0(tmp_path, zero):
  draw(tmp_path / "a.png", tmp_path / "b.png")
  write(tmp_path / "a.xml")
  write(tmp_path / "b.xml", thing(3, zero, 90, 40), name="b.png")
  found, problems = read(tmp_path)
  assert boxes(found) == [(12, 8, 40, 90), (float(zero), 3, 40, 90)]
  ((what, (count, where)),) = problems.notes.items()
  assert what == "boxes at pixel 0: the data set counts from 0"
  assert count == 1 and where == f"{tmp_path}/b.xml: object 1"


def test_boxes_as_shares(tmp_path):
  draw(tmp_path / "a.png")
  write(tmp_path / "a.xml", thing(0, 0.25, 0.5, 0.75))
  found, problems = read(tmp_path)
  assert boxes(found) == [(0.25, 0, 0.75, 0.5)] and found[0].objects[0].shares
  assert list(problems.notes) == [
    "data sets with boxes from 0 to 1, read as shares"
  ]
  draw(tmp_path / "b.png")
  write(tmp_path / "b.xml", thing(0, 0, 1, 1), thing(8, 12, 90, 40), name="b")
  with pytest.raises(
    ValueError, match=r"b\.xml: object 2: expected numbers from"
  ):
    read(tmp_path)


@pytest.mark.parametrize(
  ("name", "file", "noted"),
  [
    ("a.png", "a.png", 0),
    ("/home/somebody/a.png", "a.png", 0),
    ("C:\\pets\\a.png", "a.png", 0),
    (None, "x.PNG", 0),
    ("", "x.png", 0),
    ("a", "a.png", 1),
    ("a.jpg", "a.png", 1),
    ("A.JPG", "a.jpeg", 1),
    ("a.b", "a.b.png", 1),
    ("a.001", "a.001.webp", 1),
    ("nothing.jpg", "x.png", 1),
  ],
)
def test_images_are_found(tmp_path, name, file, noted):
  draw(tmp_path / file, tmp_path / "z" / "a.png")
  (tmp_path / f"._{file}").write_text("of macOS")
  write(tmp_path / "x.xml", name=name)
  found, problems = read(tmp_path)
  assert [x.images[0] for x in found] == [tmp_path / file]
  assert len(problems.notes) == noted


def test_images_that_are_not_clear(tmp_path):
  write(tmp_path / "x.xml", name="a.001")
  draw(tmp_path / "a.png")  # another one
  with pytest.raises(
    ValueError, match=r"x\.xml: missing image a\.001 or x\.\*: .* has none of"
  ):
    read(tmp_path)
  write(tmp_path / "x.xml", name="a.bmp")
  draw(tmp_path / "a.jpg")
  with pytest.raises(
    ValueError, match=r"its image is one of a\.jpg and a\.png"
  ):
    read(tmp_path)


def test_an_export_with_a_folder_for_each_split(tmp_path):
  for split in ("train", "valid", "test"):
    draw(tmp_path / split / "a.png")
    write(tmp_path / split / "a.xml")
  found, _ = read(tmp_path)
  assert {x.split: x.images[0] for x in found} == {
    "train": tmp_path / "train" / "a.png",
    "val": tmp_path / "valid" / "a.png",
    "test": tmp_path / "test" / "a.png",
  }


def test_folders_of_voc_in_a_folder(tmp_path):
  for year in ("VOC2007", "VOC2012"):
    for name in ("a", "b", "c"):
      draw(tmp_path / year / "JPEGImages" / f"{name}.png")
      write(tmp_path / year / "Annotations" / f"{name}.xml", name=f"{name}.png")
    sets = tmp_path / year / "ImageSets" / "Main"
    sets.mkdir(parents=True)
    (sets / "train.txt").write_text("a\r\na\r\n")
    (sets / "val.txt").write_text("b -1\n")
  found, problems = read(tmp_path)
  assert [(x.split, x.images[0].stem) for x in found] == [
    ("train", "a"),
    ("val", "b"),
    ("train", "a"),
    ("val", "b"),
  ]
  ((what, (count, where)),) = problems.notes.items()
  assert what == "XML files that no list of ImageSets/Main names, left out"
  assert count == 2 and where == f"{tmp_path}/VOC2007/Annotations/c.xml"


def test_folders_in_small_letters(tmp_path):
  draw(tmp_path / "images" / "a.png")
  write(tmp_path / "annotations" / "a.xml")
  found, _ = read(tmp_path)
  assert found[0].images[0] == tmp_path / "images" / "a.png"


@pytest.mark.parametrize("size", [(0, 0), ("", ""), ("?", 97), (61.5, 97)])
def test_sizes_that_say_nothing(tmp_path, size):
  draw(tmp_path / "a.png")
  write(tmp_path / "a.xml", size=size)
  assert read(tmp_path)[0][0].size is None


def test_namespaces(tmp_path):
  draw(tmp_path / "a.png")
  write(tmp_path / "a.xml", head='<annotation xmlns="http://x.example/voc">')
  assert boxes(read(tmp_path)[0]) == [(11, 7, 40, 90)]


def test_parts_and_polygons_of_an_object(tmp_path):
  draw(tmp_path / "a.png")
  part = "<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>"
  polygon = "<polygon><x1>8</x1><y1>12</y1></polygon>"
  write(tmp_path / "a.xml", thing(8, 12, 90, 40, more=part + polygon))
  assert boxes(read(tmp_path)[0]) == [(11, 7, 40, 90)]


BOMB = '<!DOCTYPE x [<!ENTITY a "ha"><!ENTITY b "&a;&a;">]><annotation>'


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    (
      {"things": [thing(8, 12, "nan", 40)]},
      "object 2: expected 4 numbers of a",
    ),
    ({"things": [thing(8, 12, "", 40)]}, "object 2: bndbox has no xmax"),
    (
      {"things": [thing(8, 12, 90, 40, label=" ")]},
      "object 2: object has no na",
    ),
    (
      {"things": ["<object><name>x</name><robndbox/></object>"]},
      "object 2: x has no bndbox, but a robndbox, which is not read",
    ),
    (
      {"things": [thing(8, 12, 90, 40, more="<bndbox/>")]},
      "object 2: cat has 2 of them, expected one bndbox",
    ),
    ({"head": BOMB}, "declares XML entities"),
    ({"head": "<annotations><annotation>"}, "malformed XML"),
  ],
)
def test_a_bad_object_takes_its_image_out(tmp_path, fields, message):
  draw(tmp_path / "a.png", tmp_path / "b.png")
  fields = {
    **fields,
    "things": [thing(8, 12, 9, 40), *fields.get("things", ())],
  }
  write(tmp_path / "a.xml", *fields.pop("things"), **fields)
  write(tmp_path / "b.xml", name="b.png")
  with pytest.raises(ValueError, match=rf"a\.xml:.*{message}"):
    read(tmp_path)
  found, problems = read(tmp_path, skip=True)
  assert [x.images[0].name for x in found] == ["b.png"]
  assert len(problems.messages) == 1


@pytest.mark.parametrize(
  ("path", "text", "message"),
  [
    ("a.xml", "<annotations/>", r"a\.xml: the root is <annotations>, expected"),
    ("a.txt", "", "no annotations of VOC, expected XML files"),
  ],
)
def test_what_is_no_voc(tmp_path, path, text, message):
  (tmp_path / path).write_text(text)
  with pytest.raises(ValueError, match=message):
    read(tmp_path)
  with pytest.raises(ValueError, match=r"no such folder; expected one of XML"):
    read(tmp_path / path)
