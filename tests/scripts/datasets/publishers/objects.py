"""Boxes of COCO, as its publisher ships them."""

from tests.scripts.datasets.publishers.made import (
  COUNT,
  HEIGHT,
  WIDTH,
  Made,
  jpeg,
)
from tests.scripts.datasets.publishers.refcoco import KINDS, drawn

# x, y, width, height: some are tiny, and some reach beyond their picture.
_BOXES = (
  [8.0, 5.25, 18.0, 15.5],
  [30.0, 22.0, 10.0, 6.0],
  [-2.0, -3.0, 14.0, 12.0],
  [42.0, 30.0, 1.0, 1.0],
  [38.5, 20.0, 6.0, 12.0],
)
_LABELS = {1: "person", 18: "dog", 90: "toothbrush"}


def coco():
  """Pictures with up to four objects, in any order; crowds; a few have none."""
  files, lines = {}, {}
  for split in ("train", "val"):
    images, annotations, lines[split] = [], [], []
    for i in range(COUNT):
      name = f"{i:012d}.jpg"
      images.append(
        {
          "id": 1000 + i,
          "file_name": name,
          "height": HEIGHT,
          "width": WIDTH,
          "license": 3,
        }
      )
      files[f"{split}2017/{name}"] = jpeg(i % 5)
      objects = []
      for n in range(i % 5):
        kind = (i + n) % KINDS
        segmentation, _ = drawn(kind)
        x, y, w, h = _BOXES[(i + n) % len(_BOXES)]
        category = list(_LABELS)[(i + n) % 3]
        annotations.append(
          {
            "segmentation": segmentation,
            "area": 12.5,
            "iscrowd": int(kind == 2),
            "image_id": 1000 + i,
            "bbox": [x, y, w, h],
            "category_id": category,
            "id": 10 * i + n,
          }
        )
        inside = [
          *(max(y, 0.0), max(x, 0.0)),
          *(min(y + h, HEIGHT), min(x + w, WIDTH)),
        ]
        crowd = {"iscrowd": 1} if kind == 2 else {}
        objects.append(
          {"box": inside, "label": _LABELS[category], "area": 12.5, **crowd}
        )
      lines[split].append(
        {
          "image": f"../raw/{split}2017/{name}",
          "image_id": 1000 + i,
          "objects": objects,
          "height": HEIGHT,
          "width": WIDTH,
        }
      )
    files[f"annotations/instances_{split}2017.json"] = {
      "info": {"year": 2017},
      "images": images,
      # Those of a picture are side by side nowhere.
      "annotations": sorted(annotations, key=lambda x: x["id"] % 10),
      "categories": [
        {"supercategory": "x", "id": k, "name": v} for k, v in _LABELS.items()
      ],
    }
  return Made(files, lines)
