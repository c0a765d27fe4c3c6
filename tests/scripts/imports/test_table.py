"""Tables as people have them: headers, sizes, shares, boxes of other kinds."""

import pytest
from PIL import Image

from scripts.imports import table
from tests.scripts.imports import reading


@pytest.fixture
def src(tmp_path):
  for name in ("a.png", "b.png"):
    Image.new("RGB", (97, 61)).save(tmp_path / name)
  return tmp_path / "t.csv"


def read(src, text, task="detect", **options):
  """The entries and the problems of a table."""
  src.write_bytes(text.encode())
  found, _, problems = reading.read(table.read, src, task=task, **options)
  return found, problems


def boxes(found):
  return [x.box for entry in found for x in entry.objects]


@pytest.mark.parametrize(
  "header",
  [
    "image,label,xmin,ymin,xmax,ymax",
    "Image Path,class name,X Min,Y Min,X Max,Y Max",
    "fileName,Class,xMin,yMin,xMax,yMax",
    "file_name,category,x_min,y_min,x_max,y_max",
    "path,label,x1,y1,x2,y2",
    "img,label,x0,y0,x1,y1",
    "image,label,left,top,right,bottom",
  ],
)
@pytest.mark.parametrize("separator", [",", ";", "|", "\t"])
def test_headers(src, header, separator):
  text = f"{header}\r\na.png,cat,7,11,90,40\r\n".replace(",", separator)
  found, problems = read(src, text)
  assert boxes(found) == [(11, 7, 40, 90)] and not problems.notes
  assert found[0].objects[0].label == "cat" and found[0].fields == {}


def test_two_columns_of_one_name(src):
  header = "image,label,X Min,x_min_,ymin,xmax,ymax"
  with pytest.raises(
    ValueError, match='both "X Min" and "x_min_" could be the column xmin'
  ):
    read(src, f"{header}\na.png,cat,7,8,11,90,40\n")


@pytest.mark.parametrize(
  ("first", "message"),
  [
    (
      "data/a.png,7,11,90,40,cat",
      "t.csv:1: expected a header, such as image,x",
    ),
    (
      "image,label,x1,y1,w,h",
      "say what they are with --boxes xywh .* or --box",
    ),
    ("image,label,x,y,width,height", "say what they are with --boxes xywh"),
    ("image,label,cx,cy,w,h", "say what they are with --boxes xywh"),
    (
      "image,label,x1,y1,area,z",
      "no four columns xmin, ymin, xmax, ymax, found",
    ),
    ("image,conversations,x1,y1,x2,y2", "are read with --from conversations"),
  ],
)
def test_headers_that_do_not_say_enough(src, first, message):
  with pytest.raises(ValueError, match=message):
    read(src, f"{first}\na.png,cat,7,11,83,29\n")


@pytest.mark.parametrize(
  ("reading", "header", "row"),
  [
    ("xywh", "x,y,w,h", "7,11,83,29"),
    ("xywh", "x,y,width,height", "7,11,83,29"),
    ("xywh", "xmin,ymin,xmax,ymax", "7,11,83,29"),
    ("xywh", "width,height,xmin,ymin,xmax,ymax", "97,61,7,11,83,29"),
    ("cxcywh", "cx,cy,w,h", "48.5,25.5,83,29"),
    ("cxcywh", "X_Center,Y_Center,w,h", "48.5,25.5,83,29"),
    ("xyxy", "xmin,ymin,xmax,ymax", "7,11,90,40"),
  ],
)
def test_boxes_of_other_kinds(src, reading, header, row):
  text = f"image,label,{header}\na.png,cat,{row}\n"
  found, _ = read(src, text, boxes=reading)
  assert boxes(found) == [(11, 7, 40, 90)]


def test_boxes_that_no_table_has(src):
  text = "image,label,xmin,ymin,xmax,ymax\na.png,cat,7,11,90,40\n"
  with pytest.raises(ValueError, match=r"--boxes yxyx is none of a table, exp"):
    read(src, text, boxes="yxyx")


def test_sizes_read_as_corners(src):
  rows = "".join(f"a.png,cat,{50 + i},20,30,35\n" for i in range(3))
  with pytest.raises(ValueError) as info:
    read(src, f"image,label,xmin,ymin,xmax,ymax\n{rows}")
  assert str(info.value) == (
    f"{src}: read as xyxy, 3 of 3 boxes do not fit their pictures; read as "
    "xywh they do: pass --boxes xywh, or --boxes xyxy to keep it"
  )


def test_stated_sizes_are_those_of_the_check(src):
  text = "image,width,height,label,xmin,ymin,xmax,ymax\nno.png,97,61,cat,{}\n"
  with pytest.raises(ValueError, match="read as xywh they do"):
    read(src, text.format("50,20,30,35"))
  assert boxes(read(src, text.format("7,11,90,40"))[0]) == [(11, 7, 40, 90)]


def test_boxes_as_shares(src):
  text = "image,label,xmin,ymin,xmax,ymax\na.png,cat,0.05,0.1667,0.3,0.5\n"
  found, problems = read(src, text)
  assert found[0].objects[0].shares
  assert boxes(found) == [(0.1667, 0.05, 0.5, 0.3)]
  assert problems.notes == {
    "data sets with boxes from 0 to 1, read as shares": (1, f"{src}:2")
  }
  more = "".join(f"a.png,cat,0,0,0.{i},1\n" for i in range(1, 4))
  text = f"{text}{more}b.png,cat,7,11,90,40\n"
  with pytest.raises(
    ValueError, match=r"t\.csv:6: expected numbers from 0 to 1, as the boxes of"
  ):
    read(src, text)
  found, problems = read(src, text, skip=True)
  assert len(found) == len(problems.messages) == 1


def test_the_size_of_the_image_in_a_row(src):
  header = "filename,width,height,class,xmin,ymin,xmax,ymax"
  found, _ = read(src, f"{header}\na.png,97,61,cat,7,11,90,40\n")
  assert found[0].size == (61, 97) and found[0].fields == {}
  found, _ = read(src, f"{header}\na.png,83,29,cat,7,11,90,40\n")
  assert found[0].size is None  # that of the box
  found, _ = read(src, f"{header}\na.png,,,cat,7,11,90,40\n")
  assert found[0].size is None


@pytest.mark.parametrize(
  ("row", "message"),
  [
    ("cat,7,11,nan,40", "expected 4 numbers xmin, ymin, xmax, ymax"),
    ("cat,7,11,,40", "expected 4 numbers xmin, ymin, xmax, ymax"),
    ("cat,7,11,True,40", "expected 4 numbers xmin, ymin, xmax, ymax"),
    (",7,11,90,40", "box without a label"),
  ],
)
def test_a_bad_row_takes_its_image_out(src, row, message):
  header = "image,label,xmin,ymin,xmax,ymax"
  good = "cat,7,11,90,40"
  text = f"{header}\na.png,{good}\nb.png,{good}\na.png,{row}\na.png,{row}\n"
  with pytest.raises(ValueError, match=f"t.csv:4: {message}"):
    read(src, text)
  found, problems = read(src, text, skip=True)
  assert [x.images[0].name for x in found] == ["b.png"]
  assert len(problems.messages) == 1


def test_numbers_as_text_with_spaces(src):
  text = 'image,label,xmin,ymin,xmax,ymax\na.png,cat," 7.5",11 ,9e1,40.0\n'
  assert boxes(read(src, text)[0]) == [(11, 7.5, 40, 90)]


def test_a_bad_caption_takes_its_image_out(src):
  text = "image,caption\na.png,one\na.png,\nb.png,two\u2028three\n"
  with pytest.raises(
    ValueError, match=r"csv:3: expected a text or a number as"
  ):
    read(src, text, "caption")
  found, problems = read(src, text, "caption", skip=True)
  assert [x.captions for x in found] == [("two\u2028three",)]
  assert len(problems.messages) == 1


@pytest.mark.parametrize("header", ["split", "Split"])
def test_a_column_tells_the_split(src, header):
  text = f"image,caption,{header}\na.png,one, Dev \nb.png,two,\n"
  found, _ = read(src, text, "caption")
  assert [x.split for x in found] == ["val", "train"]
  text = (
    f"image,label,xmin,ymin,xmax,ymax,{header}\na.png,cat,1,2,30,40,train\n"
    "a.png,cat,3,4,50,60,test\n"
  )
  with pytest.raises(ValueError, match=r"3: test is the split, but train at"):
    read(src, text)
  found, _ = read(src, text.replace("train", "test"))
  assert [x.split for x in found] == ["test"]


def test_images_of_another_machine(src):
  text = "image,caption\nC:\\pets\\a.png,one\n/home/x/b.png,two\n"
  found, problems = read(src, text, "caption")
  assert [x.images[0] for x in found] == [
    src.parent / x for x in ("a.png", "b.png")
  ]
  what = "paths of another machine, found by their end"
  assert problems.notes == {what: (2, f"{src}:2")}
