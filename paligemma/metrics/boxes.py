"""Boxes (y0, x0, y1, x1): how far they overlap, and which of them to keep."""

import numpy as np


def iou(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
  """Intersections over unions of a box and others.

  Args:
    box: float[4], (y0, x0, y1, x1).
    boxes: float[N, 4], the same; all have an area.

  Returns:
    float[N] in [0, 1].
  """
  upper = np.maximum(box[:2], boxes[:, :2])
  lower = np.minimum(box[2:], boxes[:, 2:])
  common = np.maximum(lower - upper, 0).prod(axis=1)
  own = (box[2:] - box[:2]).prod()
  others = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
  return common / (own + others - common)


def suppress(
  boxes: np.ndarray, scores: np.ndarray, threshold: float
) -> list[int]:
  """Non-maximum suppression: drops what overlaps with a box of higher score.

  Args:
    boxes: float[N, 4], (y0, x0, y1, x1) with area.
    scores: float[N]; of equal ones the first goes first.
    threshold: boxes with an IoU above it are taken for one thing.

  Returns:
    Indices of boxes that are kept, of highest score first.
  """
  order = np.argsort(-scores, kind="stable")
  kept = []
  while order.size:
    first, order = order[0], order[1:]
    kept.append(int(first))
    order = order[iou(boxes[first], boxes[order]) <= threshold]
  return kept
