"""COCO as people have it: folders, odd ids, odd boxes; nothing drops out."""

import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as mask_api

from paligemma.data import masks
from scripts import import_data
from scripts.imports import coco
from tests.scripts.imports import reading

SIZE = (61, 97)  # height, width
IMAGE = {"id": 1, "file_name": "a.png", "height": 61, "width": 97}
CAT = {"id": 3, "name": "cat"}
BOX = {"id": 5, "image_id": 1, "category_id": 3, "bbox": [7, 11, 83, 29]}


def write(path, images=(IMAGE,), annotations=(BOX,), categories=(CAT,)):
  path.parent.mkdir(parents=True, exist_ok=True)
  content = {"images": images, "annotations": annotations}
  path.write_text(json.dumps({**content, "categories": categories}))
  return path


def draw(*paths):
  for path in paths:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", SIZE[::-1]).save(path)


def read(src, task="detect", images=None, **options):
  """The entries, the labels and the problems of a data set."""
  return reading.read(coco.read, src, images, task=task, **options)


def things(path, **fields):
  """The objects of a file of one annotation, changed."""
  found, _, _ = read(write(path, annotations=[{**BOX, **fields}]))
  return found[0].objects


@pytest.fixture
def src(tmp_path):
  draw(tmp_path / "a.png")
  return tmp_path / "a.json"


def test_an_export_with_a_folder_for_each_split(tmp_path):
  parent = {"id": 0, "name": "my-pets", "supercategory": "none"}
  children = [
    {"id": 3, "name": "cat", "supercategory": "my-pets"},
    {"id": 4, "name": "dog", "supercategory": "my-pets"},
  ]
  for split in ("train", "valid"):
    draw(tmp_path / split / "a.png")
    file = tmp_path / split / "_annotations.coco.json"
    write(file, categories=[parent, *children])
    (tmp_path / split / "other.json").write_text("[]")
  found, labels, problems = read(tmp_path)
  assert [(x.split, x.images[0]) for x in found] == [
    ("train", tmp_path / "train" / "a.png"),
    ("val", tmp_path / "valid" / "a.png"),
  ]
  assert labels == ("cat", "dog")  # that of no object stays, that of them goes
  (note,) = problems.notes
  assert note == "supercategories that are never annotated, left out as labels"


def test_a_supercategory_that_is_annotated_stays(src):
  write(src, categories=[CAT, {"id": 4, "name": "tom", "supercategory": "cat"}])
  assert read(src)[1] == ("cat", "tom")


@pytest.mark.parametrize("above", ["", "images/", "data/"])
def test_the_official_layout(tmp_path, above):
  for split in ("train", "val"):
    draw(tmp_path / f"{above}{split}2017" / "a.png")
    write(tmp_path / "annotations" / f"instances_{split}2017.json")
    caption = {"image_id": 1, "caption": f"of {split}"}
    path = tmp_path / "annotations" / f"captions_{split}2017.json"
    write(path, annotations=[caption])
  found, labels, _ = read(tmp_path)
  assert [(x.split, x.images[0]) for x in found] == [
    ("train", tmp_path / f"{above}train2017" / "a.png"),
    ("val", tmp_path / f"{above}val2017" / "a.png"),
  ]
  assert labels == ("cat",)
  found, labels, _ = read(tmp_path, "caption")
  assert [x.captions for x in found] == [("of train",), ("of val",)]
  assert labels is None
  one = tmp_path / "annotations" / "instances_val2017.json"
  found, _, _ = read(one, images=tmp_path / above)
  assert found[0].images[0] == tmp_path / f"{above}val2017" / "a.png"
  assert found[0].split == "val"


def test_folders_that_do_not_say_what_to_read(tmp_path):
  with pytest.raises(ValueError, match=r"no JSON file in this folder or in a"):
    read(tmp_path)
  write(tmp_path / "a.json")
  write(tmp_path / "b.json")
  with pytest.raises(
    ValueError, match=r'b\.json: of the split "train", as is .*a\.json; name on'
  ):
    read(tmp_path)


@pytest.mark.parametrize(
  ("content", "message"),
  [
    (
      [{"image_id": 1, "bbox": [1, 2, 3, 4], "score": 1}],
      "a list, as of resul",
    ),
    (
      {"images": [], "annotations": [{"segments_info": []}]},
      r"panoptic annotations \(segments_info\)",
    ),
    ({"images": [], "annotations": None}, 'expected list under "annotations"'),
    (
      {"images": [], "annotations": [], "categories": {"a": 1}},
      "expected list",
    ),
    ({"images": []}, 'missing key "annotations"'),
    (
      {"images": [], "annotations": [], "categories": [{"name": "x"}]},
      'category number 0: missing key "id"',
    ),
  ],
)
def test_files_of_another_kind(src, content, message):
  src.write_text(json.dumps(content))
  with pytest.raises(ValueError, match=message) as info:
    read(src, skip=True)
  assert str(info.value).startswith(str(src))


def test_names_equal_but_for_spaces_are_one_label(src):
  names = ["red dog", "red dog ", "red  dog", "cat", "animal"]
  categories = [
    {"id": 3 + i, "name": name, "supercategory": " animal"}
    for i, name in enumerate(names)
  ]
  annotations = [{**BOX, "category_id": 3 + i} for i in range(4)]
  write(src, [IMAGE], annotations, categories)
  assert read(src)[1] == tuple(names[:4])  # made one where they are asked for
  out = src.parent / "out"
  records, _ = import_data.import_data("coco", src, out, task="detect")
  (line,) = records["train"]
  assert line["prefix"] == "detect cat ; red dog"
  assert [x["label"] for x in line["objects"]] == ["red dog"] * 3 + ["cat"]


@pytest.mark.parametrize("kind", [str, float, lambda x: f"{x}.0", int])
def test_ids_are_text_or_floats(src, kind):
  image = {**IMAGE, "id": kind(1)}
  found, labels, _ = read(write(src, [image], [BOX], [{**CAT, "id": kind(3)}]))
  assert [x.label for x in found[0].objects] == ["cat"]
  box = {**BOX, "image_id": kind(1), "category_id": kind(3)}
  found, _, _ = read(write(src, annotations=[box]))
  assert [x.label for x in found[0].objects] == ["cat"] and labels == ("cat",)


def test_ids_that_are_names(src):
  images = [
    {**IMAGE, "id": "007", "file_name": "a.png"},
    {**IMAGE, "id": "7", "file_name": "b.png"},
  ]
  found, _, _ = read(write(src, images, [{**BOX, "image_id": "007"}]))
  assert [len(x.objects) for x in found] == [1, 0]
  assert [x.fields for x in found] == [{"image_id": "007"}, {"image_id": "7"}]


def test_an_image_without_an_id_goes(src):
  images = [IMAGE, {"file_name": "b.png"}]
  path = write(src, images)
  with pytest.raises(
    ValueError, match=r'number 1: missing key "id", found fil'
  ):
    read(path)
  found, _, problems = read(path, skip=True)
  assert len(found) == len(problems.messages) == 1


@pytest.mark.parametrize(
  ("sides", "size"),
  [
    ({"height": "61", "width": 97.0}, (61, 97)),
    ({"height": None, "width": 97}, None),
    ({"height": 0, "width": 0}, None),
    ({"height": "?", "width": 97}, None),
    ({"height": True, "width": 97}, None),
  ],
)
def test_sizes_that_are_stated_or_not(src, sides, size):
  found, _, problems = read(write(src, [{**IMAGE, **sides}]))
  assert found[0].size == size
  assert len(problems.notes) == (size is None)


@pytest.mark.parametrize(
  ("flag", "crowd"),
  [("0", False), ("1", True), (True, True), (0.0, False), (None, False)],
)
def test_crowds(src, flag, crowd):
  assert things(src, iscrowd=flag)[0].crowd is crowd


def test_boxes_as_text(src):
  for box in (["7", "11", "83", "29"], "[7, 11, 83, 29]", "7 11 83 29"):
    assert things(src, bbox=box)[0].box == (11, 7, 40, 90)


def test_boxes_of_polygons(src):
  polygons = [[7, 11, 20, 11, 20, 30], [50, 20, 90, 20, 90, 40]]
  annotation = {"image_id": 1, "category_id": 3, "segmentation": polygons}
  found, _, problems = read(write(src, annotations=[annotation]))
  assert found[0].objects[0].box == (11, 7, 40, 90)
  assert "objects without bbox, read as around their masks" in problems.notes
  annotation["segmentation"] = [[7, 11, 20, 11, 20]]
  with pytest.raises(ValueError, match=r"number 0: expected x and y of 3 poin"):
    read(write(src, annotations=[annotation]))


@pytest.mark.parametrize("packed", [False, True])
def test_boxes_of_run_length_masks(src, packed):
  inside = np.zeros(SIZE, bool)
  inside[11:40, 7:90] = np.eye(29, 83, dtype=bool)
  inside[39, 89] = True
  mask = masks.to_rle(inside)
  if packed:
    mask = mask_api.encode(np.asfortranarray(inside, np.uint8))
    mask = {**mask, "counts": mask["counts"].decode()}
  annotation = {"image_id": 1, "category_id": 3, "segmentation": mask}
  found, _, problems = read(write(src, annotations=[annotation]))
  (thing,) = found[0].objects
  assert (thing.box, thing.mask, thing.shares) == ((11, 7, 40, 90), mask, False)
  assert "objects without bbox, read as around their masks" in problems.notes


@pytest.mark.parametrize(
  ("mask", "message"),
  [
    ({"size": [61], "counts": [1]}, "expected 2 numbers as the size of a run"),
    (
      {"counts": [1]},
      "expected 2 numbers as the size of a run-length mask, fo",
    ),
    (
      {"size": [2, 3], "counts": [1, 4]},
      "counts of a run-length mask sum to 5",
    ),
    ({"size": [2, 3], "counts": [6]}, "mask is empty, nothing has a bounding"),
    ({"size": [2, 3]}, 'run-length mask is no dict with "size" and "counts"'),
  ],
)
def test_bad_run_length_masks_without_a_box(src, mask, message):
  annotation = {"image_id": 1, "category_id": 3, "segmentation": mask}
  with pytest.raises(
    ValueError, match=f"a.json: annotation number 0: {message}"
  ):
    read(write(src, annotations=[annotation]))


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"bbox": [7, 11, True, 29]}, "expected 4 numbers of a box, found"),
    ({"bbox": [7, 11, "nan", 29]}, "expected 4 numbers of a box, found"),
    ({"bbox": "1234"}, "expected 4 numbers of a box, found '1234'"),
    ({"bbox": None}, 'expected list or str under "bbox", found None'),
    ({"iscrowd": 2}, 'expected 0 or 1 as "iscrowd", found 2'),
    ({"category_id": 4}, "unknown category_id 4"),
    ({"category_id": True}, 'expected int or str or float under "category_id"'),
    ({"category_id": 3.5}, 'expected a whole number under "category_id"'),
    ({"area": "big"}, "expected 1 numbers area"),
  ],
)
def test_a_bad_object_takes_its_picture_out(src, fields, message):
  images = [IMAGE, {**IMAGE, "id": 2, "file_name": "b.png"}]
  annotations = [BOX, {**BOX, **fields}, {**BOX, **fields}]
  annotations.append({**BOX, "image_id": 2})
  path = write(src, images, annotations)
  with pytest.raises(ValueError, match=rf"number 1 \(id 5\): {message}"):
    read(path)
  found, _, problems = read(path, skip=True)
  assert [x.images[0].name for x in found] == ["b.png"]
  assert len(problems.messages) == 1


def test_an_annotation_of_no_image_is_named(src):
  path = write(src, annotations=[BOX, {**BOX, "image_id": 9}])
  found, _, problems = read(path, skip=True)
  assert len(found[0].objects) == 1
  (message,) = problems.messages
  assert message.endswith("number 1 (id 5): no image has its image_id 9")


def test_images_listed_twice_are_one(src):
  images = [IMAGE, IMAGE, {**IMAGE, "id": 2}]
  other = {**BOX, "image_id": 2, "bbox": [1, 2, 3, 5]}
  same = {**BOX, "image_id": 2}
  (entry,), _, problems = read(write(src, images, [BOX, other, same]))
  assert [x.box for x in entry.objects] == [(11, 7, 40, 90), (2, 1, 7, 4)]
  assert problems.notes["images listed twice, read as one"][0] == 2


def test_images_without_annotations_stay(src):
  found, _, _ = read(write(src, annotations=[]))
  assert found[0].objects == ()


def test_boxes_as_shares(src):
  fields = {"bbox": [0.25, 0.5, 0.5, 0.375], "area": 0.1875}
  polygon = [[0.25, 0.5, 0.75, 0.5, 0.75, 0.875]]
  path = write(src, annotations=[{**BOX, **fields, "segmentation": polygon}])
  found, _, problems = read(path)
  (thing,) = found[0].objects
  assert thing.shares and thing.box == (0.5, 0.25, 0.875, 0.75)
  assert thing.mask == polygon and thing.area is None
  assert list(problems.notes) == [
    "data sets with boxes from 0 to 1, read as shares"
  ]


def test_boxes_that_are_corners(src):
  corners = [{**BOX, "bbox": [7 + i, 11, 90, 40]} for i in range(7)]
  with pytest.raises(ValueError) as info:
    read(write(src, annotations=corners))
  assert str(info.value) == (
    f"{src}: read as xywh, 5 of 7 boxes do not fit their pictures; read as "
    "xyxy they do: pass --boxes xyxy, or --boxes xywh to keep it"
  )
  found, _, _ = read(src, boxes="xyxy")
  assert found[0].objects[2].box == (11, 9, 40, 90)
  found, _, _ = read(src, boxes="xywh")  # seven prove nothing
  assert found[0].objects[0].box == (11, 7, 51, 97)


def test_paths_of_another_machine(tmp_path):
  image = {**IMAGE, "file_name": "C:\\data\\train2017\\a.png"}
  draw(tmp_path / "train2017" / "a.png")
  path = write(tmp_path / "annotations" / "instances_train2017.json", [image])
  found, _, problems = read(path)
  assert found[0].images[0] == tmp_path / "train2017" / "a.png"
  assert "paths of another machine, found by their end" in problems.notes


WHOLE = {
  **BOX,
  "iscrowd": 0,
  "area": 2407.0,
  "segmentation": [[7, 11, 90, 11, 90, 40]],
}
HALVES = [None, "", "x", 7, -0.5, 1e99, True, [], {}, [[]], [1], [None] * 4]


@pytest.mark.parametrize("key", WHOLE)
def test_half_an_annotation_is_named_or_read(tmp_path, key):
  other = {"id": 2, "file_name": "b.png", "height": 61, "width": 97}
  draw(tmp_path / "a.png", tmp_path / "b.png")
  good = {**BOX, "id": 9, "image_id": 2}
  rest = {k: x for k, x in WHOLE.items() if k != key}
  half = {k: x for k, x in BOX.items() if k in ("id", key)}
  refused = 0
  for bad in (half, rest, *({**rest, key: x} for x in HALVES)):
    src = write(tmp_path / "a.json", (IMAGE, other), (good, bad))
    found, _, problems = read(src, skip=True)
    assert (found[-1].images[0].name, len(found[-1].objects)) == ("b.png", 1)
    if not problems.messages:
      continue
    refused += 1
    where = f"{src}: annotation number 1"
    where += f" (id {bad['id']})" if "id" in bad else ""
    with pytest.raises(ValueError) as info:
      read(src)
    assert str(info.value).startswith(f"{where}: ")
    assert "\n" not in str(info.value)
    assert problems.messages == [str(info.value).strip()]
  assert refused >= {"id": 0, "iscrowd": 5, "segmentation": 0}.get(key, 5)


@pytest.mark.parametrize("bad", [None, 7, "x", [], [BOX], {}])
def test_what_is_no_annotation_is_named(src, bad):
  with pytest.raises(
    ValueError, match=r"a.json: annotation number 0: "
  ) as info:
    read(write(src, annotations=[bad]))
  assert "\n" not in str(info.value)
  found, _, problems = read(write(src, annotations=[bad, BOX]), skip=True)
  assert len(problems.messages) == 1 and len(found) == 1
