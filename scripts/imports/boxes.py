"""How the four numbers of boxes are read, decided once for a data set."""

import collections
import contextlib
import dataclasses
import math
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from paligemma.data import image_files
from scripts.imports import entries, files, folders, shapes

SAMPLE = 500  # pictures whose files are opened to check how boxes are read

_FLAGS = {"0": False, "1": True, "false": False, "true": True, "none": False}
_SLACK = 0.02  # of a side, by which a box that fits may reach over the edge
_FEW = 10  # boxes, which prove too little to overrule what a user says


@dataclasses.dataclass(frozen=True)
class Reading:
  """How four numbers are read as a box."""

  name: str  # key of entries.BOXES
  # whether numbers are shares of the picture's sides, not pixels
  shares: bool = False

  def to_object(
    self, label: str, values: Sequence[float], where: str, **more: Any
  ) -> entries.Object:
    """The object with this label and box; an area in shares is left out."""
    if self.shares:
      more["area"] = None
      if not _are_shares(values):
        raise ValueError(
          f"{where}: expected numbers from 0 to 1, as the boxes of this data "
          f"set are shares of the image's sides, found {list(values)!r:.80}"
        )
    box = entries.BOXES[self.name](*values)
    return entries.Object(label, box, where, shares=self.shares, **more)


def decide(
  found: Iterable[tuple[Any, tuple[int, int] | None, str]],
  src: Any,
  problems: entries.Problems,
  *,
  stated: str | None = None,
  default: str = "xywh",
  among: Sequence[str] = tuple(entries.BOXES),
) -> Reading:
  """How the boxes of a data set are to be read.

  They are shares of the picture's sides if all numbers of most boxes are from 0
  to 1 (or 2 % off), and pixels otherwise. Whether they are corners or sizes is
  as stated, or else the default; the boxes must bear it out: where a tenth of
  them reach over the edge or are inverted, and in another reading 98 % fit,
  that must be stated.

  Args:
    found: Boxes as they are written, bad ones among them, with (height, width)
      of their image if known, and where they are.
    src: The data set.
    stated, default: Keys of entries.BOXES, of the user and of the format.
    among: Those that the format can have.
  """
  name = stated or default
  if name not in among:
    raise ValueError(
      f"{src}: --boxes {name} is none of this format, expected "
      f"{' or '.join(among)}"
    )
  within, others = collections.Counter(), collections.Counter()
  first = None
  for box, size, where in found:
    try:
      values = files.numbers(box, 4, "of a box", where)
    except ValueError:  # raised where the object is read
      continue
    first = first or where
    counts = within if _are_shares(values) else others
    counts["boxes"] += 1
    if size := (1, 1) if counts is within else size:
      counts["known"] += 1
      for other in among:
        counts[other] += not _fits(entries.BOXES[other](*values), size)
  shares = within["boxes"] > others["boxes"]
  counts = within if shares else others
  checked = counts["known"]
  fitting = [x for x in among if counts[x] <= checked // 50 and x != name]
  trusted = stated is not None and checked < _FEW
  if counts[name] > checked / 10 and fitting and not trusted:
    raise ValueError(
      f"{src}: read as {name}, {counts[name]} of {checked} boxes do not fit "
      f"their pictures; read as {fitting[0]} they do: pass --boxes "
      f"{fitting[0]}" + ("" if stated else f", or --boxes {name} to keep it")
    )
  if shares:
    problems.note("data sets with boxes from 0 to 1, read as shares", first)
  return Reading(name, shares)


def details(fields: Mapping[str, Any], where: str) -> dict[str, Any]:
  """What COCO says beside the box of an object: "crowd", "area" if given."""
  crowd, area = fields.get("iscrowd"), fields.get("area")
  text = str(int(crowd) if crowd in (0, 1) else crowd).strip().lower()
  if text not in _FLAGS:
    raise ValueError(f'{where}: expected 0 or 1 as "iscrowd", found {crowd!r}')
  found = {"crowd": _FLAGS[text]}
  if area is not None:
    (found["area"],) = files.numbers([area], 1, "area", where)
  return found


def around(polygons: Any, where: str) -> tuple[float, float, float, float]:
  """The box (y0, x0, y1, x1) around polygons [x0, y0, x1, y1, ...]."""
  outlines = []
  for polygon in polygons:
    count = len(polygon) if isinstance(polygon, list) else 0
    if count < 6 or count % 2:
      raise ValueError(
        f"{where}: expected x and y of 3 points or more as a polygon, found "
        f"{polygon!r:.80}"
      )
    outlines.append(files.numbers(polygon, count, "of a polygon", where))
  return shapes.box(outlines)


class Sizes:
  """Sizes of images, read from SAMPLE files at most; None for further ones."""

  def __init__(self):
    self._known = {}

  def __call__(self, image: pathlib.Path) -> tuple[int, int] | None:
    if image not in self._known and len(self._known) < SAMPLE:
      self._known[image] = None
      with contextlib.suppress(ValueError):  # raised where the image is read
        self._known[image] = image_files.size(image)
    return self._known.get(image)

  def named(self, name: str, folder: pathlib.Path) -> tuple[int, int] | None:
    """The size of the image that folders.find finds by its name."""
    with entries.Problems(skip=True) as quiet:
      return self(folders.find(name, [folder], "", quiet))
    return None


def size(height: Any, width: Any) -> tuple[int, int] | None:
  """The (height, width) that annotations state, None if they do not.

  Numbers as text are read; anything but two whole numbers above 0 states none.
  """
  sides = [number(side) for side in (height, width)]
  if not all(side > 0 and side.is_integer() for side in sides):
    return None
  return int(sides[0]), int(sides[1])


def number(value: Any) -> float:
  """A number, given as such or as text; NaN for anything else."""
  try:
    return math.nan if isinstance(value, bool) else float(value)
  except (TypeError, ValueError, OverflowError):
    return math.nan


def _are_shares(values):
  return min(values) >= -_SLACK and max(values) <= 1 + _SLACK


def _fits(box, size):
  y0, x0, y1, x1 = box
  (height, width), (y, x) = size, (side * _SLACK for side in size)
  inside = y0 >= -y and x0 >= -x and y1 <= height + y and x1 <= width + x
  return y0 < y1 and x0 < x1 and inside
