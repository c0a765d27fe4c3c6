"""Predicted objects beside the true ones: which are right, and how to see it.

On a picture a predicted object is green if it is right and red if not; a true
one is white if it is found and red if not.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from paligemma.data import drawing, location, objects
from paligemma.evals.predictions import Record
from paligemma.metrics import boxes as boxes_lib

# IoU with a true box of the same label from which on a box is right.
OVERLAP = 0.5
RIGHT, WRONG, FOUND = (60, 230, 90), (255, 80, 70), (255, 255, 255)


def pair(
  found: Sequence[objects.Object], truths: Sequence[objects.Object]
) -> list[tuple[int, int]]:
  """Returns which predicted object (index) is which true one (index).

  They overlap by OVERLAP, whatever the order, and each is in one pair at most:
  first those of the same label, then others, each time the largest IoU first.
  """
  overlaps = sorted(
    (
      (
        truth["label"] != item["label"],
        -float(boxes_lib.iou(*map(np.array, (item["box"], [truth["box"]])))[0]),
        i,
        k,
      )
      for i, item in enumerate(found)
      for k, truth in enumerate(truths)
    ),
    key=lambda overlap: overlap[:2],
  )
  pairs = {}
  for _, negative, i, k in overlaps:
    if -negative >= OVERLAP and i not in pairs and k not in pairs.values():
      pairs[i] = k
  return list(pairs.items())


def judge(
  found: Sequence[objects.Object], truths: Sequence[objects.Object]
) -> tuple[list[bool], list[bool]]:
  """Returns which predicted objects are right, and which true ones are found:
  those in a `pair` with the same label."""
  right, is_found = [False] * len(found), [False] * len(truths)
  for i, k in pair(found, truths):
    right[i] = is_found[k] = found[i]["label"] == truths[k]["label"]
  return right, is_found


def read_objects(
  record: Record,
  size: location.Size,
  *,
  answer_key: str = "suffix",
  decode: objects.DecodeMasks | None = None,
  min_score: float = 0.0,
) -> tuple[list[objects.Object], list[objects.Object]]:
  """Returns the objects of prediction and truth in pixels of a size.

  Args:
    answer_key: field of the record with the truth, a text, or a list of
      objects in pixels of the record's "height" and "width".
    decode: decodes masks. Default: objects have none.
    min_score: predicted objects with a lower score are left out.

  Raises:
    ValueError: there is a min_score, but the record has no "confidences".
  """
  scores = record.get("confidences")
  found = objects.parse(
    record["prediction"], size, decode=decode, scores=scores
  )
  if min_score and found and scores is None:
    raise ValueError('has no "confidences", which --min_score needs')
  found = [item for item in found if item.get("score", 1) >= min_score]
  truth = record.get(answer_key)
  if isinstance(truth, str):
    return found, objects.parse(truth, size, decode=decode)
  listed = truth if isinstance(truth, list) else ()
  boxes = [x for x in listed if isinstance(x, Mapping) and "box" in x]
  if not boxes:
    return found, []
  original = record["height"], record["width"]
  return found, objects.resize(
    [{"box": x["box"], "label": x["label"]} for x in boxes], original, size
  )


def is_right(
  record: Record, min_score: float = 0.0, answer_key: str = "suffix"
) -> bool:
  """Whether all boxes are right and all true ones are found, see `judge`.

  An answer with malformed boxes is wrong. Without true boxes, "correct" counts.
  """
  found, truths = read_objects(
    record, (1, 1), min_score=min_score, answer_key=answer_key
  )
  if not truths:
    return bool(record.get("correct"))
  read = location.parse(record["prediction"], (1, 1))
  if any(obj.problem or obj.box is None for obj in read):
    return False
  right, is_found = judge(found, truths)
  return all(right) and all(is_found)


def shorten(text: str) -> str:
  """The labels alone of an answer of boxes; any other text as it is."""
  objects = location.parse(text, (1, 1))
  if any(o.problem for o in objects) or not any(o.box for o in objects):
    return text
  return location.SEPARATOR.join(obj.label for obj in objects)


def colours(
  found: Sequence[objects.Object], truths: Sequence[objects.Object]
) -> tuple[list[drawing.Colour], list[drawing.Colour]]:
  """Returns the colours that predicted and true objects are drawn in."""
  right, is_found = judge(found, truths)
  return (
    [RIGHT if good else WRONG for good in right],
    [FOUND if good else WRONG for good in is_found],
  )
