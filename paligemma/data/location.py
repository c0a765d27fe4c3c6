"""Boxes, labels and mask codes in the text of a prompt or an answer.

    <loc0123><loc0045><loc0678><loc0910><seg001>...<seg127> cat ; <loc...> dog
    top      left     bottom   right    16 codes of a mask  label

Boxes are (y0, x0, y1, x1) in pixels of the original image, whose corners are
(0, 0), the upper left one of pixel (0, 0), and (height, width); sizes are
(height, width). A location is the nearest of 1024 points from 0 to the side's
length: 1023 intervals, as in the training and evaluation code of big_vision
(pp/proj/paligemma/segmentation.py). Its notebook and the demos read boxes with
1024, which moves them towards the origin by at most a thousandth.
"""

import dataclasses
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from paligemma.data import tokenizer
from paligemma.data.image import Size

Box = tuple[float, float, float, float]

SEPARATOR = " ; "
CODES = 16  # of a mask

_LAST = len(tokenizer.LOC) - 1
_NUMBERS = {piece: int(piece[4:-1]) for piece in tokenizer.LOC + tokenizer.SEG}

_PIECE = re.compile(r"<(loc|seg)[0-9]+>")
_NUMBER = re.compile(r"<loc([0-9]{4})>")
_WELL_FORMED = re.compile(
  r"(?:(?:<loc[0-9]{4}>\s*){4})+(?:(?:<seg[0-9]{3}>\s*){16})?"
)
# A location or code, possibly misspelled.
_MEANT = re.compile(r"<\s*(?:loc|seg)[\s_:-]*\d*\s*>|<(?:loc|seg)\d+", re.I)
# A run of locations and then codes, any number of both.
_RUN = re.compile(
  r"(?=<(?:loc|seg)[0-9]+>)((?:<loc[0-9]+>\s*)*)((?:<seg[0-9]+>\s*)*)"
)


@dataclasses.dataclass(frozen=True)
class Object:
  """An object in a text.

  Attributes:
    label: The text after the box, or without a box; may be "".
    codes: Sixteen of [0, 128), or None.
    span: (start, stop) in characters of the text that it was read from.
    problem: What is wrong with it, "" if it is well-formed.
  """

  box: Box | None = None
  label: str = ""
  codes: tuple[int, ...] | None = None
  span: tuple[int, int] | None = None
  problem: str = ""


def corners(box: Any) -> Float[np.ndarray, "4"] | None:
  """Returns finite (y0 <= y1, x0 <= x1) in float64, None for anything else."""
  try:
    found = np.asarray(box, np.float64)
  except (TypeError, ValueError):
    return None
  if found.shape != (4,) or not np.isfinite(found).all():
    return None
  return found if (found[:2] <= found[2:]).all() else None


def encode_box(box: Sequence[float], size: Size) -> str:
  """Writes a box: (12, 0, 24, 32) in 48x64 is <loc0256><loc0000>...

  A location is round(1023 * coordinate / side), halves to even, of the box that
  `widen` returns.

  Raises:
    ValueError: The box is not of four finite numbers, or upside down.

  Source: refcoco_mask2str of big_vision, which rounds in float32, and writes
  thin boxes without area.
  """
  fractions = np.divide(widen(box, size), _sides(size))
  bins = np.clip(np.round(fractions * _LAST), 0, _LAST)
  return "".join(tokenizer.LOC[i] for i in bins.astype(int))


def widen(
  box: Sequence[float],
  size: Size,
  steps: Size = (_LAST, _LAST),
) -> Box:
  """Clips a box, and widens a side that would have no length when rounded.

  Such a side becomes the interval around its middle.

  Args:
    box, size: As of `encode_box`.
    steps: Number of equal intervals of height and width, to whose ends the box
      will be rounded. Default: those of locations.
  """
  sides = _sides(size)
  clipped = np.clip(_checked(box), 0, sides).tolist()
  for low, side, count in zip((0, 1), size, steps, strict=True):
    a, b = (clipped[i] / side * count for i in (low, low + 2))
    if a < b and round(a) == round(b):
      start = math.floor((a + b) / 2)
      clipped[low] = start * side / count
      clipped[low + 2] = (start + 1) * side / count
  return tuple(clipped)


def snap(box: Sequence[float], size: Size, steps: Size) -> Box:
  """Clips a box, and rounds it to the ends of equal intervals, as `widen`."""
  sides, counts = _sides(size), _sides(steps)
  widened = np.asarray(widen(box, size, steps))
  return tuple((np.round(widened / sides * counts) / counts * sides).tolist())


def encode(objects: Iterable[Object], size: Size) -> str:
  """Writes objects, such as "<loc>x4<seg>x16 cat ; <loc>x4 dog ; sky".

  Raises:
    ValueError: An object that `parse` would not return: codes without box, no
      box and no label, or a label with ";" or locations in it.
  """
  return SEPARATOR.join(_encode_object(item, size) for item in objects)


def parse(text: str, size: Size) -> list[Object]:
  """Reads the objects of a text, the inverse of `encode` up to half a bin.

  Objects end at ";", at the next box, or at the end of the text or "<eos>" in
  it. Words before the locations of an object are ignored, those after it are
  its label; an object without locations and codes is all label. Space is
  optional everywhere. Four successive locations are a box, eight are two.

  A malformed object has a `problem`: another number of locations or codes or a
  number beyond <loc1023> or <seg127>, all without box, or a box without area.
  """
  objects, sides = [], _sides(size).tolist()
  text, _, _ = text.partition("<eos>")
  for item in re.finditer("[^;]+", text):
    runs = list(_RUN.finditer(text, *item.span()))
    if not runs and (label := item[0].strip()):
      start = text.index(label, item.start())
      objects.append(Object(None, label, span=(start, start + len(label))))
    stops = [run.start() for run in runs[1:]] + [item.end()]
    for run, stop in zip(runs, stops, strict=False):
      objects.extend(_read(text, run, stop, sides))
  return objects


def runs(value: Any) -> list[str]:
  """Returns the runs of successive locations in a text or a list of fields."""
  if isinstance(value, list):
    return [run for element in value for run in runs(element)]
  found = _RUN.finditer(value) if isinstance(value, str) else ()
  return [match[1].rstrip() for match in found if match[1]]


def find_misspelled(text: str) -> re.Match | None:
  """Finds the first misspelled location or code, such as "<loc100>"."""
  found = (m for m in _MEANT.finditer(text) if m[0] not in _NUMBERS)
  return next(found, None)


def malformed(text: str) -> str:
  """Returns the problem of the first malformed object without box, or "".

  Objects without locations and boxes without area are not malformed.
  """
  rest = _WELL_FORMED.sub("", text)
  if "<loc" not in rest and "<seg" not in rest:
    return ""
  found = (x.problem for x in parse(text, (1, 1)) if x.box is None)
  return next(filter(None, found), "")


def has_flat_box(text: str) -> bool:
  """Returns whether a text that is not `malformed` has a box without area."""
  bins = iter(_NUMBER.findall(text))  # four digits: they sort as texts
  boxes = zip(bins, bins, bins, bins, strict=False)
  return any(y0 >= y1 or x0 >= x1 for y0, x0, y1, x1 in boxes)


def to_pixels(box: Sequence[float], size: Size) -> tuple[int, ...]:
  """Rounds a box to whole pixels, halves to even, and clips it to the image.

  It recovers a box of whole pixels from its text if the sides of the image are
  at most 1023 pixels. A box that is thin or outside has no area.

  Source: refcoco_mask2str of big_vision, before it crops a mask. Its evaluator
  rounds down instead, which may shrink a box by a pixel.
  """
  rounded = np.clip(np.round(_checked(box)), 0, _sides(size))
  return tuple(rounded.astype(int).tolist())


def _encode_object(item, size):
  if item.box is None and item.codes is not None:
    raise ValueError(f'object "{item.label}" has codes of a mask but no box')
  if item.box is None and not item.label.strip():
    raise ValueError("object has neither box nor label")
  if ";" in item.label or _PIECE.search(item.label):
    raise ValueError(
      f'label "{item.label}" holds ";", a location or a code, where it would '
      "end"
    )
  pieces = encode_box(item.box, size) if item.box is not None else ""
  if item.codes is not None:
    codes, count = np.asarray(item.codes), len(tokenizer.SEG)
    valid = codes.shape == (CODES,) and codes.dtype.kind in "iu"
    if not valid or codes.min() < 0 or codes.max() >= count:
      raise ValueError(
        f"codes of a mask are {codes.tolist()}, expected {CODES} integers in "
        f"[0, {count})"
      )
    pieces += "".join(tokenizer.SEG[i] for i in codes)
  return f"{pieces} {item.label}".strip()


def _read(text, run, stop, sides):
  """Yields the objects of one run of pieces; the last has the label."""
  locs = list(_PIECE.finditer(text, *run.span(1)))
  segs = list(_PIECE.finditer(text, *run.span(2)))
  label = text[run.end() : stop].strip()
  stop = run.end() + len(text[run.end() : stop].rstrip())
  stop = stop if label else (segs or locs)[-1].end()
  problem = ""
  if unknown := [m[0] for m in locs + segs if m[0] not in _NUMBERS]:
    problem = f"{unknown[0]:.12} is no piece of the vocabulary"
  elif not locs or len(locs) % 4 or len(segs) not in (0, CODES):
    problem = (
      f"{len(locs)} locations and {len(segs)} codes, expected 4 locations, and "
      f"{CODES} codes or none"
    )
  if problem:
    yield Object(None, label, span=(run.start(), stop), problem=problem)
    return
  for i in range(0, len(locs), 4):
    y0, x0, y1, x1 = (
      _NUMBERS[match[0]] / _LAST * side
      for match, side in zip(locs[i : i + 4], sides, strict=True)
    )
    last = i + 4 == len(locs)
    yield Object(
      box=(y0, x0, y1, x1),
      label=label if last else "",
      codes=tuple(_NUMBERS[m[0]] for m in segs) if last and segs else None,
      span=(locs[i].start(), stop if last else locs[i + 3].end()),
      problem="" if y0 < y1 and x0 < x1 else "box without area",
    )


def _checked(box):
  found = corners(box)
  if found is None:
    raise ValueError(
      f"box is {box}, expected 4 finite numbers (y0, x0, y1, x1) with y0 <= y1 "
      "and x0 <= x1"
    )
  return found


def _sides(size):
  height, width = size
  if height <= 0 or width <= 0:
    raise ValueError(f"image size is {size}, expected (height, width) above 0")
  return np.array([height, width, height, width])
