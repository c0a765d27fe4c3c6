"""One made-up data set in every format."""

import io
import json
import pathlib

import pytest
from PIL import Image

# name -> (height, width), [(label, (y0, x0, y1, x1))]
TRUTH = {
  "a.png": ((53, 97), [("cat", (3, 5, 31, 89)), ("red dog", (7, 2, 50, 41))]),
  "b.jpg": ((61, 43), [("cat", (0, 0, 61, 43))]),
  "c.png": ((29, 31), []),
}
LABELS = ("cat", "red dog")


def encoded(size, suffix=".png", **arguments):
  data = io.BytesIO()
  kind = {".png": "PNG", ".jpg": "JPEG"}[suffix]
  Image.new("RGB", size[::-1]).save(data, kind, **arguments)
  return data.getvalue()


def write_images(folder, names=TRUTH):
  folder.mkdir(parents=True, exist_ok=True)
  for name in names:
    data = encoded(TRUTH[name][0], pathlib.Path(name).suffix)
    (folder / name).write_bytes(data)


def coco_content():
  content = {
    "images": [
      {"id": 7 + i, "file_name": name, "height": size[0], "width": size[1]}
      for i, (name, (size, _)) in enumerate(TRUTH.items())
    ],
    "annotations": [],
    "categories": [
      {"id": 3 * i + 1, "name": label} for i, label in enumerate(LABELS)
    ],
  }
  for i, (_, things) in enumerate(TRUTH.values()):
    for label, (y0, x0, y1, x1) in things:
      content["annotations"].append(
        {
          "id": len(content["annotations"]),
          "image_id": 7 + i,
          "category_id": 3 * LABELS.index(label) + 1,
          "bbox": [x0, y0, x1 - x0, y1 - y0],
        }
      )
  return content


def make_coco(folder):
  write_images(folder)
  (folder / "coco.json").write_text(json.dumps(coco_content()))
  return folder / "coco.json"


def make_yolo(folder):
  write_images(folder / "images" / "train")
  labels = folder / "labels" / "train"
  labels.mkdir(parents=True)
  for name, ((height, width), things) in TRUTH.items():
    lines = [
      f"{LABELS.index(label)} {(x0 + x1) / 2 / width} {(y0 + y1) / 2 / height} "
      f"{(x1 - x0) / width} {(y1 - y0) / height}\n"
      for label, (y0, x0, y1, x1) in things
    ]
    (labels / name).with_suffix(".txt").write_text("".join(lines))
  names = "".join(f"  {i}: {label}\n" for i, label in enumerate(LABELS))
  (folder / "data.yaml").write_text(f"train: images/train\nnames:\n{names}")
  return folder


def make_voc(folder):
  write_images(folder / "JPEGImages")
  (folder / "Annotations").mkdir()
  for name, ((height, width), things) in TRUTH.items():
    objects = "".join(
      f"<object><name>{label}</name><bndbox><xmin>{x0 + 1}</xmin><ymin>{y0 + 1}"
      f"</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox></object>\n"
      for label, (y0, x0, y1, x1) in things
    )
    text = (
      f"<annotation><filename>{name}</filename><size><width>{width}</width>"
      f"<height>{height}</height></size>\n{objects}</annotation>"
    )
    path = folder / "Annotations" / name
    path.with_suffix(".xml").write_text(text)
  return folder


def make_csv(folder):
  write_images(folder)
  lines = ["image,xmin,ymin,xmax,ymax,label"]
  for name, (_, things) in TRUTH.items():
    lines += [
      f"{name},{x0},{y0},{x1},{y1},{label}"
      for label, (y0, x0, y1, x1) in things
    ] or [f"{name},,,,,"]
  (folder / "boxes.csv").write_text("\n".join(lines))
  return folder / "boxes.csv"


def hf_objects(things):
  return {
    "bbox": [[x0, y0, x1 - x0, y1 - y0] for _, (y0, x0, y1, x1) in things],
    "category": [label for label, _ in things],
  }


def make_hf(folder):
  write_images(folder)
  rows = [
    {"file_name": name, "objects": hf_objects(things)}
    for name, (_, things) in TRUTH.items()
  ]
  text = "".join(json.dumps(row) + "\n" for row in rows)
  (folder / "metadata.jsonl").write_text(text)
  return folder


def make_parquet(folder, objects=None, **metadata):
  pyarrow = pytest.importorskip("pyarrow")
  from pyarrow import parquet

  rows = [
    {
      "image": {
        "bytes": encoded(size, pathlib.Path(name).suffix),
        "path": name,
      },
      "objects": (objects or hf_objects)(things),
    }
    for name, (size, things) in TRUTH.items()
  ]
  table = pyarrow.Table.from_pylist(rows)
  (folder / "data").mkdir(parents=True)
  parquet.write_table(
    table.replace_schema_metadata(metadata),
    folder / "data" / "train-00000-of-00001.parquet",
  )
  return folder


MAKERS = {
  "coco": make_coco,
  "yolo": make_yolo,
  "voc": make_voc,
  "csv": make_csv,
  "hf": make_hf,
  "parquet": make_parquet,
}
