"""Predicted objects in the formats of other programs.

coco                     results of COCO, which pycocotools scores
yolo                     a text file per image, as Ultralytics writes them
supervision.Detections   in Python
"""

import collections
import json
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from paligemma import disk, messages, registry
from paligemma.data import files, objects
from paligemma.evals.answer_objects import Answers

# Writes files that begin with a path; returns a line that says what it wrote.
Write = Callable[[Sequence[Answers], epath.PathLike], str]


def make(text: str) -> Write:
  """Returns a function that writes a format of FORMATS, see registry.make.

  Args:
    text: "coco", 'coco(instances="val.json")', "yolo".
  """
  return registry.make(text, FORMATS, "format")


def coco(instances: str | None = None) -> Write:
  """PATH.coco.json: results with image_id, category_id, bbox and score.

  A bbox is (x, y, width, height) in pixels; a mask is the "segmentation".

  Args:
    instances: annotations whose ids are used: of images with the same file
      name, whatever the folder, and of categories with the same name. Objects
      of others are left out. Default: ids count from 1, and PATH.coco_ids.json
      names their images and categories.
  """
  if instances is not None:
    stated = disk.read_json(instances)
    try:
      images = {_file(x["file_name"]): x["id"] for x in stated["images"]}
      categories = {x["name"]: x["id"] for x in stated["categories"]}
    except (KeyError, TypeError):
      raise ValueError(
        f'{instances}: expected "images" with file_name and id, and '
        '"categories" with name and id'
      ) from None

  def write(answers: Sequence[Answers], path: epath.PathLike) -> str:
    results_path = f"{path}.coco.json"
    if os.path.realpath(results_path) == os.path.realpath(instances or ""):
      raise ValueError(
        f"{instances}: holds the annotations, but would be replaced by the "
        "results; name another --out"
      )
    if instances is None:
      image_ids = {x.image: i for i, x in enumerate(answers, start=1)}
      labels = enumerate(_labels(answers), start=1)
      category_ids = {label: i for i, label in labels}
    else:
      image_ids = {x.image: images.get(_file(x.image)) for x in answers}
      category_ids = categories
    results, left_out = [], collections.Counter()
    for answer in answers:
      for item in answer.objects:
        label, image = item["label"], image_ids[answer.image]
        if image is None or label not in category_ids:
          left_out[answer.image if image is None else label] += 1
          continue
        y0, x0, y1, x1 = item["box"]
        result = {
          "image_id": image,
          "category_id": category_ids[label],
          "bbox": [x0, y0, round(x1 - x0, 2), round(y1 - y0, 2)],
          "score": item["score"],
        }
        if "mask" in item:
          result["segmentation"] = item["mask"]
        results.append(result)
    disk.write(results_path, json.dumps(results))
    said = f"{results_path}: {len(results)} boxes"
    if instances is not None:
      return said + _missing(left_out, instances)
    ids = {
      "images": [
        dict(id=image_ids[x.image], file_name=x.image)
        | dict(zip(("height", "width"), x.size, strict=True))
        for x in answers
      ],
      "categories": [dict(id=i, name=x) for x, i in category_ids.items()],
    }
    disk.write(f"{path}.coco_ids.json", json.dumps(ids, ensure_ascii=False))
    return f"{said}; {path}.coco_ids.json: their ids"

  return write


def yolo(classes: str | None = None) -> Write:
  """PATH.yolo/labels/IMAGE.txt: lines of "class x y width height score".

  x and y are of the middle, and all four relative to the image. Masks are left
  out. An image without objects has an empty file.

  Args:
    classes: a file of labels, one a line, of classes 0, 1, ...; objects with
      others are left out. Default: those that occur, sorted. They are written
      to PATH.yolo/classes.txt.
  """
  stated = None
  if classes is not None:
    try:
      text = files.read(classes, what="classes").decode()
    except UnicodeDecodeError as error:
      raise ValueError(f"{classes}: not UTF-8: {error.reason}") from None
    stated = [line.strip() for line in text.splitlines()]

  def write(answers: Sequence[Answers], path: epath.PathLike) -> str:
    labels = _labels(answers) if stated is None else stated
    numbers = {label: i for i, label in enumerate(labels)}
    count, left_out = 0, collections.Counter()
    folder = epath.Path(f"{path}.yolo")
    for answer in answers:
      height, width = answer.size
      lines = []
      for item in answer.objects:
        if item["label"] not in numbers:
          left_out[item["label"]] += 1
          continue
        y0, x0, y1, x1 = np.divide(item["box"], (height, width) * 2)
        values = (x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0, item["score"]
        text = " ".join(f"{value:.6f}" for value in values)
        lines.append(f"{numbers[item['label']]} {text}\n")
      disk.write(folder / "labels" / f"{answer.name}.txt", "".join(lines))
      count += len(lines)
    disk.write(folder / "classes.txt", "".join(f"{x}\n" for x in labels))
    said = f"{folder}: {count} boxes of {len(answers)} images"
    return said + _missing(left_out, classes)

  return write


FORMATS = {"coco": coco, "yolo": yolo}


def to_supervision(
  found: Sequence[Mapping[str, Any]], classes: Sequence[str] | None = None
) -> Any:
  """Returns supervision.Detections of the objects of one image.

  Args:
    found: as of paligemma.parse, or "objects" of a line of predictions. Scores
      and masks are left out unless all objects have them.
    classes: labels in the order of class_id. Default: those that occur, sorted.
      data["class_name"] holds the labels.

  Raises:
    ValueError: supervision is missing, or a label is not among the classes.
  """
  try:
    import supervision
  except ImportError:
    raise ValueError(
      'supervision is missing: pip install "paligemma[supervision]"'
    ) from None
  if not found:
    return supervision.Detections.empty()
  found = [objects.from_json(item) for item in found]
  labels = [item["label"] for item in found]
  numbers = {x: i for i, x in enumerate(classes or sorted(set(labels)))}
  optional = {
    name: np.array([item[key] for item in found])
    for name, key in (("confidence", "score"), ("mask", "mask"))
    if all(key in item for item in found)
  }
  return supervision.Detections(
    xyxy=np.array([item["box"] for item in found])[:, [1, 0, 3, 2]],
    class_id=np.array([registry.lookup(numbers, x, "class") for x in labels]),
    data={"class_name": np.array(labels)},
    **optional,
  )


def _file(path):
  return pathlib.PurePath(path).name


def _labels(answers):
  return sorted({item["label"] for x in answers for item in x.objects})


def _missing(left_out, path):
  """Returns how many boxes had a name that a file lacks, "" for none."""
  if not left_out:
    return ""
  names = messages.shown(", ".join(sorted(left_out)))
  return f"; {left_out.total()} left out, which {path} lacks: {names}"
