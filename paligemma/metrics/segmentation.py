"""Segmentation of one object an image: mean IoU of masks, accuracy of boxes."""

import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int
from PIL import Image

from paligemma.data import location
from paligemma.data import masks as masks_lib
from paligemma.metrics import answer_fields, boxes
from paligemma.metrics.metric import Example, Metric, Row, means

THRESHOLDS = (0.5, 0.75)  # of the IoU of boxes
CODES = 16  # of a mask

_LAST_LOC = 1023
_LAST_SEG = 127
_BATCH = 64  # masks decoded at a time: one size, one compilation

# The beginning of a valid prediction, without any space; the rest is ignored.
_PIECES = re.compile(r"((?:<loc[0-9]{4}>){4})((?:<seg[0-9]{3}>){16})")

Pieces = tuple[Int[np.ndarray, "4"], Int[np.ndarray, "16"]]


class Segmentation(Metric):
  """Compares masks and boxes with those of the examples, in original pixels.

  Fields of an example, which need not have an answer:
    mask: array[H, W] of the original size, not 0 inside; or a run-length mask
      of COCO, {"size": [H, W], "counts": ...}.
    box: (y0, x0, y1, x1) in pixels; default: the bounding box of the mask.

  Keys:
    miou: mean IoU of the masks, 0 for an invalid prediction.
    boxacc/0.5, boxacc/0.75: share of boxes with at least this IoU.
    invalid: number of predictions that do not begin with four locations and 16
      codes, or whose box has no area or covers no pixel.
    total: number of predictions.

  Args:
    decode: int32[B, 16] codes -> float[B, 64, 64] masks, above 0 inside, such
      as functools.partial(mask_codec.decode, params).

  Source: big_vision, evaluators/proj/paligemma/transfers/segmentation.py, which
  reads tokens; here, a text that begins with white space is invalid too. A mask
  is resized to the box rounded down; data/masks.paste rounds to nearest.
  """

  higher_is_better = dict.fromkeys(
    ("miou", *(f"boxacc/{t}" for t in THRESHOLDS)), True
  ) | {"invalid": False}

  def __init__(self, decode: Callable[[np.ndarray], np.ndarray]):
    self.decode = decode

  def score_all(
    self, named: Sequence[tuple[str, Example]], answer_key: str
  ) -> list[Row]:
    found = [parse(prediction) for prediction, _ in named]
    decoded = iter(self._decode_all([p[1] for p in found if p is not None]))
    return [
      _row(pieces, None if pieces is None else next(decoded), example)
      for pieces, (_, example) in zip(found, named, strict=True)
    ]

  def reduce(self, rows: Sequence[Row]) -> dict[str, float]:
    scores = means(rows)
    invalid = sum(row["invalid"] for row in rows)
    return scores | {"invalid": invalid, "total": float(len(rows))}

  def _decode_all(self, codes):
    for start in range(0, len(codes), _BATCH):
      real = codes[start : start + _BATCH]
      batch = np.zeros((_BATCH, CODES), np.int32)
      batch[: len(real)] = real
      yield from np.asarray(self.decode(batch), np.float32)[: len(real)]


def parse(prediction: str) -> Pieces | None:
  """Returns locations (y0, x0, y1, x1) in [0, 1024) and codes in [0, 128).

  None if the text does not begin with them, or y1 <= y0, or x1 <= x0.
  """
  match = _PIECES.match(prediction)
  if not match:
    return None
  locs, codes = (
    np.array(re.findall("[0-9]+", part), np.int32) for part in match.groups()
  )
  in_range = locs.max() <= _LAST_LOC and codes.max() <= _LAST_SEG
  return (locs, codes) if in_range and (locs[:2] < locs[2:]).all() else None


def mask_iou(
  decoded: Float[np.ndarray, "64 64"],
  locs: Int[np.ndarray, "4"],
  truth: Bool[np.ndarray, "H W"],
) -> float:
  """Returns the IoU of a decoded and a true mask, at full size.

  Args:
    decoded: above 0 inside.
    locs: (y0, x0, y1, x1) in [0, 1024).
    truth: not empty.

  Returns:
    A value in [0, 1]; NaN if the box covers no pixel.
  """
  y0, x0, y1, x1 = (locs / _LAST_LOC * (truth.shape * 2)).astype(int)
  if y1 <= y0 or x1 <= x0:
    return float("nan")
  size = x1 - x0, y1 - y0
  picture = Image.fromarray(decoded).resize(size, Image.Resampling.BILINEAR)
  inside = np.asarray(picture) > 0
  common = np.count_nonzero(inside & truth[y0:y1, x0:x1])
  union = np.count_nonzero(truth) + np.count_nonzero(inside) - common
  return float(common / union)


def _row(pieces, decoded, example):
  truth = _mask(example)
  box = _box(example, truth)
  box_iou, iou = 0.0, float("nan")
  if pieces is not None:
    relative = box / (truth.shape * 2)
    (box_iou,) = boxes.iou(pieces[0] / _LAST_LOC, relative[None])
    iou = mask_iou(decoded, pieces[0], truth)
  return {
    "miou": 0.0 if np.isnan(iou) else iou,
    **{f"boxacc/{t}": float(box_iou >= t) for t in THRESHOLDS},
    "invalid": float(np.isnan(iou)),
  }


def _mask(example):
  value = answer_fields.read(example, "mask", "mask")
  try:
    if isinstance(value, Mapping):
      mask = masks_lib.from_rle(value, *map(int, value["size"]))
    else:
      mask = np.asarray(value) != 0
    problem = f"has shape {mask.shape}" if mask.ndim != 2 else "is empty"
  except (KeyError, TypeError, ValueError) as error:
    mask, problem = np.empty(0), f"cannot be read ({error})"
  if mask.ndim != 2 or not mask.any():
    raise ValueError(
      f'{example["_where"]}: "mask" {problem}, expected an array'
      " [height, width] or a run-length mask of COCO, with something inside."
    )
  return mask


def _box(example, mask):
  if example.get("box") is None:
    return np.array(masks_lib.bounding_box(mask), np.float64)
  box = location.corners(example["box"])
  if box is None or not (box[:2] < box[2:]).all():
    expected = "(y0, x0, y1, x1) in pixels with y0 < y1 and x0 < x1"
    raise answer_fields.wrong(example, "box", expected)
  return box
