"""Detection: COCO average precision of boxes and labels written as text."""

import contextlib
import dataclasses
import functools
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from pycocotools import coco as coco_lib
from pycocotools import cocoeval

from paligemma.data import location
from paligemma.metrics import answer_fields
from paligemma.metrics import boxes as boxes_lib
from paligemma.metrics.metric import Example, Metric, pairs

Size = tuple[int, int]

# The index of each area range in the tables of pycocotools: small is below
# 32 x 32 pixels, large above 96 x 96.
_AREAS = {"": 0, "/small": 1, "/medium": 2, "/large": 3}
_IOUS = {"AP": slice(None), "AP50": 0, "AP75": 5}


@dataclasses.dataclass(frozen=True)
class Record:
  """Boxes of one image.

  Attributes:
    truth: annotations as in COCO: "label", "bbox" (x, y, width, height) in
      pixels, "area" and "iscrowd".
    found: predictions, likewise, with "score".
    invalid: number of predicted objects that are malformed.
    total: number of predicted objects.
  """

  truth: tuple[Mapping[str, Any], ...]
  found: tuple[Mapping[str, Any], ...]
  invalid: int
  total: int

  @functools.cached_property
  def matches(self) -> dict[str, list[dict[str, Any] | None]]:
    """Label -> per area range, which boxes match, as COCOeval.evaluateImg.

    It is the same in every selection of records, and takes most of the time.
    """
    labels = sorted({box["label"] for box in (*self.truth, *self.found)})
    with contextlib.redirect_stdout(io.StringIO()):
      data = [coco_lib.COCO(), coco_lib.COCO()]
      for half, boxes in zip(data, (self.truth, self.found), strict=True):
        # Ids from 1 on: pycocotools takes the id 0 for no annotation.
        half.dataset = {
          "images": [{"id": 0}],
          "categories": [{"id": i} for i in range(len(labels))],
          "annotations": [
            box
            | {
              "id": i,
              "image_id": 0,
              "category_id": labels.index(box["label"]),
            }
            for i, box in enumerate(boxes, start=1)
          ],
        }
        half.createIndex()
      evaluation = cocoeval.COCOeval(*data, "bbox")
      evaluation.evaluate()
    areas = len(_AREAS)
    return {
      label: evaluation.evalImgs[i * areas : (i + 1) * areas]
      for i, label in enumerate(labels)
    }


class Detection(Metric):
  """Average precision of predicted boxes, as pycocotools computes it.

  A row is a Record, because average precision is not a mean over images.

  Fields of an example:
    the answer: the text of all objects, "<loc>x4 cat ; <loc>x4 dog"; or a list
      of {"box": (y0, x0, y1, x1) in pixels, "label": text}, with "area"
      (default: of the box) and "iscrowd" (default 0) as in COCO.
      "" or [] if there is no object.
    height, width: of the original image, in pixels; evaluators add them.

  Keys:
    AP, AP50, AP75: mean over labels of the average precision; over IoU
      thresholds 0.5, 0.55 ... 0.95, at 0.5, and at 0.75.
    AP/small, AP/medium, AP/large: AP of objects of this area.
    Each is missing if no such object is annotated.
    invalid: number of malformed predicted objects: no box, no label, no area,
      or not four locations. They are left out; the others count.
    total: number of predicted objects.
    num: number of images.

  Args:
    nms: of boxes with the same label and an IoU above this, only the one with
      the highest confidence is kept. None keeps all.

  Source: Lin et al. 2014, "Microsoft COCO", and pycocotools/cocoeval.py, which
  computes these numbers. Labels must match letter for letter.

  Raises:
    ValueError: nms is no IoU.
  """

  reads_size: ClassVar[bool] = True
  higher_is_better = dict.fromkeys(
    (*_IOUS, *(f"AP{suffix}" for suffix in _AREAS)), True
  ) | {"invalid": False}

  def __init__(self, nms: float | None = 0.5):
    if nms is not None and not 0 <= nms <= 1:
      raise ValueError(f"nms is {nms}, expected an IoU in [0, 1] or None.")
    self._nms = math.inf if nms is None else nms

  def rows(
    self,
    predictions: Sequence[str],
    examples: Sequence[Example],
    *,
    answer_key: str = "suffix",
    confidences: Sequence[Sequence[float]] | None = None,
  ) -> list[Record]:
    """Returns one Record per example; see Metric.rows.

    Args:
      confidences: per prediction, one number per box of the text, in order; see
        `confidence.of_objects`. Default: all are equal, and boxes rank in the
        order of the text.

    Raises:
      ValueError: as Metric.rows; an annotation is malformed, or there is not
        one confidence per box.
    """
    named = pairs(predictions, examples)
    if confidences is None:
      confidences = [None] * len(named)
    if len(confidences) != len(named):
      raise ValueError(
        f"confidences of {len(confidences)} predictions for {len(named)},"
        " expected those of each."
      )
    return [
      self._record(*pair, answer_key, own)
      for pair, own in zip(named, confidences, strict=True)
    ]

  def reduce(self, rows: Sequence[Record]) -> dict[str, float]:
    """Returns the scores of at least one record; records may repeat."""
    return average_precision(rows) | {
      "invalid": float(sum(row.invalid for row in rows)),
      "total": float(sum(row.total for row in rows)),
      "num": float(len(rows)),
    }

  def _record(self, prediction, example, answer_key, confidences):
    size = _size(example)
    objects = location.parse(prediction, size)
    boxes = [item for item in objects if item.box is not None]
    if confidences is None:
      confidences = [1.0] * len(boxes)
    if len(confidences) != len(boxes) or not np.isfinite(confidences).all():
      raise ValueError(
        f"{example['_where']}: confidences are {list(confidences)!r:.60},"
        f" expected one finite number for each of {len(boxes)} boxes."
      )
    by_label = {}
    for item, confidence in zip(boxes, confidences, strict=True):
      if not item.problem and item.label:
        by_label.setdefault(item.label, []).append((item.box, confidence))
    valid = sum(map(len, by_label.values()))
    found = []
    for label, items in by_label.items():
      corners, scores = map(np.array, zip(*items, strict=True))
      found += [
        _annotation(label, corners[i]) | {"score": float(scores[i])}
        for i in boxes_lib.suppress(corners, scores, self._nms)
      ]
    truth = tuple(_truth(example, answer_key, size))
    return Record(truth, tuple(found), len(objects) - valid, len(objects))


def average_precision(records: Sequence[Record]) -> dict[str, float]:
  """Returns AP, AP50, AP75, AP/small, AP/medium and AP/large of images.

  Those for which no object is annotated are missing. Records may repeat.
  """
  return _means(_precision(records)[1])


def average_precision_by_label(
  records: Sequence[Record],
) -> dict[str, dict[str, float]]:
  """Returns {label: its `average_precision`} of all annotated labels."""
  labels, precision = _precision(records)
  return {label: _means(precision[:, :, [i]]) for i, label in enumerate(labels)}


def _precision(records):
  """Returns the annotated labels, and the precision at
  [IoU threshold, recall, label, area], -1 if undefined."""
  labels = sorted({box["label"] for r in records for box in r.truth})
  evaluation = cocoeval.COCOeval(iouType="bbox")
  parameters = evaluation.params
  parameters.imgIds = list(range(len(records)))
  parameters.catIds = list(range(len(labels)))
  parameters.maxDets = parameters.maxDets[-1:]
  evaluation._paramsEval = parameters
  none = [None] * len(_AREAS)
  evaluation.evalImgs = [
    record.matches.get(label, none)[area]
    for label in labels
    for area in _AREAS.values()
    for record in records
  ]
  with contextlib.redirect_stdout(io.StringIO()):
    evaluation.accumulate()
  return labels, evaluation.eval["precision"][..., 0]


def _means(precision):
  scores = {}
  for name, thresholds in _IOUS.items():
    for suffix, area in _AREAS.items():
      values = precision[thresholds, ..., area]
      if (name == "AP" or not suffix) and (values >= 0).any():
        scores[name + suffix] = float(values[values >= 0].mean())
  return scores


def _size(example) -> Size:
  for key in ("height", "width"):
    value = answer_fields.read(example, key, f"image {key}")
    if not isinstance(value, int | np.integer) or value <= 0:
      expected = "pixels of the original image, above 0"
      raise answer_fields.wrong(example, key, expected)
  return int(example["height"]), int(example["width"])


def _truth(example, answer_key, size):
  value = answer_fields.read(example, answer_key, "answer")
  if isinstance(value, str):
    for item in location.parse(value, size):
      problem = item.problem
      problem = problem or (not item.label and "box without label")
      problem = problem or (item.box is None and "label without box")
      if problem:
        expected = "four locations and a label per object"
        hint = f' "{value[slice(*item.span)]:.40}": {problem}.'
        raise answer_fields.wrong(example, answer_key, expected, hint)
      yield _annotation(item.label, item.box)
    return
  if not isinstance(value, list | tuple):
    expected = "a text, or a list of boxes with labels"
    raise answer_fields.wrong(example, answer_key, expected)
  for i, item in enumerate(value):
    if isinstance(item, Mapping):  # null counts as absent
      item = {key: x for key, x in item.items() if x is not None}
    problem = _problem(item)
    if problem:
      raise ValueError(
        f'{example["_where"]}: object {i} of "{answer_key}" is {item!r:.60},'
        f" expected {problem}."
      )
    annotation = _annotation(item["label"], item["box"])
    annotation["area"] = float(item.get("area", annotation["area"]))
    yield annotation | {"iscrowd": int(item.get("iscrowd", 0))}


def _problem(item) -> str:
  """Returns what was expected of a malformed annotation, "" for a good one."""
  if not isinstance(item, Mapping):
    return '{"box": ..., "label": ...}'
  label = item.get("label")
  if not isinstance(label, str) or not label.strip():
    return 'a text as "label"'
  box = location.corners(item.get("box"))
  if box is None or (box[2:] <= box[:2]).any():
    return '(y0, x0, y1, x1) with y0 < y1 and x0 < x1 as "box"'
  try:
    is_area = 0 <= float(item.get("area", 1)) < math.inf
  except (TypeError, ValueError):
    is_area = False
  if not is_area:
    return 'pixels as "area"'
  if item.get("iscrowd", 0) not in (0, 1):
    return '0 or 1 as "iscrowd"'
  return ""


def _annotation(label, box) -> dict[str, Any]:
  """Returns the fields of COCO that annotations and predictions share."""
  y0, x0, y1, x1 = map(float, box)
  width, height = x1 - x0, y1 - y0
  return {
    "label": label.strip(),
    "bbox": [x0, y0, width, height],
    "area": width * height,
    "iscrowd": 0,
  }
