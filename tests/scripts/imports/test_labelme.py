"""LabelMe's shapes, and where the picture of a file lies."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from paligemma.data import masks
from scripts.imports import labelme
from tests.scripts.imports.reading import area, picture, read, write_json


def shape(kind, *points, label="cat", **fields):
  points = [list(point) for point in points]
  return {"label": label, "points": points, "shape_type": kind, **fields}


def content(*shapes, name="a.png", **fields):
  size = {"imageHeight": 20, "imageWidth": 30}
  return {"shapes": list(shapes), "imagePath": name, **size, **fields}


def bitmap(mask):
  file = io.BytesIO()
  Image.fromarray(mask.astype(np.uint8) * 255).save(file, "PNG")
  return base64.b64encode(file.getvalue()).decode()


def things(tmp_path, *shapes, **fields):
  src = write_json(tmp_path / "a.json", content(*shapes, **fields))
  ((entry,), _, _) = read(labelme.read, src)
  return entry.objects


@pytest.mark.parametrize(
  ("drawn", "box"),
  [
    (shape("rectangle", (3, 4), (11, 9)), (4, 3, 9, 11)),
    (shape("rectangle", (11, 4), (3, 9)), (4, 3, 9, 11)),
    (shape("rectangle", (3, 9), (11, 9), (11, 4), (3, 4)), (4, 3, 9, 11)),
    (shape("rotation", (5, 0), (10, 5), (5, 10), (0, 5)), (0, 0, 10, 10)),
  ],
)
def test_rectangles_are_boxes_without_a_mask(drawn, box, tmp_path):
  (thing,) = things(tmp_path, drawn)
  assert (thing.label, thing.box, thing.mask) == ("cat", box, None)
  assert thing.where == f"{tmp_path}/a.json: shape 0"


def test_polygons_circles_and_masks(tmp_path):
  mask = np.eye(5, 7, dtype=bool)
  found = things(
    tmp_path,
    shape("polygon", (3, 4), (11, 5), (6, 9)),
    {"label": "old", "points": [[3, 4], [11, 5], [6, 9]]},
    shape("circle", (10, 8), (13, 12)),
    shape("mask", (4.0, 3.0), (10.0, 7.0), mask=bitmap(mask)),
  )
  assert found[0].box == found[1].box == (4, 3, 9, 11)
  assert found[0].mask == found[1].mask == [[3, 4, 11, 5, 6, 9]]
  np.testing.assert_allclose(found[2].box, (3, 5, 13, 15), atol=1e-9)
  np.testing.assert_allclose(area(*found[2].mask), np.pi * 25, rtol=1e-3)
  assert found[3].box == (3, 4, 8, 9)
  inside = masks.from_rle(found[3].mask, 20, 30)
  np.testing.assert_array_equal(inside[3:8, 4:11], mask)
  assert inside.sum() == 5


def test_masks_reaching_over_the_edge_are_cut(tmp_path):
  mask = np.ones((5, 7), bool)
  (thing,) = things(
    tmp_path, shape("mask", (-2, 17), (4, 21), mask=bitmap(mask))
  )
  assert thing.box == (17, 0, 20, 5)


def test_shapes_of_a_group_are_one_object(tmp_path):
  found = things(
    tmp_path,
    shape("polygon", (0, 0), (4, 0), (0, 4), group_id=1),
    shape("polygon", (9, 9), (9, 5), (5, 9), group_id=1),
    shape("polygon", (9, 9), (9, 5), (5, 9), group_id=1, label="dog"),
    shape("rectangle", (1, 2), (3, 4), group_id=2),
    shape("rectangle", (5, 6), (7, 8), group_id=2),
  )
  assert [(x.label, x.box) for x in found] == [
    ("cat", (0, 0, 9, 9)),
    ("dog", (5, 5, 9, 9)),
    ("cat", (2, 1, 8, 7)),
  ]
  assert found[0].mask == [[0, 0, 4, 0, 0, 4], [9, 9, 9, 5, 5, 9]]
  assert found[2].mask is None


def test_splits_are_folders_and_not_names(tmp_path):
  for name in ("train/test_1", "valid/b", "Test/c", "x/train"):
    write_json(tmp_path / f"{name}.json", content())
  (tmp_path / "train" / "._test_1.json").write_bytes(b"\0")
  found, _, _ = read(labelme.read, tmp_path)
  splits = {entry.where.rpartition("/")[2]: entry.split for entry in found}
  assert splits == {
    "test_1.json": "train",
    "b.json": "val",
    "c.json": "test",
    "train.json": "train",
  }
  assert {entry.size for entry in found} == {(20, 30)}


def where(tmp_path, name, images=None):
  path = tmp_path / "x" / "a.json"
  src = write_json(path, content(name=name, imageHeight=None))
  ((entry,), _, _) = read(labelme.read, src, images)
  assert entry.size is None
  return entry.images[0].resolve()


def test_where_pictures_lie(tmp_path):
  beside = picture(tmp_path / "pictures" / "b.png")
  assert where(tmp_path, "..\\pictures\\b.png") == beside
  assert where(tmp_path, "b.png", tmp_path / "pictures") == beside
  assert where(tmp_path, "../x/b.png", tmp_path / "pictures") == beside
  assert where(tmp_path, "C:\\me\\b.png", tmp_path / "pictures") == beside
  assert where(tmp_path, str(beside)) == beside
  renamed = picture(tmp_path / "x" / "a.jpeg")
  assert where(tmp_path, "b.png") == renamed
  own = picture(tmp_path / "x" / "b.png")
  assert where(tmp_path, "b.png") == own


def test_pictures_within_files(tmp_path):
  file = io.BytesIO()
  Image.new("RGB", (30, 20)).save(file, "PNG")
  data = base64.b64encode(file.getvalue()).decode()
  for folder in ("x", "y"):
    path = tmp_path / folder / "a.json"
    write_json(path, content(name="no.jpg", imageData=data))
  found, _, _ = read(labelme.read, tmp_path)
  assert [entry.images[0].path.name for entry in found] == [
    "x-a.png",
    "y-a.png",
  ]
  assert found[0].images[0].data == file.getvalue()


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    (shape("point", (1, 2)), "shape 0: 'point' of 1 points is no box; expect"),
    (shape("linestrip", (1, 2), (3, 4), (5, 6)), "'linestrip' of 3 points is"),
    (shape("polygon", (1, 2), (3, 4)), "shape 0: a polygon of 2 points, exp"),
    (shape("rectangle", (1, 2)), "shape 0: 'rectangle' of 1 points is no box"),
    (shape("polygon", (1, 2), (3,), (4, 5)), "shape 0: expected 2 numbers x, "),
    (shape("mask", (1, 2), (3, 4)), 'shape 0: missing key "mask"'),
    (shape("mask", (1, 2), (3, 4), mask="AAA"), "shape 0: malformed base64: "),
    (
      shape("mask", (1, 2), (3, 4), mask="AAAA"),
      "shape 0: not a readable image: 3 bytes",
    ),
    (
      shape("mask", (1, 2), (2, 3), mask=bitmap(np.zeros((2, 2)))),
      "shape 0: mask is empty",
    ),
    ({"label": 3, "points": []}, 'shape 0: expected str under "label", found'),
  ],
)
def test_bad_shapes_take_their_picture_out(fields, message, tmp_path):
  good = shape("rectangle", (3, 4), (11, 9))
  write_json(tmp_path / "a.json", content(fields, good))
  write_json(tmp_path / "b.json", content(good))
  with pytest.raises(ValueError) as info:
    read(labelme.read, tmp_path)
  assert str(info.value).startswith(f"{tmp_path}/a.json: ")
  assert message in str(info.value)
  found, _, problems = read(labelme.read, tmp_path, skip=True)
  assert [entry.where for entry in found] == [f"{tmp_path}/b.json"]
  assert len(problems.messages) == 1


def test_other_bad_files(tmp_path):
  with pytest.raises(ValueError, match=r"no file of \*\.json in it"):
    read(labelme.read, tmp_path)
  (tmp_path / "a.json").write_text("{")
  with pytest.raises(ValueError, match=r"a\.json: malformed JSON at column 2"):
    read(labelme.read, tmp_path)
  write_json(tmp_path / "a.json", {"images": []})
  with pytest.raises(ValueError, match=r'a\.json: missing key "shapes", found'):
    read(labelme.read, tmp_path)
  one = shape("polygon", (0, 0), (4, 0), (0, 4), group_id=1)
  two = shape("rectangle", (3, 4), (11, 9), group_id=1)
  write_json(tmp_path / "a.json", content(one, two))
  with pytest.raises(ValueError, match="shape 0: its group has outlines and o"):
    read(labelme.read, tmp_path)
