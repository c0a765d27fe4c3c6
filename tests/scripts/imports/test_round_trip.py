"""The same pictures through every format are the same lines, and come back."""

import json
import pathlib

import numpy as np
import pytest
from PIL import Image

from paligemma.data import location, mask_codes, masks
from scripts import import_data
from tests.scripts.imports import made_formats, same_data

# Labels out of order; corners at edges and at halves of a location; sides of
# which some are primes, and one that has two locations a pixel.
LABELS = ("zebra", "cat", "red dog")
PICTURES = {
  "a.png": (
    (997, 1327),
    [("zebra", (3, 5, 317, 899)), ("cat", (7, 2, 50, 41))],
  ),
  "b.png": ((61, 43), [("red dog", (0, 0, 61, 43)), ("cat", (60, 1, 61, 2))]),
  "c.png": ((29, 31), []),
  "d.png": (
    (682, 682),
    [("zebra", (i, 1, i + 331, 340)) for i in range(1, 60)],
  ),
  "e.png": (
    (3989, 2003),
    [("cat", (1, 1, 3988, 2002)), ("cat", (7, 9, 8, 99))],
  ),
}


def draw(folder):
  folder.mkdir(parents=True)
  for name, ((height, width), _) in PICTURES.items():
    Image.new("1", (width, height)).save(folder / name)


def polygon(box):
  """Its corners, of which x stands first."""
  y0, x0, y1, x1 = box
  return [x0, y0, x1, y0, x1, y1, x0, y1]


def coco(folder, shapes):
  draw(folder)
  content = {"images": [], "annotations": [], "categories": []}
  for i, label in enumerate(LABELS):
    content["categories"].append({"id": i, "name": label})
  for i, (name, ((height, width), things)) in enumerate(PICTURES.items()):
    content["images"].append(
      {"id": i, "file_name": name, "height": height, "width": width}
    )
    for label, (y0, x0, y1, x1) in things:
      content["annotations"].append(
        {
          "id": len(content["annotations"]),
          "image_id": i,
          "category_id": LABELS.index(label),
          "bbox": [x0, y0, x1 - x0, y1 - y0],
          "area": (x1 - x0) * (y1 - y0),
          "iscrowd": 0,
          "segmentation": [polygon((y0, x0, y1, x1))] * shapes,
        }
      )
  path = folder / "instances.json"
  path.write_text(json.dumps(content))
  return path


def yolo(folder, shapes):
  draw(folder / "images")
  (folder / "labels").mkdir()
  for name, ((height, width), things) in PICTURES.items():
    lines = []
    for label, box in things:
      y0, x0, y1, x1 = np.array(box) / (height, width, height, width)
      numbers = [(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0]
      numbers = polygon((y0, x0, y1, x1)) if shapes else numbers
      words = " ".join(f"{number:.6f}" for number in numbers)
      lines.append(f"{LABELS.index(label)} {words}\n")
    path = (folder / "labels" / name).with_suffix(".txt")
    path.write_text("".join(lines))
  (folder / "data.yaml").write_text(
    f"train: images\nnames: {json.dumps(LABELS)}\n"
  )
  return folder


def voc(folder, shapes):
  draw(folder)
  same_data.write_voc(folder, PICTURES)
  return folder


def table(folder, shapes):
  draw(folder)
  return same_data.write_csv(folder / "boxes.csv", PICTURES)


def made(kind):
  def make(folder, shapes):
    write = made_formats.MAKERS[kind]
    return write(folder, PICTURES, polygon if shapes else None)

  return make


# key of FORMATS -> function that writes PICTURES in it, as polygons or as boxes
MAKERS = {
  "coco": coco,
  "csv": table,
  "voc": voc,
  "yolo": yolo,
  **{kind: made(kind) for kind in made_formats.WITH_OUTLINES},
}
MASKED = ("coco", "yolo", *made_formats.WITH_OUTLINES)  # have polygons


def lines(kind, tmp_path, task="detect", **arguments):
  """What is written, but for paths and ids."""
  src = MAKERS[kind](tmp_path / kind, task == "segment")
  out = tmp_path / f"{kind}_out"
  import_data.import_data(kind, src, out, task=task, **arguments)
  found = []
  for line in (out / "train.jsonl").read_text().split("\n")[:-1]:
    fields = json.loads(line)
    fields["image"] = pathlib.PurePath(fields["image"]).name
    for name in ("image_id", "task_id"):
      fields.pop(name, None)
    found.append(json.dumps(fields))
  return found


def test_boxes_of_all_formats_are_the_same_bytes(tmp_path):
  wanted = lines("coco", tmp_path)
  assert len(wanted) == len(PICTURES)
  for kind in MAKERS.keys() - {"coco"}:
    assert lines(kind, tmp_path) == wanted, kind


@pytest.fixture
def codec(monkeypatch):
  """In the place of a codec: it remembers its masks."""
  seen = []

  class Encoder:
    def __init__(self, path):
      pass

    def codes(self, batch):
      codes = [np.full(16, (len(seen) + i) % 128) for i in range(len(batch))]
      seen.extend(mask for mask in np.array(batch) if mask.any())
      return np.array(codes)

  monkeypatch.setattr(mask_codes, "Encoder", Encoder)
  return seen


def test_masks_of_all_formats_are_the_same_bytes(tmp_path, codec):
  wanted = lines("coco", tmp_path, "segment", codec="any.npz")
  masks_of_coco = codec[:]
  for kind in MASKED[1:]:
    codec.clear()
    assert lines(kind, tmp_path, "segment", codec="any.npz") == wanted
    np.testing.assert_array_equal(codec, masks_of_coco)


def test_tokens_come_back_as_boxes_and_masks(tmp_path, codec):
  found = map(json.loads, lines("yolo", tmp_path, "segment", codec="any.npz"))
  for line, (size, things) in zip(found, PICTURES.values(), strict=True):
    back = location.parse(line["suffix"], size)
    assert [x.label for x in back] == [label for label, _ in things]
    for x, (_, box) in zip(back, things, strict=True):
      # Half a location; a box thinner than one is written as wide as one.
      location_size = np.array([*size, *size]) / 1023
      thin = np.subtract(box[2:], box[:2]) < location_size[:2]
      allowed = location_size * np.where([*thin, *thin], 1, 0.5)
      off = np.abs(np.subtract(x.box, box))
      assert (off <= allowed + 1e-9).all()
      # A mask has whole pixels. What rounds to one is off by half of it more,
      # but for edges on whole pixels that are no smaller than a location.
      exact = (np.mod(box, 1) == 0) & (location_size <= 1)
      allowed = allowed + np.where(exact, 0, 0.5)
      decoded = 2 * codec.pop(0) - 1
      pasted = masks.paste(decoded, x.box, size) > 0.5
      off = np.abs(np.subtract(masks.bounding_box(pasted), box))
      assert (off <= allowed + 1e-9).all()
