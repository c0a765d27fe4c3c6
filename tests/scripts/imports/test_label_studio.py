"""Label Studio's regions, annotators, exports and addresses."""

import numpy as np
import pytest

from paligemma.data import masks
from scripts.imports import label_studio
from tests.scripts.imports.reading import area, picture, read, write_json

# A 3x3 square at (1, 2) and a pixel at (5, 0) of 7x5, by the encoder of
# label-studio-sdk: opaque a little, as its example has it, and wholly.
# fmt: off
BRUSHES = [
  [0, 0, 0, 140, 57, 27, 254, 28, 0, 3, 252, 0, 0, 25, 0, 0, 3, 252, 0, 0, 25,
   0, 0, 3, 252, 0, 0, 25, 44, 0, 1, 254, 0, 0, 12, 128, 0, 1, 254, 0, 0, 12,
   128, 0, 1, 254, 0, 0, 12, 150, 0, 0, 255, 0, 0, 6, 64, 0, 0, 255, 0, 0, 6,
   64, 0, 0, 255, 0, 0, 6, 76, 40, 0, 7, 248, 0, 0, 50, 98, 48, 0],
  [0, 0, 0, 140, 57, 27, 254, 27, 0, 183, 255, 56, 5, 191, 249, 192, 45, 255,
   225, 48, 8, 255, 241, 24, 0],
]
# fmt: on


def region(kind="rectanglelabels", size=(20, 40), key=None, **value):
  """A result; its label is the value under `kind`."""
  return {
    "original_width": size[1],
    "original_height": size[0],
    "image_rotation": 0,
    "value": {**({kind: ["cat"]} if kind else {}), **value},
    **({"id": key} if key else {}),
    "from_name": "label",
    "to_name": "image",
    "type": kind or "rectangle",
  }


def box(**more):
  return region(**{"x": 10, "y": 20, "width": 25, "height": 50, **more})


def said(**value):
  kind = next(iter(value))
  return {"value": value, "from_name": kind, "to_name": "image", "type": kind}


def task(*results, image="/data/upload/1/0a1b2c3d-a.png", **fields):
  annotation = {"result": list(results), "was_cancelled": False}
  data = {"image": image, **fields.pop("data", {})}
  return {"id": 9, "data": data, "annotations": [annotation], **fields}


def only(tmp_path, *tasks, skip=False, **options):
  src = write_json(tmp_path / "a.json", list(tasks))
  found, _, problems = read(label_studio.read, src, **options)
  return found, list(problems.notes)


def things(tmp_path, *results):
  ((entry,), notes) = only(tmp_path, task(*results))
  assert not notes
  return entry.objects


def test_shapes(tmp_path):
  points = [[10, 20], [50, 20], [25, 100]]
  found = things(
    tmp_path,
    box(),
    region("polygonlabels", points=points, closed=True),
    region("ellipselabels", x=50, y=50, radiusX=10, radiusY=30, rotation=0),
  )
  assert (found[0].label, found[0].box, found[0].mask) == (
    "cat",
    (4, 4, 14, 14),
    None,
  )
  assert (found[1].box, found[1].mask) == (
    (4, 4, 20, 20),
    [[4, 4, 20, 4, 10, 20]],
  )
  np.testing.assert_allclose(found[2].box, (4, 16, 16, 24), atol=1e-9)
  np.testing.assert_allclose(area(*found[2].mask), np.pi * 4 * 6, rtol=1e-3)


def test_rectangles_turn_clockwise_around_their_first_corner(tmp_path):
  found = things(tmp_path, box(rotation=90), box(rotation=30, height=0.5))
  # 10 wide and 10 high at (4, 4): the width now goes down, the height left.
  np.testing.assert_allclose(found[0].box, (4, -6, 14, 4), atol=1e-9)
  cos = 10 * 3**0.5 / 2
  np.testing.assert_allclose(
    found[1].box, (4, 4 - 0.05, 9 + 0.1 * 3**0.5 / 2, 4 + cos), atol=1e-9
  )


@pytest.mark.parametrize("rle", BRUSHES)
def test_brushes(rle, tmp_path):
  brush = region("brushlabels", (7, 5), format="rle", rle=rle)
  (thing,) = things(tmp_path, brush)
  wanted = np.zeros((7, 5), bool)
  wanted[1:4, 2:5] = wanted[5, 0] = True
  np.testing.assert_array_equal(masks.from_rle(thing.mask, 7, 5), wanted)
  assert thing.box == (1, 0, 6, 5)


def test_results_of_one_id_are_one_region(tmp_path):
  outline = {"x": 10, "y": 20, "width": 25, "height": 50, "rotation": 0}
  found = things(
    tmp_path,
    region(None, key="r", **outline),
    region("labels", key="r", **outline),
    {**region(None, key="r", **outline, text=["words"]), "type": "textarea"},
    {"type": "relation", "from_id": "r", "to_id": "r", "direction": "right"},
  )
  assert [(x.label, x.box) for x in found] == [("cat", (4, 4, 14, 14))]


def test_which_annotation_counts(tmp_path):
  dog = box(rectanglelabels=["dog"])
  done = [
    {"result": [], "was_cancelled": True},
    {"result": [box()]},
    {"result": [dog], "ground_truth": True},
  ]
  found, notes = only(
    tmp_path,
    task(annotations=done),
    task(annotations=done[:2]),
    task(annotations=done[:1]),
    task(annotations=[]),
    task(),
  )
  labels = [[thing.label for thing in entry.objects] for entry in found]
  assert labels == [["dog"], ["cat"], []]
  assert notes == [
    "further annotations of a task left out",
    "tasks without an annotation left out",
  ]
  assert found[0].size == (20, 40) and found[2].size is None


def test_the_small_export(tmp_path):
  flat = {"x": 10, "y": 20, "width": 25, "height": 50, "rotation": 0}
  flat |= {"original_width": 40, "original_height": 20}
  fields = {"id": 3, "image": "a.png", "annotator": 1, "choice": "x"}
  fields["label"] = [{**flat, "rectanglelabels": ["cat"]}]
  ((entry,), _) = only(tmp_path, fields)
  assert entry.objects[0].box == (4, 4, 14, 14)
  with pytest.raises(ValueError, match="number 0: JSON-MIN does not tell data"):
    only(tmp_path, fields, task="vqa")


def test_texts_and_choices(tmp_path):
  results = said(text=["A cat.", " "]), said(choices=["red", "blue"])
  row = task(*results, data={"question": " Which? ", "ask": "Why?"})
  ((entry,), notes) = only(tmp_path, row, task="caption")
  assert entry.captions == ("A cat.", "red", "blue") and not notes
  ((entry,), _) = only(tmp_path, row, task="vqa")
  assert (entry.question, entry.answers) == ("Which?", entry.answers)
  ((entry,), _) = only(tmp_path, row, task="vqa", names={"question": "ask"})
  assert entry.question == "Why?"
  ((entry,), notes) = only(tmp_path, row)
  assert entry.objects == () and notes == [
    "what is said of whole pictures left out"
  ]
  with pytest.raises(ValueError, match="no column question, found image; name"):
    only(tmp_path, task(*results), task="vqa")


@pytest.mark.parametrize(
  ("image", "file"),
  [
    ("/data/upload/1/0a1b2c3d-a%20b.png", "a b.png"),
    ("/data/upload/1/0a1b2c3d-a.png", "0a1b2c3d-a.png"),
    ("/data/upload/1/0a1b2c3d-a.png", "images/a.png"),
    ("/data/local-files/?d=x/a%20b.png", "x/a b.png"),
    ("/data/local-files/?d=x/a.png", "a.png"),
    ("https://example.org/x/a.png?v=2", "a.png"),
    ("s3://bucket/x/a.png", "x/a.png"),
    ("x/a#1?.png", "x/a#1?.png"),
  ],
)
def test_where_pictures_lie(image, file, tmp_path):
  path = picture(tmp_path / file)
  ((entry,), _) = only(tmp_path, task(image=image))
  assert entry.images[0] == path


def test_pictures_under_other_names(tmp_path):
  row = {"data": {"scan": "x/a.PNG", "page": "3"}, "annotations": []}
  row["annotations"] = [{"result": []}]
  ((entry,), _) = only(tmp_path, row)
  assert entry.images[0] == tmp_path / "x" / "a.PNG"
  row["data"]["other"] = "b.jpg"
  with pytest.raises(
    ValueError, match="0: which of scan, page, other is the p"
  ):
    only(tmp_path, row)
  ((entry,), _) = only(tmp_path, row, names={"image": "other"})
  assert entry.images[0] == tmp_path / "b.jpg"


@pytest.mark.parametrize(
  ("result", "message"),
  [
    (region(None, x=1, y=1, width=2, height=2), "expected one label, found []"),
    (box(rectanglelabels=["a", "b"]), "one label, found ['a', 'b']"),
    (
      region("keypointlabels", x=1, y=2, width=0.5),
      "region 0: is no box; expected rectangle, polygon, ellipse or brush",
    ),
    (box(width="x"), "region 0: expected 4 numbers x, y, width, height"),
    (
      {**box(), "image_rotation": 90},
      "was turned to be annotated, image_rotation is 90",
    ),
    (
      region("polygonlabels", points=[[1, 2], [3, 4]]),
      "region 0: a polygon of 2 points",
    ),
    (
      region("brushlabels", (7, 4), rle=BRUSHES[0]),
      "region 0: malformed mask: 140 values, expected 4 x 7 x 4",
    ),
    (
      region("brushlabels", (7, 5), rle=BRUSHES[0][:20]),
      "region 0: malformed mask: ",
    ),
    (region("brushlabels", rle="x"), "region 0: malformed mask: "),
    ({"from_name": "x"}, 'result 0: missing key "value", found from_name'),
    (
      {k: v for k, v in box().items() if k != "original_width"},
      "expected 2 numbers original_height, original_width",
    ),
  ],
)
def test_bad_regions(result, message, tmp_path):
  rows = [task(result), task(box())]
  with pytest.raises(ValueError) as info:
    only(tmp_path, *rows)
  assert message in str(info.value)
  assert str(info.value).startswith(f"{tmp_path}/a.json: task number 0: ")
  found, _, problems = read(label_studio.read, tmp_path / "a.json", skip=True)
  assert len(found) == len(problems.messages) == 1


def test_folders_with_one_file(tmp_path):
  src = write_json(tmp_path / "a.json", [task(box())])
  ((entry,), _, _) = read(label_studio.read, tmp_path)
  assert entry.where == f"{src}: task number 0"
  write_json(tmp_path / "b.json", [])
  with pytest.raises(ValueError, match="several JSON files, name one of them"):
    read(label_studio.read, tmp_path)


def test_other_bad_files(tmp_path):
  src = write_json(tmp_path / "a.json", {"a": 1})
  with pytest.raises(
    ValueError, match=r"expected a list of tasks, found .*; ex"
  ):
    read(label_studio.read, src)
  with pytest.raises(ValueError, match="number 0: expected a task, found 3"):
    only(tmp_path, 3)
  with pytest.raises(
    ValueError, match="number 0: regions of pictures of sever"
  ):
    only(tmp_path, task(box(), box(size=(5, 5))))
