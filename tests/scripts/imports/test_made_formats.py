"""The same annotated pictures through every format of annotation programs."""

import json
import pathlib

import numpy as np
import pytest
from PIL import Image

from paligemma.data import masks
from scripts import import_data
from scripts.imports import coco
from tests.scripts.imports import made_formats
from tests.scripts.imports.reading import picture, read
from tests.scripts.imports.same_data import TRUTH, make_coco


def triangle(box):
  """The right upper half of a box, and a bit more."""
  y0, x0, y1, x1 = box
  return [x0, y0, x1, y0, x1, y1, (x0 + x1) / 2, (y0 + y1) / 2 + 1]


def pixels(entry, thing):
  height, width = TRUTH[entry.images[0].name][0]
  scale = (height, width, height, width) if thing.shares else 1
  return np.multiply(thing.box, scale)


def objects(found):
  return {
    entry.images[0].name: [
      (thing.label, tuple(np.round(pixels(entry, thing), 5)))
      for thing in entry.objects
    ]
    for entry in found
  }


@pytest.mark.parametrize("kind", made_formats.MAKERS)
def test_boxes_are_those_of_coco(kind, tmp_path):
  src = made_formats.MAKERS[kind](tmp_path / kind)
  found, _, problems = read(import_data.FORMATS[kind].read, src)
  wanted = objects(read(coco.read, make_coco(tmp_path / "coco"))[0])
  if kind == "open_images":
    del wanted["c.png"]
    assert list(problems.notes) == ["pictures without a box left out"]
  else:
    assert not problems.notes
  assert objects(found) == wanted
  assert [entry.images[0].is_file() for entry in found] == [True] * len(wanted)
  assert {entry.split for entry in found} == {"train"}
  assert len({entry.where for entry in found}) == len(wanted)


@pytest.mark.parametrize("kind", made_formats.WITH_OUTLINES)
def test_outlines_are_those_of_coco(kind, tmp_path):
  src = made_formats.MAKERS[kind](tmp_path / kind, outline=triangle)
  found, _, _ = read(import_data.FORMATS[kind].read, src)
  for entry in found:
    size, things = TRUTH[entry.images[0].name]
    for thing, (label, box) in zip(entry.objects, things, strict=True):
      assert thing.label == label
      np.testing.assert_allclose(thing.box, box, rtol=0, atol=1e-6)
      np.testing.assert_array_equal(
        masks.from_polygons(thing.mask, *size),
        masks.from_polygons([triangle(box)], *size),
      )


def test_mask_images_are_outlines_of_coco(tmp_path):
  (tmp_path / "masks").mkdir()
  (tmp_path / "classes.txt").write_text("1 cat\n2 red dog\n")
  for name, (size, things) in TRUTH.items():
    picture(tmp_path / "images" / name, size)
    values = np.zeros(size, np.uint8)
    for label, box in things[:1]:  # others would lie over it
      inside = masks.from_polygons([triangle(box)], *size)
      values[inside] = 1 + made_formats.labels_of(TRUTH).index(label)
    Image.fromarray(values).save(
      (tmp_path / "masks" / name).with_suffix(".png")
    )
  found, labels, _ = read(import_data.FORMATS["masks"].read, tmp_path)
  assert labels == ("cat", "red dog")
  for entry in found:
    size, things = TRUTH[entry.images[0].name]
    for thing, (label, box) in zip(entry.objects, things[:1], strict=True):
      assert thing.label == label
      np.testing.assert_array_equal(
        masks.from_rle(thing.mask, *size),
        masks.from_polygons([triangle(box)], *size),
      )


def lines(kind, src, out):
  """The lines of an import without what names their pictures."""
  import_data.import_data(kind, src, out, task="detect")
  found = {}
  for line in (out / "train.jsonl").read_text().splitlines():
    record = json.loads(line)
    record.pop("image_id", None)
    name = pathlib.Path(record.pop("image")).name
    found[name] = json.dumps(record)
  return found


@pytest.mark.parametrize("kind", made_formats.MAKERS)
def test_lines_are_those_of_coco(kind, tmp_path):
  src = made_formats.MAKERS[kind](tmp_path / kind)
  wanted = lines("coco", make_coco(tmp_path / "coco"), tmp_path / "out")
  if kind == "open_images":
    del wanted["c.png"]
  assert lines(kind, src, tmp_path / f"{kind}_out") == wanted
