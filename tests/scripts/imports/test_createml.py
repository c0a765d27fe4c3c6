"""CreateML's centres, spellings and folders."""

import pytest

from scripts.imports import createml
from tests.scripts.imports.reading import read, write_json


def thing(label="cat", **fields):
  centre = {"x": 20, "y": 15.5, "width": 10, "height": 7, **fields}
  return {"label": label, "coordinates": centre}


@pytest.mark.parametrize(
  "keys", [("image", "annotations"), ("imagefilename", "annotation")]
)
def test_boxes(keys, tmp_path):
  fields = dict(zip(keys, ("x/a.png", [thing()]), strict=True))
  src = write_json(tmp_path / "a.json", [fields])
  ((entry,), labels, _) = read(createml.read, src)
  assert entry.images[0] == tmp_path / "x" / "a.png"
  assert entry.where == f"{src}: picture number 0"
  assert entry.objects[0].box == (12, 15, 19, 25)
  assert entry.objects[0].label == "cat" and labels is None
  ((entry,), _, _) = read(createml.read, src, tmp_path / "y")
  assert entry.images[0] == tmp_path / "y" / "x" / "a.png"


def test_splits(tmp_path):
  for split in ("train", "valid", "test"):
    path = tmp_path / split / "_annotations.createml.json"
    write_json(path, [{"image": "a.png", "annotations": []}])
  found, _, _ = read(createml.read, tmp_path)
  assert [(entry.split, entry.images[0].parent.name) for entry in found] == [
    ("test", "test"),
    ("train", "train"),
    ("val", "valid"),
  ]


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"annotations": []}, 'number 0: missing key "image"'),
    ({"image": "a.png"}, 'number 0: missing key "annotations"'),
    ({"image": "a.png", "annotations": "cat"}, "expected list under"),
    ("a.png", "number 0: expected fields"),
    (
      {"image": "a.png", "annotations": [{"label": "cat"}]},
      'annotation 0: missing key "coordinates"',
    ),
    (
      {"image": "a.png", "annotations": [thing(x=None)]},
      "annotation 0: expected 4 numbers x, y, width, height, found [None, 15.5",
    ),
    (
      {"image": "a.png", "annotations": [thing(label=3)]},
      'annotation 0: expected str under "label", found 3',
    ),
  ],
)
def test_bad_pictures(fields, message, tmp_path):
  good = {"image": "b.png", "annotations": [thing()]}
  src = write_json(tmp_path / "a.json", [fields, good])
  with pytest.raises(ValueError) as info:
    read(createml.read, src)
  assert str(info.value).startswith(f"{src}: picture number 0")
  assert message in str(info.value)
  found, _, problems = read(createml.read, src, skip=True)
  assert len(found) == len(problems.messages) == 1


def test_bad_files(tmp_path):
  src = write_json(tmp_path / "a.json", {"a": 1})
  with pytest.raises(ValueError, match="expected a list of pictures"):
    read(createml.read, src)
