"""One made-up data set in five formats comes out as the same lines."""

import csv
import dataclasses
import io
import json
import pathlib
import sys
import types

import numpy as np
import pytest
from PIL import Image

from paligemma.data import (
  location,
  mask_codes,
  masks,
  object_ops,
  sequence,
  sources,
  tokenizer,
)
from scripts import import_data
from scripts.imports import entries, pixels, yolo_labels
from tests.scripts.imports.same_data import (
  LABELS,
  MAKERS,
  TRUTH,
  coco_content,
  encoded,
  hf_objects,
  make_coco,
  make_csv,
  make_parquet,
  make_voc,
  make_yolo,
  write_images,
)

ROOT = pathlib.Path(__file__).parents[2]
GOLDEN = ROOT / "tests/goldens/mask_codec/mask_codec.npz"
TOKENIZER = ROOT / "paligemma/assets/tiny_tokenizer.model"


def run(kind, src, out, task="detect", **arguments):
  kind = "hf" if kind == "parquet" else kind
  return import_data.import_data(kind, src, out, task=task, **arguments)


def lines_of(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("kind", MAKERS)
def test_boxes_of_every_format(kind, tmp_path):
  out = tmp_path / "deep" / "out"
  _, about = run(kind, MAKERS[kind](tmp_path / "src"), out)
  assert not about.left_out and not about.notes
  source = sources.Jsonl(out / "train.jsonl")
  assert len(source) == len(TRUTH)
  for i, (size, things) in enumerate(TRUTH.values()):
    example = source[i]  # its image is where the line says
    with Image.open(io.BytesIO(example["image"])) as picture:
      assert picture.size == size[::-1]
    assert example["prefix"] == "detect cat ; red dog"
    assert (example["height"], example["width"]) == size
    assert [x["label"] for x in example["objects"]] == [x for x, _ in things]
    for thing, (_, box) in zip(example["objects"], things, strict=True):
      np.testing.assert_allclose(thing["box"], box, rtol=0, atol=1e-9)
    found = location.parse(example["suffix"], size)
    assert [thing.label for thing in found] == [label for label, _ in things]
    for thing, (_, box) in zip(found, things, strict=True):
      assert not thing.problem
      half_bin = max(size) / 1023 / 2
      np.testing.assert_allclose(thing.box, box, rtol=0, atol=half_bin)


def test_formats_agree(tmp_path):
  wanted = None
  for kind, make in MAKERS.items():
    records, _ = run(kind, make(tmp_path / kind), tmp_path / f"{kind}_out")
    found = [(r["prefix"], r["suffix"]) for r in records["train"]]
    wanted = wanted or found
    assert found == wanted, kind


def test_labels_that_are_present(tmp_path):
  src = make_coco(tmp_path / "src")
  records, _ = run("coco", src, tmp_path / "out", labels="present")
  found = [(r["image"], r["prefix"]) for r in records["train"]]
  assert found == [
    ("../src/a.png", "detect cat ; red dog"),
    ("../src/b.jpg", "detect cat"),
  ]


def test_declared_labels_are_asked_for_even_where_there_are_none(tmp_path):
  src = make_coco(tmp_path / "src")
  content = coco_content()
  content["categories"].append({"id": 99, "name": "unicorn"})
  src.write_text(json.dumps(content))
  records, _ = run("coco", src, tmp_path / "out")
  assert records["train"][1]["prefix"] == "detect cat ; red dog ; unicorn"


def test_coco_crowds_areas_and_ids(tmp_path):
  src = make_coco(tmp_path / "src")
  content = coco_content()
  content["annotations"][0]["iscrowd"] = 1
  content["annotations"][1]["area"] = 123.5
  src.write_text(json.dumps(content))
  records, _ = run("coco", src, tmp_path / "out")
  first = records["train"][0]
  assert first["image_id"] == 7
  assert [x.label for x in location.parse(first["suffix"], (53, 97))] == [
    "red dog"
  ]
  assert first["objects"][0]["iscrowd"] == 1
  assert first["objects"][1]["area"] == 123.5
  assert "iscrowd" not in first["objects"][1]


def test_boxes_a_pixel_outside_are_clipped(tmp_path):
  src = make_coco(tmp_path / "src")
  content = coco_content()
  content["annotations"][2]["bbox"] = [-0.5, 0.25, 44, 61.5]
  src.write_text(json.dumps(content))
  records, _ = run("coco", src, tmp_path / "out")
  assert records["train"][1]["objects"][0]["box"] == [0.25, 0, 61, 43]


CODES = tuple(range(3, 19))


@pytest.fixture
def codec(monkeypatch):
  """In the place of a codec: it remembers its masks, and has fixed codes."""
  seen = []

  class Encoder:
    def __init__(self, path):
      assert path == "vae.npz"

    def codes(self, batch):
      if batch.any():
        seen.append(np.array(batch))
      return np.tile(CODES, (len(batch), 1))

  monkeypatch.setattr(mask_codes, "Encoder", Encoder)
  return seen


def polygon(box):
  """The right upper half of a box."""
  y0, x0, y1, x1 = box
  return [x0, y0, x1, y0, x1, y1]


def runs(mask):
  """Lengths of runs, column by column, the first one outside of the mask."""
  columns = np.r_[False, mask.T.ravel(), False].astype(int)
  edges = np.flatnonzero(np.diff(columns))
  return np.diff([0, *edges, mask.size]).tolist()


@pytest.mark.parametrize("kind", ["coco", "rle", "yolo"])
def test_masks(kind, tmp_path, codec):
  box = TRUTH["b.jpg"][1][0][1]
  size = TRUTH["b.jpg"][0]
  mask = masks.from_polygons([polygon(box)], *size)
  if kind == "yolo":
    src = make_yolo(tmp_path / "src")
    shares = np.reshape(polygon(box), (-1, 2)) / size[::-1]
    words = " ".join(map(str, shares.ravel()))
    folder = tmp_path / "src" / "labels" / "train"
    (folder / "a.txt").unlink()
    (folder / "b.txt").write_text(f"0 {words}\n")
  else:
    src = make_coco(tmp_path / "src")
    content = coco_content()
    content["annotations"] = content["annotations"][2:]
    content["annotations"][0]["segmentation"] = [polygon(box)]
    if kind == "rle":
      rle = {"size": list(size), "counts": runs(mask)}
      content["annotations"][0]["segmentation"] = rle
    src.write_text(json.dumps(content))
  kind = "coco" if kind == "rle" else kind
  records, _ = run(kind, src, tmp_path / "out", "segment", codec="vae.npz")
  example = records["train"][1]
  assert example["prefix"] == "segment cat ; red dog"
  (found,) = location.parse(example["suffix"], size)
  assert (found.codes, found.label) == (CODES, "cat")
  ((cut,),) = codec
  np.testing.assert_allclose(cut, masks.crop(mask, box), atol=1e-6)
  # What FromCoco makes masks of.
  (annotation,) = example["annotations"]
  assert annotation["category_id"] == "cat"
  again = annotation["segmentation"]
  decode = masks.from_rle if isinstance(again, dict) else masks.from_polygons
  np.testing.assert_array_equal(decode(again, *size), mask)


def test_annotations_are_what_from_coco_reads(tmp_path, codec):
  src = make_coco(tmp_path / "src")
  content = coco_content()
  for annotation in content["annotations"]:
    x, y, w, h = annotation["bbox"]
    annotation["segmentation"] = [polygon((y, x, y + h, x + w))]
  src.write_text(json.dumps(content))
  run("coco", src, tmp_path / "out", "segment", codec="vae.npz")
  example = sources.Jsonl(tmp_path / "out" / "train.jsonl")[0]
  op = object_ops.FromCoco(masks=True)
  things = op(example, np.random.default_rng(0))["objects"]
  assert [(t["label"], t["box"]) for t in things] == TRUTH["a.png"][1]
  for thing in things:
    expected = masks.from_polygons([polygon(thing["box"])], 53, 97)
    np.testing.assert_array_equal(thing["mask"], expected)


def test_codes_of_a_codec_in_a_file(tmp_path):
  golden = np.load(GOLDEN)
  flat = {
    name.removeprefix("params/"): golden[name]
    for name in golden.files
    if name.startswith("params/")
  }
  np.savez(tmp_path / "codec.npz", **flat)
  inside = golden["masks"] > 0.5
  content = {"images": [], "annotations": [], "categories": [{"id": 1}]}
  content["categories"][0]["name"] = "cat"
  for i, mask in enumerate(inside):
    size = {"height": 64, "width": 64, "file_name": f"{i}.png"}
    (tmp_path / f"{i}.png").write_bytes(encoded((64, 64)))
    content["images"].append({"id": i, **size})
    y0, x0, y1, x1 = masks.bounding_box(mask)
    annotation = {
      "image_id": i,
      "category_id": 1,
      "bbox": [x0, y0, x1 - x0, y1 - y0],
      "segmentation": {"size": [64, 64], "counts": runs(mask)},
    }
    content["annotations"].append(annotation)
  (tmp_path / "coco.json").write_text(json.dumps(content))
  records, _ = run(
    "coco",
    tmp_path / "coco.json",
    tmp_path / "out",
    "segment",
    codec=tmp_path / "codec.npz",
  )
  encoder = mask_codes.Encoder(tmp_path / "codec.npz")  # in NumPy
  for mask, example in zip(inside, records["train"], strict=True):
    (found,) = location.parse(example["suffix"], (64, 64))
    assert found.codes == encoder(mask, masks.bounding_box(mask))


def test_segmentation_wants_a_codec(tmp_path):
  src = make_coco(tmp_path / "src")
  with pytest.raises(ValueError, match="--mask_codec FILE, such as vae-oid"):
    run("coco", src, tmp_path / "out", "segment")


def test_coco_captions(tmp_path):
  src = make_coco(tmp_path / "src")
  content = coco_content()
  content["annotations"] = [
    {"image_id": 7 + i % 3, "caption": f"a barn {i}\n"} for i in range(5)
  ]
  del content["categories"]
  src.write_text(json.dumps(content))
  records, _ = run("coco", src, tmp_path / "out", "caption")
  assert records["train"][1] == {
    "image": "../src/b.jpg",
    "image_id": 8,
    "prefix": "caption en",
    "suffix": "a barn 1",
    "captions": ["a barn 1", "a barn 4"],
  }


def test_csv_captions_of_one_image_come_together(tmp_path):
  write_images(tmp_path / "src")
  src = tmp_path / "src" / "titles.tsv"
  rows = [("file", "title"), ("a.png", "one, two"), ("b.jpg", "x")]
  rows += [("a.png", " three ")]
  src.write_text("".join("\t".join(row) + "\n" for row in rows))
  records, _ = run(
    "csv",
    src,
    tmp_path / "out",
    "caption",
    names={"image": "file", "caption": "title"},
  )
  found = [(r["image"], r["captions"]) for r in records["train"]]
  assert found == [
    ("../src/a.png", ["one, two", "three"]),
    ("../src/b.jpg", ["x"]),
  ]


def test_csv_questions_stand_alone(tmp_path):
  write_images(tmp_path / "src")
  src = tmp_path / "src" / "q.csv"
  with src.open("w", newline="") as file:
    writer = csv.writer(file)
    writer.writerow(["image", "question", "answer", "kind"])
    writer.writerow(["a.png", 'is it "red",\nor not?', "yes", "5"])
    writer.writerow(["a.png", "why?", "no", "6"])
  records, _ = run("csv", src, tmp_path / "out", "vqa")
  assert records["train"] == [
    {
      "image": "../src/a.png",
      "kind": "5",
      "prefix": 'answer en is it "red",\nor not?',
      "suffix": "yes",
      "question": 'is it "red",\nor not?',
      "answers": ["yes"],
    },
    {
      "image": "../src/a.png",
      "kind": "6",
      "prefix": "answer en why?",
      "suffix": "no",
      "question": "why?",
      "answers": ["no"],
    },
  ]


def test_the_most_common_answer_is_the_one_to_learn(tmp_path):
  write_images(tmp_path / "src")
  row = {"file_name": "a.png", "question": "q", "answers": ["x", "y", "y"]}
  (tmp_path / "src" / "metadata.jsonl").write_text(json.dumps(row))
  records, _ = run("hf", tmp_path / "src", tmp_path / "out", "vqa")
  assert records["train"][0]["suffix"] == "y"
  assert records["train"][0]["answers"] == ["x", "y", "y"]


def test_hf_splits_are_folders(tmp_path):
  for split in ("train", "validation"):
    write_images(tmp_path / "src" / split)
    (tmp_path / "src" / split / "metadata.csv").write_text(
      f"file_name,text\na.png,{split}\n"
    )
  records, _ = run("hf", tmp_path / "src", tmp_path / "out", "caption")
  assert {k: v[0]["captions"] for k, v in records.items()} == {
    "train": ["train"],
    "val": ["validation"],
  }
  assert (tmp_path / "out" / "val.jsonl").exists()


def test_parquet_categories_have_names_in_the_schema(tmp_path):
  def numbered(things):
    found = hf_objects(things)
    found["category"] = [LABELS.index(label) for label in found["category"]]
    return found

  names = [*LABELS, "unicorn"]
  feature = {"category": {"feature": {"names": names}}, "bbox": {}}
  described = {"info": {"features": {"objects": {"feature": feature}}}}
  src = make_parquet(
    tmp_path / "src", numbered, huggingface=json.dumps(described)
  )
  records, _ = run("hf", src, tmp_path / "out")
  found = records["train"][0]["objects"]
  assert [x["label"] for x in found] == ["cat", "red dog"]
  assert records["train"][0]["image"].startswith("images/train/train-00000-of")
  assert records["train"][0]["prefix"] == "detect cat ; red dog ; unicorn"


def test_objects_can_be_a_list_of_each(tmp_path):
  write_images(tmp_path / "src", ["a.png"])
  things = [{"bbox": [5, 3, 84, 28], "label": "cat", "id": 4}]
  row = {"file_name": "a.png", "objects": things, "seen": True}
  (tmp_path / "src" / "metadata.jsonl").write_text(json.dumps(row))
  records, _ = run("hf", tmp_path / "src", tmp_path / "out")
  (example,) = records["train"]
  assert example["objects"] == [{"box": [3, 5, 31, 89], "label": "cat"}]
  assert example["seen"] is True


def test_yolo_splits_lists_and_roboflow_paths(tmp_path):
  src = make_yolo(tmp_path / "src")
  write_images(tmp_path / "src" / "valid" / "images", ["b.jpg"])
  (tmp_path / "src" / "valid" / "labels").mkdir()
  (tmp_path / "src" / "valid" / "labels" / "b.txt").touch()
  (tmp_path / "src" / "some.txt").write_text("images/train/a.png\n")
  (src / "data.yaml").write_text(
    "train: some.txt\nval: ../valid/images\nnc: 2\nnames: [cat, red dog]\n"
  )
  records, _ = run("yolo", src / "data.yaml", tmp_path / "out")
  found = {k: [r["image"] for r in v] for k, v in records.items()}
  assert found == {
    "train": ["../src/images/train/a.png"],
    "val": ["../src/valid/images/b.jpg"],
  }


def test_label_paths_of_yolo():
  path = pathlib.Path("/images/x/images/train/a.b.png")
  assert yolo_labels.path_of(path) == pathlib.Path(
    "/images/x/labels/train/a.b.txt"
  )
  assert yolo_labels.path_of(pathlib.Path("x/a.png")) == pathlib.Path("x/a.txt")


def test_voc_splits_and_images_beside_xml(tmp_path):
  src = make_voc(tmp_path / "src")
  sets = src / "ImageSets" / "Main"
  sets.mkdir(parents=True)
  (sets / "train.txt").write_text("a\nc  1\n")
  (sets / "val.txt").write_text("b -1\n")
  (sets / "trainval.txt").write_text("a\nb\nc\n")
  records, _ = run("voc", src, tmp_path / "out")
  found = {
    k: [pathlib.Path(r["image"]).name for r in v] for k, v in records.items()
  }
  assert found == {"train": ["a.png", "c.png"], "val": ["b.jpg"]}
  flat = tmp_path / "flat"
  write_images(flat)
  text = (src / "Annotations" / "a.xml").read_text()
  (flat / "a.xml").write_text(text.replace("<filename>a.png</filename>", ""))
  records, _ = run("voc", flat, tmp_path / "flat_out")
  assert [r["image"] for r in records["train"]] == ["../flat/a.png"]


def test_exif_orientation(tmp_path):
  src = make_coco(tmp_path / "src")
  exif = Image.Exif()
  exif[0x0112] = 6
  data = encoded((43, 61), ".jpg", exif=exif)  # b.jpg, lying
  (tmp_path / "src" / "b.jpg").write_bytes(data)
  records, _ = run("coco", src, tmp_path / "out")
  assert records["train"][1]["height"] == 61
  content = coco_content()
  content["images"][1].update(height=43, width=61)
  src.write_text(json.dumps(content))
  with pytest.raises(ValueError, match=r"image 8: .* before its EXIF orient"):
    run("coco", src, tmp_path / "out2")


def test_copies(tmp_path):
  src = make_coco(tmp_path / "src")
  run("coco", src, tmp_path / "out", copy=True)
  source = sources.Jsonl(tmp_path / "out" / "train.jsonl")
  assert source[1]["_image_path"] == "images/train/b.jpg"
  assert source[1]["image"] == (tmp_path / "src" / "b.jpg").read_bytes()


def test_copies_of_one_name(tmp_path):
  src = make_coco(tmp_path / "src")
  write_images(tmp_path / "src" / "more", ["a.png"])
  content = coco_content()
  content["images"].append({**content["images"][0], "id": 1})
  content["images"][-1]["file_name"] = "more/a.png"
  src.write_text(json.dumps(content))
  records, _ = run("coco", src, tmp_path / "out", copy=True)
  assert [line["image"] for line in records["train"]] == [
    "images/train/a.png",
    "images/train/b.jpg",
    "images/train/c.png",
    "images/train/a-2.png",
  ]


def change(path, *keys, **fields):
  """Makes a damage to a JSON file: changes or, with None, removes fields."""

  def damage(folder):
    content = json.loads((folder / path).read_text())
    place = content
    for key in keys:
      place = place[key]
    for name, value in fields.items():
      place[name] = value
      if value is None:
        del place[name]
    (folder / path).write_text(json.dumps(content))

  return damage


def replace(path, old, new, count=1):
  def damage(folder):
    text = (folder / path).read_text()
    assert old in text
    (folder / path).write_text(text.replace(old, new, count))

  return damage


def remove(path):
  return lambda folder: (folder / path).unlink()


def no_image(path):
  return lambda folder: (folder / path).write_bytes(b"no image")


BAD_COCO = [
  (
    change("coco.json", "annotations", 1, bbox=[2, 7, -39, 43]),
    r"\(id 1\): box .*inv",
  ),
  (
    change("coco.json", "annotations", 1, bbox=[2, 7, 0, 43]),
    r"\(id 1\): .*without ar",
  ),
  (
    change("coco.json", "annotations", 1, bbox=[97, 7, 9, 4]),
    r"\(id 1\): .*outside of",
  ),
  (
    change("coco.json", "annotations", 1, bbox=[2, 7, 39]),
    r"\(id 1\): expected 4 numb",
  ),
  (
    change("coco.json", "annotations", 1, bbox="no"),
    r"\(id 1\): expected 4 numbers of a box",
  ),
  (
    change("coco.json", "annotations", 1, bbox=None),
    r'\(id 1\): missing key "bbox"',
  ),
  (
    change("coco.json", "annotations", 1, category_id=2),
    r"\(id 1\): unknown category_",
  ),
  (
    change("coco.json", "annotations", 1, image_id=99),
    r"\(id 1\): no image has its im",
  ),
  (
    change("coco.json", "images", 0, file_name="no.png"),
    r"7: .*image .*no\.png",
  ),
  (change("coco.json", "images", 0, height=54), "7: annotated as 54x97 pixels"),
  (
    change("coco.json", "images", 0, id=8),
    "image number 1: its id 8 is that of",
  ),
  (
    change("coco.json", "categories", 0, name="a;b"),
    r'\(id 0\): label "a;b" holds',
  ),
  (
    change("coco.json", "categories", 0, id=4),
    "category number 1: its id 4 is",
  ),
  (change("coco.json", images=None), 'missing key "images", found annotations'),
  (
    replace("coco.json", '"id"', '\n"id" 1'),
    r"json:2: malformed JSON at colum",
  ),
  (no_image("a.png"), r"image 7: .*a\.png\b.* image"),
]
BAD_YOLO = [
  (replace("labels/train/b.txt", "0 ", "2 "), r"b\.txt:1: unknown class 2, ex"),
  (
    replace("labels/train/b.txt", "0 0.5", "0 1.5"),
    r"b\.txt:1: .* found 1\.5",
  ),
  (replace("labels/train/b.txt", " 1.0", " -1"), r"b\.txt:1: .* found -1"),
  (
    replace("labels/train/b.txt", " 1.0", " 0"),
    r"b\.txt:1: .* is without area",
  ),
  (
    replace("labels/train/b.txt", " 1.0", ""),
    r"b\.txt:1: found 4 numbers, exp",
  ),
  (
    replace("labels/train/b.txt", "0 ", "cat "),
    r"b\.txt:1: expected 5 numbers",
  ),
  (remove("images/train/b.jpg"), r"b\.txt: missing image of these labels in"),
  (no_image("images/train/b.jpg"), r"b\.txt: .*b\.jpg\b.* image"),
  (replace("data.yaml", "1: ", "3: "), r"a name for each of 2 .* of 0, 3$"),
  (replace("data.yaml", "train:", "names: ["), r"yaml:\d: malformed YAML: "),
  (replace("data.yaml", "train:", "trian:"), 'has none of "train", "val" and'),
  (replace("data.yaml", "names", "nmaes"), 'missing key "names", .* "nmaes"'),
  (replace("data.yaml", "/train", "/tarin"), '"train": no such folder or list'),
]
BAD_VOC = [
  (
    replace("Annotations/b.xml", ">43</xm", ">0</xm"),
    r"b\.xml: .* without area",
  ),
  (replace("Annotations/b.xml", ">1</xmi", ">51</xmi"), r"b\.xml: .* inverted"),
  (
    replace("Annotations/b.xml", ">43</xm", ">x</xm"),
    r"1: expected 4 numbers ",
  ),
  (
    replace("Annotations/b.xml", "xmax", "xmx", 2),
    "object 1: bndbox has no xm",
  ),
  (replace("Annotations/b.xml", "bndbox", "box", 2), "1: cat has no bndbox"),
  (replace("Annotations/b.xml", "name>cat", "name>"), "1: object has no name"),
  (
    replace("Annotations/b.xml", "</object>", ""),
    r"xml:\d: malformed XML at col",
  ),
  (
    replace("Annotations/b.xml", ">43</w", ">44</w"),
    r"b\.xml: annotated as 61x4",
  ),
  (remove("JPEGImages/b.jpg"), r"b\.xml: missing image b\.jpg or b\.\*: "),
]
BAD_CSV = [
  (replace("boxes.csv", "0,0,43", "43,0,0"), r"csv:4: box .* is inverted"),
  (replace("boxes.csv", "0,0,43", "0,0,0"), r"csv:4: box .* is without area"),
  (replace("boxes.csv", "0,0,43", "43,0,99"), r"csv:4: box .* is outside of"),
  (
    replace("boxes.csv", "0,0,43", "0,zero,43"),
    r"csv:4: expected 4 numbers xmi",
  ),
  (replace("boxes.csv", "61,cat", "61,"), r"csv:4: box without a label"),
  (
    replace("boxes.csv", "61,cat", "61"),
    r"csv:4: found 5 cells, expected 6: im",
  ),
  (
    replace("boxes.csv", "b.jpg", '"b.jpg'),
    r"csv:5: malformed CSV: unexpected",
  ),
  (replace("boxes.csv", "b.jpg", "no.jpg"), r"csv:4: .*image .*no\.jpg"),
  (
    replace("boxes.csv", "ymin", "upper"),
    r"no column ymin or .*, found image, .* ymin=C",
  ),
  (
    replace("boxes.csv", "ymin", "xmin"),
    r"csv:1: expected a header of differe",
  ),
]
BAD_HF = [
  (replace("metadata.jsonl", "[[5, 3", "[[97, 3"), r"l:1: object 0: .*outside"),
  (
    replace("metadata.jsonl", "[[5, 3, 84", "[[5, 3, -84"),
    r"l:1: object 0: .*in",
  ),
  (
    replace("metadata.jsonl", "[[5, 3, 84", "[[5, 3"),
    r"l:1: object 0: expected",
  ),
  (
    replace("metadata.jsonl", '"cat", ', ""),
    r"l:1: expected lists of one leng",
  ),
  (
    replace("metadata.jsonl", '"cat"', "17"),
    r"l:1: object 0: category 17 is a",
  ),
  (
    replace("metadata.jsonl", "bbox", "bbx"),
    r'object 0: missing key "bbox", fo',
  ),
  (
    replace("metadata.jsonl", "a.png", "no.png"),
    r"l:1: .*image .*no\.png",
  ),
  (
    replace("metadata.jsonl", "objects", "obects"),
    "l:1: no column objects, fou",
  ),
  (replace("metadata.jsonl", "}}", "}"), r"l:1: malformed JSON at column"),
  (remove("metadata.jsonl"), "no metadata.jsonl or .* no Parquet file in this"),
]


@pytest.mark.parametrize(
  ("kind", "damage", "message"),
  [
    (kind, damage, message)
    for kind, cases in {
      "coco": BAD_COCO,
      "yolo": BAD_YOLO,
      "voc": BAD_VOC,
      "csv": BAD_CSV,
      "hf": BAD_HF,
    }.items()
    for damage, message in cases
  ],
)
def test_bad_annotations_are_named(kind, damage, message, tmp_path):
  src = MAKERS[kind](tmp_path / "src")
  damage(tmp_path / "src")
  with pytest.raises(ValueError, match=message) as info:
    run(kind, src, tmp_path / "out")
  assert str(info.value).startswith(str(tmp_path / "src"))
  assert "\n" not in str(info.value)
  assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
  ("kind", "damage", "images", "objects"),
  [
    ("coco", BAD_COCO[0][0], 2, 1),
    ("coco", BAD_COCO[8][0], 2, 1),
    ("yolo", BAD_YOLO[2][0], 2, 2),
    ("yolo", BAD_YOLO[6][0], 2, 2),
    ("voc", BAD_VOC[0][0], 2, 2),
    ("voc", BAD_VOC[8][0], 2, 2),
    ("csv", BAD_CSV[0][0], 2, 2),
    ("csv", BAD_CSV[7][0], 2, 2),
    ("hf", BAD_HF[0][0], 2, 1),
    ("hf", BAD_HF[6][0], 2, 1),
  ],
)
def test_images_with_bad_annotations_are_left_out(
  kind, damage, images, objects, tmp_path, capsys, monkeypatch
):
  src = MAKERS[kind](tmp_path / "src")
  damage(tmp_path / "src")
  command(
    monkeypatch, kind, src, tmp_path / "out", "--task=detect", "--skip_bad"
  )
  out, err = capsys.readouterr()
  path = tmp_path / "out" / "train.jsonl"
  assert out.splitlines()[1].split() == [
    "train",
    str(images),
    str(images),
    "50.0%",
    "1",
    str(objects),
  ]
  assert out.splitlines()[-1] == f"wrote {path}"
  assert err.count("left out: ") == 1
  assert len(lines_of(path)) == images


def command(monkeypatch, kind, *arguments):
  arguments = ["import_data", "--from", kind, *map(str, arguments)]
  monkeypatch.setattr(sys, "argv", arguments)
  import_data.main()


def test_the_help_tells_what_each_format_reads(capsys, monkeypatch):
  monkeypatch.setenv("COLUMNS", "200")
  with pytest.raises(SystemExit):
    command(monkeypatch, "coco", "--help")
  out = capsys.readouterr().out
  _, _, table = out.partition("formats, and what SRC is:\n")
  rows = [line.split(maxsplit=1) for line in table.splitlines()]
  assert [kind for kind, _ in rows] == list(import_data.FORMATS)
  assert all(text.endswith(".") for _, text in rows)
  assert max(map(len, table.splitlines())) <= 80
  assert (
    "  yolo           data.yaml, or its folder, with a text file for" in out
  )
  assert "for csv, hf and label_studio: the columns, or keys, that have" in out
  assert "for coco, csv and hf: what the four numbers of a box are" in out


def test_command(tmp_path, capsys, monkeypatch):
  src = make_csv(tmp_path / "src")
  text = src.read_text()
  src.write_text(text.replace("label", "animal").replace("image", "photo"))
  out = tmp_path / "out"
  command(
    monkeypatch,
    "csv",
    "--task=detect",
    "--columns=label=animal,image=photo",
    "--val=0.34",
    src,
    out,
  )
  assert capsys.readouterr().out.count("wrote") == 2
  assert len(lines_of(out / "train.jsonl")) == 2
  assert len(lines_of(out / "val.jsonl")) == 1


@pytest.mark.parametrize(
  ("kind", "arguments", "message"),
  [
    ("csv", {"task": "segment"}, "a table has nothing for --task segment"),
    ("hf", {"task": "segment"}, "has no masks to segment"),
    ("hf", {"images": "x"}, "--images is of no use"),
    ("coco", {"task": "vqa"}, "image 7: the image has no question"),
    ("coco", {"task": "caption"}, "image 7: the image has no caption"),
    ("coco", {"names": {"image": "x"}}, "coco has no columns to name"),
    ("voc", {"boxes": "xyxy"}, "--boxes: voc says itself what its boxes are"),
    (
      "csv",
      {"names": {"imag": "x"}},
      'unknown name in --columns "imag", .*"im',
    ),
    (
      "csv",
      {"names": {"label": "lable"}},
      'no column "lable", .* mean "label"',
    ),
    ("coco", {"val": 1.5}, "--val is 1.5, expected a share between 0 and 1"),
  ],
)
def test_bad_arguments(kind, arguments, message, tmp_path):
  src = MAKERS[kind](tmp_path / "src")
  with pytest.raises(ValueError, match=message):
    run(kind, src, tmp_path / "out", **arguments)


def test_masks_that_are_missing_or_elsewhere(tmp_path, codec):
  src = make_coco(tmp_path / "src")
  content = coco_content()
  for annotation in content["annotations"]:
    annotation["segmentation"] = [[50, 40, 90, 40, 90, 52]]
  src.write_text(json.dumps(content))
  with pytest.raises(
    ValueError, match=r"number 0 \(id 0\): nothing of the mask lies in"
  ):
    run("coco", src, tmp_path / "out", "segment", codec="vae.npz")
  del content["annotations"][0]["segmentation"]
  src.write_text(json.dumps(content))
  with pytest.raises(
    ValueError, match=r"number 0 \(id 0\): no mask, expected polygons"
  ):
    run("coco", src, tmp_path / "out", "segment", codec="vae.npz")


def test_nothing_is_overwritten(tmp_path):
  src = make_coco(tmp_path / "src")
  run("coco", src, tmp_path / "out")
  with pytest.raises(
    ValueError, match=r"train\.jsonl: exists; remove it or na"
  ):
    run("coco", src, tmp_path / "out")


def test_nothing_to_write(tmp_path):
  src = make_coco(tmp_path / "src")
  for name in TRUTH:
    (tmp_path / "src" / name).unlink()
  with pytest.raises(
    ValueError,
    match=r"nothing to write, 3 images or annotations are bad; the first: .* ",
  ):
    run("coco", src, tmp_path / "out", skip_bad=True)


def test_options_go_to_the_formats_that_take_them(tmp_path, monkeypatch):
  def read(request):
    image = request.src / "a.png"
    box = entries.BOXES[request.boxes](10, 5, 8, 4)
    things = (entries.Object("cat", box, "here"),)
    yield entries.Entry((image,), "a", objects=things)

  write_images(tmp_path)
  monkeypatch.setitem(
    import_data.FORMATS, "ours", types.SimpleNamespace(read=read)
  )
  monkeypatch.setitem(import_data.TAKEN_BY, "boxes", ("ours",))
  records, _ = run("ours", tmp_path, tmp_path / "out", boxes="cxcywh")
  assert records["train"][0]["objects"][0]["box"] == [3, 6, 7, 14]


def test_all_answers_empty(tmp_path):
  src = make_yolo(tmp_path / "src")
  for path in (tmp_path / "src" / "labels" / "train").iterdir():
    path.write_text("")
  for labels in ("all", "present"):
    with pytest.raises(
      ValueError, match="src: none of 3 images has an object, all answers would"
    ):
      run("yolo", src, tmp_path / "out", labels=labels)
  assert not (tmp_path / "out").exists()
  assert [path.name for path in tmp_path.iterdir()] == ["src"]


def boxes_of(folder, corners):
  """A CSV of boxes (xmin, ymin, xmax, ymax) in one image each, of 97x53."""
  write_images(folder, ["a.png"])
  lines = [f"a.png,{','.join(map(str, box))},cat" for box in corners]
  path = folder / "boxes.csv"
  path.write_text("\n".join(["image,xmin,ymin,xmax,ymax,label", *lines]))
  return path


@pytest.mark.parametrize(
  ("outside", "inside", "stops"),
  [(5, 44, True), (5, 45, False), (4, 1, False)],
)
def test_boxes_that_are_read_as_what_they_are_not(
  outside, inside, stops, tmp_path
):
  corners = [(60, 20, 180, 70)] * outside + [(3, 5, 90, 31)] * inside
  src = boxes_of(tmp_path / "src", corners)
  if stops:
    message = r"csv:2: this and 4 more of 49 boxes lie for the most part outsid"
    with pytest.raises(ValueError, match=message):
      run("csv", src, tmp_path / "out")
    return
  _, about = run("csv", src, tmp_path / "out")
  assert about.notes == {pixels.MOSTLY_OUTSIDE: (outside, f"{src}:2")}


def test_an_image_without_a_bad_object_stays_whole_or_goes(tmp_path):
  src = make_coco(tmp_path / "src")
  content = coco_content()
  content["annotations"][0]["bbox"] = [150, 3, 84, 28]
  src.write_text(json.dumps(content))
  records, about = run("coco", src, tmp_path / "out", skip_bad=True)
  assert [x["image"] for x in records["train"]] == [
    "../src/b.jpg",
    "../src/c.png",
  ]
  (message,) = about.left_out
  assert (
    "annotation number 0 (id 0): box (y0, x0, y1, x1) = (3, 150, 31, 2"
    in message
  )


def test_labels_of_a_data_set(tmp_path):
  src = make_coco(tmp_path / "src")
  content = coco_content()
  for i, name in enumerate(["z; y", "", "a\nb", "<loc0001>", "cat ", "Zebra"]):
    content["categories"].append({"id": 90 + i, "name": name})
  content["annotations"][0]["category_id"] = 94
  src.write_text(json.dumps(content))
  records, about = run("coco", src, tmp_path / "out")
  assert {x["prefix"] for x in records["train"]} == {
    "detect Zebra ; cat ; red dog"
  }
  assert records["train"][0]["objects"][0]["label"] == "cat"
  assert "labels without an object (1): Zebra\n" in str(about)
  assert [count for count, _ in about.notes.values()] == [1, 4]


def test_images_without_an_object_are_noted_where_they_are_left_out(tmp_path):
  src = make_coco(tmp_path / "src")
  _, about = run("coco", src, tmp_path / "out", labels="present")
  assert about.notes == {
    "images without an object, left out by --labels present": (
      1,
      f"{src}: image 9",
    )
  }


def captioned(folder, names, split="train"):
  """Lines of a format of its own; every image is another one."""
  folder.mkdir(parents=True, exist_ok=True)
  for i, name in enumerate(names):
    Image.new("RGB", (5 + i, 7)).save(folder / name)
    yield entries.Entry((folder / name,), f"{i}", split, captions=("x",))


@pytest.fixture
def ours(monkeypatch):
  """A format whose entries a test gives itself."""
  found = []

  def read(request):
    yield from found

  monkeypatch.setitem(
    import_data.FORMATS, "ours", types.SimpleNamespace(read=read)
  )
  return found


def annotated(image, where, *labels, split="train"):
  """An entry with a box of each label."""
  things = [entries.Object(x, (1, 2, 5, 7), f"{where}: {x}") for x in labels]
  return entries.Entry((image,), where, split, objects=tuple(things))


def test_an_image_has_one_annotation(ours, tmp_path):
  write_images(tmp_path, ["a.png", "b.jpg"])
  image = tmp_path / "a.png"
  ours += [annotated(image, "a.json", "cat"), annotated(image, "b.json", "cat")]
  records, about = run("ours", "", tmp_path / "out")
  assert len(records["train"]) == 1
  what = "images listed twice, read as one"
  assert about.notes == {what: (1, "b.json")}
  other = tmp_path / "deep" / ".." / "a.png"
  other.parent.parent.mkdir()
  ours += [annotated(tmp_path / "b.jpg", "c.json"), annotated(other, "d.json")]
  with pytest.raises(ValueError) as info:
    run("ours", "", tmp_path / "out2")
  assert str(info.value) == (
    f"d.json: its image {other} has other objects in a.json; keep one of the "
    "two, with all objects of the image"
  )
  records, about = run("ours", "", tmp_path / "out2", skip_bad=True)
  assert len(records["train"]) == 2
  assert about.left_out == [str(info.value)]
  ours[-1] = annotated(image, "e.json", "cat", split="val")
  with pytest.raises(ValueError) as info:
    run("ours", "", tmp_path / "out3")
  assert str(info.value) == (
    f"e.json: its image {image} is in val, and in train as well (a.json); take "
    "it out of one of them (--val cuts a part off train)"
  )


def test_an_image_can_have_several_captions(ours, tmp_path):
  ours += [*captioned(tmp_path, ["a.png"]), *captioned(tmp_path, ["a.png"])]
  records, about = run("ours", "", tmp_path / "out", "caption")
  assert len(records["train"]) == 2 and not about.notes


def test_one_image_of_two_files_of_a_format(tmp_path):
  yolo = make_yolo(tmp_path / "yolo")
  text = (yolo / "data.yaml").read_text()
  (yolo / "data.yaml").write_text(f"{text}val: images/train\n")
  with pytest.raises(ValueError, match=r"its image .* is in val, and in t"):
    run("yolo", yolo, tmp_path / "out")
  voc = make_voc(tmp_path / "voc")
  (voc / "Annotations" / "a (1).xml").write_text(
    (voc / "Annotations" / "a.xml").read_text().replace("cat", "red dog")
  )
  with pytest.raises(
    ValueError, match=r"/a\.xml: its image .*a\.png has other"
  ):
    run("voc", voc, tmp_path / "out")


def test_names_of_files_break_no_line(ours, tmp_path):
  name = "a\nb\0\ud800c"
  ours.append(annotated(tmp_path / name, f"{name}.json", "cat"))
  with pytest.raises(ValueError, match=r"^a b\S*c\.json: [ -~]+$"):
    run("ours", "", tmp_path / "out")
  image = tmp_path / "a\nb.png"
  write_images(tmp_path, [])
  Image.new("RGB", (11, 7)).save(image)
  ours[:] = [annotated(image, f"{image}.json", "cat")] * 2
  ours.append(annotated(image, f"{image}.json"))
  records, about = run("ours", "", tmp_path / "out", skip_bad=True)
  assert records["train"][0]["image"] == "../a\nb.png"
  assert len(about.left_out) == 1
  ((_, where),) = about.notes.values()
  assert "\n" not in about.left_out[0] + where
  assert "a\nb" not in str(about)


def test_copies_of_a_source_stay_on_one_side_of_val(ours, tmp_path):
  names = [f"{i}_png.rf.{n}c.png" for i in range(7) for n in range(3)]
  ours.extend(captioned(tmp_path / "src", names))
  records, about = run("ours", "", tmp_path / "out", "caption", val=0.3)
  sides = {
    split: {pathlib.Path(x["image"]).name.split("_")[0] for x in lines}
    for split, lines in records.items()
  }
  assert len(sides["val"]) == 2 and len(sides["train"]) == 5
  assert not sides["val"] & sides["train"] and not about.notes


def test_copies_in_several_splits_are_noted(ours, tmp_path):
  src = tmp_path / "src"
  ours.extend(captioned(src / "a", ["x_png.rf.1a.png", "y.png", "0001.png"]))
  ours.extend(captioned(src / "b", ["x_png.rf.2b.png", "z.png"], "test"))
  (src / "b" / "z.png").write_bytes((src / "a" / "y.png").read_bytes())
  # Of one name, but another image.
  Image.new("L", (3, 3)).save(src / "b" / "0001.png")
  ours.append(
    entries.Entry((src / "b" / "0001.png",), "9", "test", captions=("x",))
  )
  records, about = run("ours", "", tmp_path / "out", "caption")
  assert {split: len(x) for split, x in records.items()} == {
    "train": 3,
    "test": 3,
  }
  first = "train: ../src/a/x_png.rf.1a.png, test: ../src/b/x_png.rf.2b.png"
  assert about.notes == {
    "images have copies in another split, which is then easier": (2, first)
  }
  assert sorted(x.name for x in (tmp_path / "out").iterdir()) == [
    "test.jsonl",
    "train.jsonl",
  ]


def test_several_images_of_one_line(ours, tmp_path):
  first, second = captioned(tmp_path / "src", ["a.png", "b.png"])
  ours.append(dataclasses.replace(first, images=first.images + second.images))
  records, _ = run("ours", "", tmp_path / "out", "caption", copy=True)
  assert records["train"][0]["image"] == [
    "images/train/a.png",
    "images/train/b.png",
  ]
  example = sources.Jsonl(tmp_path / "out" / "train.jsonl")[0]
  assert [len(x) for x in example["image"]] == [
    entry.images[0].stat().st_size for entry in (first, second)
  ]


def test_a_further_field_is_no_image(ours, tmp_path):
  (entry,) = captioned(tmp_path / "src", ["a.png"])
  ours.append(dataclasses.replace(entry, fields={"image": "http://x/a.png"}))
  records, _ = run("ours", "", tmp_path / "out", "caption")
  assert records["train"][0]["image"] == "../src/a.png"


def test_bad_texts_are_left_out_and_no_line_is_half_written(ours, tmp_path):
  good, bad = captioned(tmp_path / "src", ["a.png", "b.png"])
  ours.extend([good, dataclasses.replace(bad, captions=("\ud800",))])
  with pytest.raises(ValueError, match="1: the text"):
    run("ours", "", tmp_path / "out", "caption", copy=True)
  assert not (tmp_path / "out").exists()
  _, about = run("ours", "", tmp_path / "out", "caption", skip_bad=True)
  assert len(about.left_out) == 1


def test_images_of_parquet_are_not_written_if_one_is_bad(tmp_path):
  src = make_parquet(tmp_path / "src")
  (src / "data" / "train-00001-of-00001.parquet").write_text("no Parquet")
  with pytest.raises(ValueError, match="Parquet magic bytes"):
    run("hf", src, tmp_path / "out")
  assert [path.name for path in tmp_path.iterdir()] == ["src"]


def test_tokens_are_counted_with_the_tokenizer_that_is_given(
  tmp_path, capsys, monkeypatch
):
  src = make_coco(tmp_path / "src")
  command(
    monkeypatch,
    "coco",
    "--task=detect",
    f"--tokenizer={TOKENIZER}",
    src,
    tmp_path / "out",
  )
  lines = capsys.readouterr().out.splitlines()
  held = next(line for line in lines if line.startswith("text_len"))
  text_len = int(held.split()[1])
  tok = tokenizer.Tokenizer(TOKENIZER)
  longest = lines_of(tmp_path / "out" / "train.jsonl")[0]
  texts = longest["prefix"], longest["suffix"]
  sequence.training(tok, *texts, text_len)
  with pytest.raises(ValueError, match=f"has room for {text_len}"):
    sequence.training(tok, *texts, text_len - 1)
  with pytest.raises(ValueError, match=r"no\.model: cannot read tokenizer"):
    run("coco", src, tmp_path / "out2", tokenizer=tmp_path / "no.model")
