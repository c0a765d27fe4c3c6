"""Writes the same annotated pictures in formats of annotation programs.

`truth` is like TRUTH of same_data; `outline` turns a box into a polygon
[x0, y0, ...], which is written in its place where a format has polygons. Each
function returns what is imported.
"""

import json

from PIL import Image

from tests.scripts.imports.same_data import TRUTH


def write_pictures(folder, truth):
  folder.mkdir(parents=True, exist_ok=True)
  for name, (size, _) in truth.items():
    Image.new("RGB", size[::-1]).save(folder / name)


def labels_of(truth):
  return sorted({label for _, things in truth.values() for label, _ in things})


def points_of(polygon):
  return list(zip(polygon[::2], polygon[1::2], strict=True))


def labelme(folder, truth=TRUTH, outline=None):
  write_pictures(folder, truth)
  for name, ((height, width), things) in truth.items():
    shapes = []
    for label, box in things:
      y0, x0, y1, x1 = box
      points = points_of(outline(box)) if outline else [(x1, y0), (x0, y1)]
      shapes.append(
        {
          "label": label,
          "points": points,
          "group_id": None,
          "description": "",
          "shape_type": "polygon" if outline else "rectangle",
          "flags": {},
          "mask": None,
        }
      )
    content = {
      "version": "5.5.0",
      "flags": {},
      "shapes": shapes,
      "imagePath": name,
      "imageData": None,
      "imageHeight": height,
      "imageWidth": width,
    }
    (folder / name).with_suffix(".json").write_text(json.dumps(content))
  return folder


def cvat(folder, truth=TRUTH, outline=None):
  write_pictures(folder / "images", truth)
  images = ""
  for i, (name, ((height, width), things)) in enumerate(truth.items()):
    images += (
      f'<image id="{i}" name="{name}" width="{width}" height="{height}">'
    )
    for label, box in things:
      y0, x0, y1, x1 = box
      common = f'label="{label}" source="manual" occluded="0" z_order="0"'
      if outline:
        points = ";".join(
          f"{x:.2f},{y:.2f}" for x, y in points_of(outline(box))
        )
        images += f'<polygon {common} points="{points}"></polygon>'
      else:
        images += (
          f'<box {common} xtl="{x0:.2f}" ytl="{y0:.2f}" xbr="{x1:.2f}" '
          f'ybr="{y1:.2f}"><attribute name="seen">true</attribute></box>'
        )
    images += "</image>\n"
  labels = "".join(
    f"<label><name>{label}</name><color>#c06060</color><type>any</type>"
    "<attributes></attributes></label>"
    for label in labels_of(truth)
  )
  (folder / "annotations.xml").write_text(
    '<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n'
    f"<version>1.1</version><meta><task><labels>{labels}</labels></task></meta>"
    f"\n{images}</annotations>\n"
  )
  return folder


def label_studio(folder, truth=TRUTH, outline=None):
  write_pictures(folder, truth)
  tasks = []
  for i, (name, ((height, width), things)) in enumerate(truth.items()):
    result = []
    for j, (label, box) in enumerate(things):
      y0, x0, y1, x1 = box
      if outline:
        kind = "polygonlabels"
        points = points_of(outline(box))
        points = [[100 * x / width, 100 * y / height] for x, y in points]
        value = {"points": points, "closed": True, kind: [label]}
      else:
        kind = "rectanglelabels"
        value = {
          "x": 100 * x0 / width,
          "y": 100 * y0 / height,
          "width": 100 * (x1 - x0) / width,
          "height": 100 * (y1 - y0) / height,
          "rotation": 0,
          kind: [label],
        }
      result.append(
        {
          "original_width": width,
          "original_height": height,
          "image_rotation": 0,
          "value": value,
          "id": f"r{j}",
          "from_name": "label",
          "to_name": "image",
          "type": kind,
          "origin": "manual",
        }
      )
    annotation = {
      "id": 100 + i,
      "completed_by": 1,
      "result": result,
      "was_cancelled": False,
      "ground_truth": False,
    }
    tasks.append(
      {
        "id": 10 + i,
        "annotations": [annotation],
        "file_upload": f"0a1b2c3d-{name}",
        "predictions": [],
        "data": {"image": f"/data/upload/1/0a1b2c3d-{name}"},
      }
    )
  (folder / "project-1.json").write_text(json.dumps(tasks))
  return folder / "project-1.json"


def createml(folder, truth=TRUTH):
  write_pictures(folder, truth)
  content = [
    {
      "image": name,
      "annotations": [
        {
          "label": label,
          "coordinates": {
            "x": (x0 + x1) / 2,
            "y": (y0 + y1) / 2,
            "width": x1 - x0,
            "height": y1 - y0,
          },
        }
        for label, (y0, x0, y1, x1) in things
      ],
    }
    for name, (_, things) in truth.items()
  ]
  (folder / "_annotations.createml.json").write_text(json.dumps(content))
  return folder


def darknet(folder, truth=TRUTH):
  write_pictures(folder / "obj_train_data", truth)
  labels = labels_of(truth)
  for name, ((height, width), things) in truth.items():
    lines = [
      f"{labels.index(label)} {(x0 + x1) / 2 / width:.9f} "
      f"{(y0 + y1) / 2 / height:.9f} {(x1 - x0) / width:.9f} "
      f"{(y1 - y0) / height:.9f}\n"
      for label, (y0, x0, y1, x1) in things
    ]
    path = (folder / "obj_train_data" / name).with_suffix(".txt")
    path.write_text("".join(lines))
  (folder / "obj.names").write_text("".join(f"{label}\n" for label in labels))
  listed = "".join(f"data/obj_train_data/{name}\n" for name in truth)
  (folder / "train.txt").write_text(listed)
  (folder / "obj.data").write_text(
    f"classes = {len(labels)}\ntrain = data/train.txt\n"
    "names = data/obj.names\nbackup = backup/\n"
  )
  return folder


def open_images(folder, truth=TRUTH):
  """Leaves out pictures without a box, as the format does."""
  write_pictures(folder / "train", truth)
  labels = labels_of(truth)
  (folder / "class-descriptions-boxable.csv").write_text(
    "".join(f"/m/0{i},{label}\n" for i, label in enumerate(labels))
  )
  rows = [
    "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,"
    "IsTruncated,IsGroupOf,IsDepiction,IsInside"
  ]
  for name, ((height, width), things) in truth.items():
    for label, (y0, x0, y1, x1) in things:
      edges = (x0 / width, x1 / width, y0 / height, y1 / height)
      rows.append(
        f"{name.partition('.')[0]},xclick,/m/0{labels.index(label)},1,"
        + ",".join(f"{edge:.9f}" for edge in edges)
        + ",0,0,0,0,0"
      )
  path = folder / "train-annotations-bbox.csv"
  path.write_text("\n".join(rows) + "\n")
  return folder


MAKERS = {
  "labelme": labelme,
  "cvat": cvat,
  "label_studio": label_studio,
  "createml": createml,
  "darknet": darknet,
  "open_images": open_images,
}
WITH_OUTLINES = ("labelme", "cvat", "label_studio")
