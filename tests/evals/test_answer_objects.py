"""Predictions hold their objects, which are drawn, also in other formats."""

import json
import pathlib

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from paligemma.data import location, masks, photos
from paligemma.evals import annotated, answer_objects, object_formats

SIZE = 40, 80
ONE, TWO = ((10, 20, 30, 60), "cat"), ((0, 0, 20, 40), "dog")


def record(*objects, image="a.png", index=0, text=None, **more):
  found = [location.Object(box, label) for box, label in objects]
  line = {
    "image": image,
    "where": "x.jsonl:1",
    "height": SIZE[0],
    "width": SIZE[1],
    "index": index,
    "prediction": location.encode(found, SIZE) if text is None else text,
    "confidences": [0.9, 0.25, 0.5][: len(objects)],
  } | more
  return answer_objects.AddObjects()(line)


def with_mask(label="cat"):
  inside = np.zeros(SIZE, bool)
  inside[12:25, 22:50] = True
  line = record((ONE[0], label))
  line["objects"][0]["mask"] = masks.to_compressed_rle(inside)
  return line, inside


def test_objects_have_boxes_labels_and_scores():
  first, second = record(ONE, TWO)["objects"]
  assert first["label"] == "cat" and first["score"] == 0.9
  np.testing.assert_allclose(first["box"], ONE[0], atol=0.04)
  assert second["label"] == "dog" and second["score"] == 0.25


def test_what_is_malformed_stays_text():
  line = record(ONE, text="<loc0001><loc0002> cat ; barn", confidences=())
  assert line["objects"] == []
  assert line["malformed"].startswith("2 locations and 0 codes, expected 4")
  assert "malformed" not in record(text="a red barn")


def test_sizes_are_checked():
  with pytest.raises(ValueError, match=r"x.jsonl:1: height and width are \('t"):
    record(ONE, height="tall")


def test_records_are_grouped_by_image():
  records = [
    record(ONE, image="/p/a.png"),
    {"index": 1, "error": "b.png: no image"},
    record(ONE, TWO, image=["/p/q/a.jpg", "/p/c.png"], index=2),
    record(TWO, image="/p/a.png", index=3),
    record(image="/p/a.jpg", index=4, text="barn"),
  ]
  found = answer_objects.by_image(records, min_score=0.5)
  assert [x.image for x in found] == ["/p/a.png", "/p/q/a.jpg", "/p/a.jpg"]
  assert [x.name for x in found] == ["a", "q/a", "a-2"]
  assert [x.index for x in found] == [0, 2, 4]
  labels = [[item["label"] for item in x.objects] for x in found]
  assert labels == [["cat", "dog"], ["cat"], []]
  assert found[2].texts == ["barn"] and found[0].size == SIZE
  assert answer_objects.by_image(records[1:2]) == []


def test_coco_is_what_pycocotools_reads(tmp_path):
  line, inside = with_mask()
  answers = answer_objects.by_image([line, record(image="b/b.png", index=1)])
  said = object_formats.make("coco")(answers, tmp_path / "x")
  results, ids = tmp_path / "x.coco.json", tmp_path / "x.coco_ids.json"
  assert said == f"{results}: 1 boxes; {ids}: their ids"
  truth = COCO(ids)
  assert truth.imgs[2] == {"id": 2, "file_name": "b/b.png"} | dict(
    height=40, width=80
  )
  (found,) = truth.loadRes(str(results)).anns.values()
  assert found["image_id"] == 1 and found["category_id"] == 1
  assert found["score"] == 0.9
  read = masks.from_rle(found["segmentation"], *SIZE)
  np.testing.assert_array_equal(read, inside)
  (result,) = json.loads(results.read_text())
  np.testing.assert_allclose(result["bbox"], (20, 10, 40, 20), atol=0.1)


def test_coco_with_the_ids_of_annotations(tmp_path):
  instances = tmp_path / "val.json"
  instances.write_text(
    json.dumps(
      {
        "images": [{"id": 77, "file_name": "other/a.png"}],
        "categories": [{"id": 5, "name": "dog"}],
      }
    )
  )
  write = object_formats.make(f"coco(instances={str(instances)!r})")
  answers = [record(ONE, TWO), record(TWO, image="b.png", index=1)]
  said = write(answer_objects.by_image(answers), tmp_path / "x")
  assert said.endswith(
    f"1 boxes; 2 left out, which {instances} lacks: b.png, cat"
  )
  (result,) = json.loads((tmp_path / "x.coco.json").read_text())
  assert (result["image_id"], result["category_id"]) == (77, 5)
  assert not (tmp_path / "x.coco_ids.json").exists()
  instances.write_text("{}")
  with pytest.raises(
    ValueError, match=r'val.json: expected "images" with file'
  ):
    object_formats.make(f"coco(instances={str(instances)!r})")


def test_yolo(tmp_path):
  answers = answer_objects.by_image(
    [record(ONE, TWO), record(image="q/b.png", index=1)]
  )
  said = object_formats.make("yolo")(answers, tmp_path / "x")
  assert said == f"{tmp_path}/x.yolo: 2 boxes of 2 images"
  folder = tmp_path / "x.yolo"
  assert (folder / "classes.txt").read_text() == "cat\ndog\n"
  assert (folder / "labels/q/b.txt").read_text() == ""
  found = np.loadtxt(folder / "labels/a.txt")
  expected = [[0, 0.5, 0.5, 0.5, 0.5, 0.9], [1, 0.25, 0.25, 0.5, 0.5, 0.25]]
  np.testing.assert_allclose(found, expected, atol=1e-3)


def test_yolo_with_the_classes_of_a_file(tmp_path):
  classes = tmp_path / "classes.txt"
  classes.write_text("bird\ndog\n")
  write = object_formats.make(f"yolo(classes={str(classes)!r})")
  said = write(answer_objects.by_image([record(ONE, TWO)]), tmp_path / "x")
  assert said.endswith(f"1 left out, which {classes} lacks: cat")
  assert (tmp_path / "x.yolo/labels/a.txt").read_text().startswith("1 0.25")


def test_unknown_formats_are_named():
  with pytest.raises(ValueError, match='unknown format "coc", expected one of'):
    object_formats.make("coc")


@pytest.mark.filterwarnings("ignore:OpenCV:UserWarning")
def test_supervision():
  line, inside = with_mask()
  found = object_formats.to_supervision(line["objects"])
  np.testing.assert_allclose(found.xyxy, [[20, 10, 60, 30]], atol=0.1)
  np.testing.assert_array_equal(found.mask, inside[None])
  assert found.confidence.tolist() == [0.9] and found.class_id.tolist() == [0]
  found = object_formats.to_supervision(
    record(TWO, ONE)["objects"], ["bird", "cat", "dog"]
  )
  assert found.class_id.tolist() == [2, 1] and found.mask is None
  assert found.data["class_name"].tolist() == ["dog", "cat"]
  assert len(object_formats.to_supervision([])) == 0
  with pytest.raises(
    ValueError, match='unknown class "cat", expected one of: b'
  ):
    object_formats.to_supervision(line["objects"], ["bird"])


def test_supervision_is_missing(monkeypatch):
  monkeypatch.setitem(__import__("sys").modules, "supervision", None)
  with pytest.raises(
    ValueError, match=r'pip install "paligemma\[supervision\]'
  ):
    object_formats.to_supervision([])


def test_pictures_are_drawn_once(tmp_path):
  Image.new("RGB", SIZE[::-1], "blue").save(tmp_path / "a.png")
  Image.new("RGB", SIZE[::-1], "blue").save(tmp_path / "b.jpg")
  source = photos.Photos([tmp_path])
  records = [
    record(ONE, image=f"{tmp_path}/a.png"),
    record(image=f"{tmp_path}/b.jpg", index=1, text="a barn"),
  ]
  out, seen = tmp_path / "out", []

  def draw():
    answers = answer_objects.by_image(records)
    annotated.write(answers, source, out, progress=lambda *n: seen.append(n))
    return {path.name: path.stat().st_mtime_ns for path in out.iterdir()}

  first = draw()
  assert first.keys() == {"a.png", "b.jpg"}
  assert seen == [(0, 2), (1, 2), (2, 2)]
  for name in first:
    with Image.open(out / name) as picture:
      assert picture.format == {"a": "PNG", "b": "JPEG"}[name[0]]
      pixels = np.asarray(picture)
      assert (pixels != pixels[-1, -1]).any()
  (out / "b.jpg").unlink()
  records[0] = record(TWO, image=f"{tmp_path}/a.png")
  second = draw()
  assert all(second[name] != first[name] for name in first)
  assert draw() == second
  pathlib.Path(tmp_path / "a.png").unlink()
  records[0] = record(ONE, image=f"{tmp_path}/a.png")
  with pytest.raises(ValueError, match=r"a.png: cannot read image: No such"):
    draw()
