"""Sentences that refer to objects of COCO, as their publishers ship them."""

import pickle

import numpy as np
from pycocotools import mask as coco

from tests.scripts.datasets.publishers.made import (
  COUNT,
  HEIGHT,
  WIDTH,
  Made,
  packed,
  pictures,
  plain,
  text,
  zipped,
)

KINDS = 9
_FILES = {
  "refcoco": "refcoco/refs(unc).p",
  "refcocop": "refcoco+/refs(unc).p",
  "refcocog": "refcocog/refs(umd).p",
}


def _rectangle(y0, x0, y1, x1):
  mask = np.zeros((HEIGHT, WIDTH), bool)
  mask[max(y0, 0) : y1, max(x0, 0) : x1] = True
  return mask, [x0, y0, x1, y0, x1, y1, x0, y1]


def drawn(kind):
  """(segmentation as COCO has it, bool[H, W]) of a kind of object."""
  one, polygon = _rectangle(5, 8, 20, 26)
  other, second = _rectangle(22, 30, 28, 40)
  if kind == 0:
    return [polygon], one
  if kind == 1:  # hidden in the middle
    return [polygon, second], one | other
  if kind == 2:  # a crowd
    counts = [31, 62, HEIGHT * WIDTH - 93]
    mask = np.zeros(HEIGHT * WIDTH, bool)
    mask[31:93] = True
    return {"size": [HEIGHT, WIDTH], "counts": counts}, mask.reshape(
      WIDTH, HEIGHT
    ).T
  if kind == 3:  # as it is packed
    return _packed(one), one
  if kind == 4:  # a pixel, the last
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[-1, -1] = True
    return {
      "size": [HEIGHT, WIDTH],
      "counts": [HEIGHT * WIDTH - 1, 1],
    }, mask
  if kind == 5:  # nothing
    return {"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH]}, np.zeros(
      (HEIGHT, WIDTH), bool
    )
  if kind == 6:  # all, beginning with a run of none
    counts = [0, HEIGHT * WIDTH]
    return {"size": [HEIGHT, WIDTH], "counts": counts}, np.ones(
      (HEIGHT, WIDTH), bool
    )
  if kind == 7:  # smaller than a pixel
    return [[8.0, 5.0, 8.2, 5.0, 8.2, 5.2]], np.zeros((HEIGHT, WIDTH), bool)
  # Beyond the picture, to the left and above.
  mask, polygon = _rectangle(-3, -2, 9, 12)
  return [polygon], mask


def _packed(mask):
  found = coco.encode(np.asfortranarray(mask, np.uint8))
  return {"size": list(mask.shape), "counts": found["counts"].decode()}


def refcoco_seg():
  """Several objects a picture and sentences an object, in three data sets.

  Of the pictures that two of them train on, the third evaluates some.
  """
  boxes = {8: [-2.0, -3.0, 14.0, 12.0], 4: [42.0, 30.0, 1.0, 1.0]}
  images, annotations, of = [], [], {}
  for image in range(1, 3 * COUNT + 1):
    images.append(
      {
        "id": image,
        "file_name": f"{image:012d}.jpg",
        "height": HEIGHT,
        "width": WIDTH,
        "license": 3,
        "coco_url": "http://x",
      }
    )
    for n in range(3):
      kind = (image + 3 * n) % KINDS
      segmentation, mask = drawn(kind)
      box = boxes.get(kind, [8.0, 5.25, 18.0, 15.5])
      number = 1000 * image + n
      annotations.append(
        {
          "id": number,
          "image_id": image,
          "category_id": (18, 90)[n % 2],
          "bbox": box,
          "segmentation": segmentation,
          "iscrowd": int(kind == 2),
          "area": float(mask.sum()),
        }
      )
      x, y, w, h = box
      if not mask.any():
        continue
      of[number] = {
        "box": [y, x, y + h, x + w],
        "label": ("dog", "toothbrush")[n % 2],
        "mask": _packed(mask),
      }
  places = {x["id"]: f"train2017/{x['file_name']}" for x in images}
  lines, references = {"train": []}, {}
  excluded, trained = set(), {}
  for name in _FILES:
    references[name] = []
    splits = ["train", "val", "testA", "testB"]
    if name == "refcocog":
      splits = ["train", "val", "test", "test"]
    for image in range(1, 3 * COUNT + 1):
      split = splits[image % 4 if image > COUNT else 0]
      if name == "refcocog" and image in (5, 9):
        split = "val"
      for n in (0, 1, 2):  # of the last nobody said anything
        number = 1000 * image + n
        said = [text(f"left {name}", image + k) for k in range(1 + image % 3)]
        said = [] if n == 2 else said
        references[name].append(
          {
            "ref_id": len(references[name]),
            "ann_id": number,
            "image_id": image,
            "split": split,
            "category_id": 18,
            "file_name": f"COCO_train2014_{image:012d}_{n}.jpg",
            "sent_ids": list(range(len(said))),
            "sentences": [
              {"sent": x, "raw": f"{x}!", "sent_id": k, "tokens": x.split()}
              for k, x in enumerate(said)
            ],
          }
        )
        if split == "train" and said:
          objects = trained.setdefault(image, {})
          objects.setdefault(number, []).extend(said)
        if split == "train":
          continue
        excluded.add(image)
        found = lines.setdefault(f"{name}_{split}", [])
        found += [
          _line(images[image - 1], places, [{**of[number], "sentences": [x]}])
          for x in said
          if number in of
        ]
  lines["train"] = [
    _line(
      images[image - 1],
      places,
      [{**of[k], "sentences": x} for k, x in objects.items() if k in of],
    )
    for image, objects in trained.items()
    if image not in excluded and of.keys() & objects
  ]
  pickled = {_FILES[name]: pickle.dumps(x, 2) for name, x in references.items()}
  plus = _FILES["refcocop"]
  shown = pictures(places.values())
  files = {
    **pickled,
    "annotations_trainval2017.zip": zipped(
      {
        "annotations/instances_train2017.json": {
          "info": {"year": 2017},
          "licenses": [{"id": 3, "name": "x"}],
          "images": images[::-1],
          "annotations": annotations,
          "categories": [
            {"supercategory": "animal", "id": 18, "name": "dog"},
            {"supercategory": "indoor", "id": 90, "name": "toothbrush"},
          ],
        },
        "annotations/instances_val2017.json": {"images": []},
      }
    ),
    **{name: x for name, x in shown.items() if name[-5] != "7"},
    "train2017.zip": zipped({k: x for k, x in shown.items() if k[-5] == "7"}),
  }
  files["refcoco+.zip"] = zipped({plus: files.pop(plus), "refcoco+/x.json": ""})
  return Made(files, lines)


def _line(image, places, objects):
  path = places[image["id"]]
  return {
    "image": packed(path) if path[-5] == "7" else plain(path),
    "image_id": image["id"],
    "height": HEIGHT,
    "width": WIDTH,
    "objects": objects,
  }
