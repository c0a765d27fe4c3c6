"""Overlap of boxes (y0, x0, y1, x1), and non-maximum suppression."""

import numpy as np
from jaxtyping import Float


def iou(
  box: Float[np.ndarray, "4"], boxes: Float[np.ndarray, "N 4"]
) -> Float[np.ndarray, " N"]:
  """Returns the IoU, in [0, 1], of a box with each of others; all have area."""
  upper = np.maximum(box[:2], boxes[:, :2])
  lower = np.minimum(box[2:], boxes[:, 2:])
  common = np.maximum(lower - upper, 0).prod(axis=1)
  own = (box[2:] - box[:2]).prod()
  others = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
  return common / (own + others - common)


def suppress(
  boxes: Float[np.ndarray, "N 4"],
  scores: Float[np.ndarray, " N"],
  threshold: float,
) -> list[int]:
  """Non-maximum suppression: drops boxes that overlap one of higher score.

  Args:
    boxes: all with area.
    scores: ties are broken by index, the lower first.
    threshold: boxes with an IoU above it count as one object.

  Returns:
    Indices of the boxes that are kept, highest score first.
  """
  order = np.argsort(-scores, kind="stable")
  kept = []
  while order.size:
    first, order = order[0], order[1:]
    kept.append(int(first))
    order = order[iou(boxes[first], boxes[order]) <= threshold]
  return kept
