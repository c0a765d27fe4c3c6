"""Detection: average precision of COCO, from texts of boxes and labels."""

import contextlib
import dataclasses
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from paligemma.data import location
from paligemma.metrics import answer_fields
from paligemma.metrics import boxes as boxes_lib
from paligemma.metrics import metric as metric_lib

Size = tuple[int, int]

# Of pycocotools: at most so many detections per image and label count, and the
# places of areas in its tables. Small is below 32 x 32 pixels, large above
# 96 x 96.
MOST = 100
_AREAS = {"": 0, "/small": 1, "/medium": 2, "/large": 3}
_IOUS = {"AP": slice(None), "AP50": 0, "AP75": 5}


@dataclasses.dataclass(frozen=True)
class Record:
  """Boxes of one image.

  Attributes:
    truth: annotations of COCO: "label", "bbox" (x, y, width, height) in pixels,
      "area" and "iscrowd".
    found: predictions: "label", "bbox", "area" and "score".
    invalid: number of predicted objects that are malformed.
    total: number of predicted objects.
  """

  truth: tuple[Mapping[str, Any], ...]
  found: tuple[Mapping[str, Any], ...]
  invalid: int
  total: int


class Detection(metric_lib.Metric):
  """Average precision of predicted boxes, as pycocotools computes it.

  A row is a Record: average precision is no mean over images.

  Fields of an example:
    the answer: the text of all objects, "<loc>x4 cat ; <loc>x4 dog"; or a list
      of {"box": (y0, x0, y1, x1) in pixels, "label": text}, with "area"
      (default that of the box) and "iscrowd" (default 0) where COCO gives them.
      No object at all is "" or [].
    height, width: of the original image, in pixels; evaluators add them.

  Keys:
    AP, AP50, AP75: mean over labels of the average precision; over IoU
      thresholds 0.5, 0.55 ... 0.95, at 0.5, and at 0.75.
    AP/small, AP/medium, AP/large: AP of things of this area.
    Each is missing where nothing is annotated.
    invalid: number of predicted objects that are malformed: no box, no label,
      no area, or no four locations. They are left out; the others count.
    total: number of predicted objects.
    num: number of images.

  Args:
    nms: of boxes with the same label and a larger IoU than this, the one of
      highest confidence is kept. None keeps all. Default 0.5.

  Source: Lin et al. 2014, "Microsoft COCO", and pycocotools/cocoeval.py, whose
  numbers these are. Labels are those annotated; they match letter for letter.
  """

  reads_size: ClassVar[bool] = True

  def __init__(self, nms: float | None = 0.5):
    if nms is not None and not 0 <= nms <= 1:
      raise ValueError(f"nms is {nms}, expected an IoU in [0, 1] or None.")
    self._nms = nms

  def rows(
    self,
    predictions: Sequence[str],
    examples: Sequence[metric_lib.Example],
    *,
    answer_key: str = "suffix",
    confidences: Sequence[Sequence[float]] | None = None,
  ) -> list[Record]:
    """One Record per example.

    Args:
      predictions: decoded texts, one per example.
      examples: the raw examples.
      answer_key: field of an example with its objects.
      confidences: per prediction, one number per box of the text, in order, see
        `confidence.of_objects`. Default: none is surer than another; those
        first in the text are taken first.

    Raises:
      ValueError: as Metric.rows; an annotation is malformed, or there is not
        one confidence per box.
    """
    named = metric_lib.pairs(predictions, examples)
    if confidences is None:
      confidences = [None] * len(named)
    if len(confidences) != len(named):
      raise ValueError(
        f"confidences of {len(confidences)} predictions for {len(named)},"
        " expected those of each."
      )
    return [
      self._record(prediction, example, answer_key, sure)
      for (prediction, example), sure in zip(named, confidences, strict=True)
    ]

  def reduce(self, rows):
    """Average precision over records, one at least, with repetition or not."""
    return average_precision(rows) | {
      "invalid": float(sum(row.invalid for row in rows)),
      "total": float(sum(row.total for row in rows)),
      "num": float(len(rows)),
    }

  def __call__(
    self, predictions, examples, *, answer_key="suffix", confidences=None
  ):
    """Numbers over all examples; arguments and errors as those of rows."""
    return self.reduce(
      self.rows(
        predictions, examples, answer_key=answer_key, confidences=confidences
      )
    )

  def _record(self, prediction, example, answer_key, confidences):
    size = _size(example)
    objects = location.parse(prediction, size)
    boxes = [thing for thing in objects if thing.box is not None]
    if confidences is None:
      confidences = [1.0] * len(boxes)
    if len(confidences) != len(boxes) or not np.isfinite(confidences).all():
      raise ValueError(
        f"{example['_where']}: confidences are {list(confidences)!r:.60},"
        f" expected one finite number for each of {len(boxes)} boxes."
      )
    by_label = {}
    for thing, confidence in zip(boxes, confidences, strict=True):
      if not thing.problem and thing.label:
        by_label.setdefault(thing.label, []).append((thing.box, confidence))
    valid = sum(map(len, by_label.values()))
    found = []
    for label, things in by_label.items():
      corners, scores = map(np.array, zip(*things, strict=True))
      kept = np.argsort(-scores, kind="stable")
      if self._nms is not None:
        kept = boxes_lib.suppress(corners, scores, self._nms)
      found += [
        _annotation(label, corners[i]) | {"score": float(scores[i])}
        for i in kept
      ]
    return Record(
      truth=tuple(_truth(example, answer_key, size)),
      found=tuple(found),
      invalid=len(objects) - valid,
      total=len(objects),
    )


def average_precision(records: Sequence[Record]) -> dict[str, float]:
  """AP, AP50, AP75, AP/small, AP/medium and AP/large of images.

  Args:
    records: of the images, which may repeat.

  Returns:
    {name: value in [0, 1]}, without those of which nothing is annotated.

  Raises:
    ValueError: pycocotools is missing.
  """
  try:
    from pycocotools import coco as coco_lib
    from pycocotools import cocoeval
  except ImportError:
    raise ValueError(
      "average precision is computed by pycocotools, which is missing: "
      'pip install "paligemma[coco]".'
    ) from None
  labels = sorted({thing["label"] for r in records for thing in r.truth})
  if not labels:
    return {}
  ids = {label: i for i, label in enumerate(labels, start=1)}

  def data_set(things):
    data = coco_lib.COCO()
    data.dataset = {
      "images": [{"id": i} for i in range(len(records))],
      "categories": [{"id": i} for i in ids.values()],
      # From 1 on: for pycocotools, 0 is nothing.
      "annotations": [
        {**thing, "id": n, "image_id": i, "category_id": ids[thing["label"]]}
        for n, (i, thing) in enumerate(things, start=1)
      ],
    }
    data.createIndex()
    return data

  with contextlib.redirect_stdout(io.StringIO()):
    evaluation = cocoeval.COCOeval(
      data_set((i, thing) for i, r in enumerate(records) for thing in r.truth),
      data_set(
        (i, thing)
        for i, r in enumerate(records)
        for thing in r.found
        if thing["label"] in ids
      ),
      "bbox",
    )
    evaluation.evaluate()
    evaluation.accumulate()
  assert evaluation.params.maxDets[-1] == MOST
  # [IoU threshold, recall, label, area, most detections], -1 if undefined
  precision = evaluation.eval["precision"][..., -1]
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
      raise answer_fields.wrong(
        example, key, "pixels of the original image, above 0"
      )
  return int(example["height"]), int(example["width"])


def _truth(example, answer_key, size):
  """Yields the annotations of one image."""
  value = answer_fields.read(example, answer_key, "answer")
  if isinstance(value, str):
    for thing in location.parse(value, size):
      problem = (
        thing.problem
        or (not thing.label and "box without label")
        or (thing.box is None and "label without box")
      )
      if problem:
        start, stop = thing.span
        raise answer_fields.wrong(
          example,
          answer_key,
          "four locations and a label per object",
          f' "{value[start:stop]:.40}": {problem}.',
        )
      yield _annotation(thing.label, thing.box)
    return
  if not isinstance(value, list | tuple):
    raise answer_fields.wrong(
      example, answer_key, "a text, or a list of boxes with labels"
    )
  for i, thing in enumerate(value):
    if isinstance(thing, Mapping):  # null is as nothing
      thing = {key: x for key, x in thing.items() if x is not None}
    problem = _problem(thing)
    if problem:
      raise ValueError(
        f'{example["_where"]}: object {i} of "{answer_key}" is {thing!r:.60},'
        f" expected {problem}."
      )
    annotation = _annotation(thing["label"], np.array(thing["box"], float))
    annotation["area"] = float(thing.get("area", annotation["area"]))
    yield annotation | {"iscrowd": int(thing.get("iscrowd", 0))}


def _problem(thing) -> str:
  """What is expected of an annotated object, "" if it is as expected."""
  if not isinstance(thing, Mapping):
    return '{"box": ..., "label": ...}'
  label = thing.get("label")
  if not isinstance(label, str) or not label.strip():
    return 'a text as "label"'
  try:
    box = np.array(thing.get("box"), float)
    area = float(thing.get("area", 1))
  except (TypeError, ValueError):
    box, area = np.empty(0), math.nan
  if (
    box.shape != (4,)
    or not np.isfinite(box).all()
    or (box[2:] <= box[:2]).any()
  ):
    return '(y0, x0, y1, x1) with y0 < y1 and x0 < x1 as "box"'
  if not 0 <= area < math.inf:
    return 'pixels as "area"'
  if thing.get("iscrowd", 0) not in (0, 1):
    return '0 or 1 as "iscrowd"'
  return ""


def _annotation(label, box) -> dict[str, Any]:
  """The fields of COCO that an annotation and a prediction share."""
  y0, x0, y1, x1 = map(float, box)
  width, height = x1 - x0, y1 - y0
  return {
    "label": label.strip(),
    "bbox": [x0, y0, width, height],
    "area": width * height,
    "iscrowd": 0,
  }
