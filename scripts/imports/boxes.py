"""How the four numbers of boxes are read, decided once for a data set."""

import collections
import contextlib
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from paligemma.data import image_files, masks
from scripts.imports import entries, files, shapes

SAMPLE = 500  # pictures whose files are opened to check how boxes are read

_FLAGS = {"0": False, "1": True, "false": False, "true": True, "none": False}
_SLACK = 0.02  # of a side, by which a box that fits may reach over the edge
_FEW = 10  # boxes, which prove too little to overrule what a user says


def resolve(
  found: Sequence[entries.Entry], request: entries.Request
) -> entries.Entries:
  """Yields entries whose boxes are all (y0, x0, y1, x1) in a known unit.

  Boxes that no format says how to read are read as `decide` says. An object
  without one gets that around its mask.
  """
  form, shares = decide(found, request)
  for entry in found:
    with request.problems:
      objects = entry.objects and tuple(
        _resolved(obj, form, shares) for obj in entry.objects
      )
      yield dataclasses.replace(entry, objects=objects)


def decide(
  found: Sequence[entries.Entry], request: entries.Request
) -> tuple[str, bool]:
  """How the boxes of a data set are to be read: a key of BOXES, and the unit.

  They are shares of the picture's sides if all numbers of most boxes are from 0
  to 1 (or 2 % off), and pixels otherwise. Whether they are corners or sizes is
  as the user states, or else the first of the request's forms; the boxes must
  bear it out: where a tenth of them reach over the edge or are inverted, and in
  another form 98 % fit, that must be stated.
  """
  src, stated, forms = request.src, request.boxes, request.forms
  name = stated or forms[0]
  if name not in forms:
    raise ValueError(
      f"{src}: --boxes {name} is none of this format, expected "
      f"{' or '.join(forms)}"
    )
  within, others = collections.Counter(), collections.Counter()
  first, known = None, {}
  for entry in found:
    for obj in entry.objects or ():
      if obj.shares is not None or obj.box is None:
        continue
      first = first or obj.where
      counts = within if _are_shares(obj.box) else others
      counts["boxes"] += 1
      if size := (1, 1) if counts is within else _size(entry, known):
        counts["known"] += 1
        for form in forms:
          counts[form] += not _fits(entries.BOXES[form](*obj.box), size)
  shares = within["boxes"] > others["boxes"]
  counts = within if shares else others
  checked = counts["known"]
  fitting = [x for x in forms if counts[x] <= checked // 50 and x != name]
  trusted = stated is not None and checked < _FEW
  if counts[name] > checked / 10 and fitting and not trusted:
    raise ValueError(
      f"{src}: read as {name}, {counts[name]} of {checked} boxes do not fit "
      f"their pictures; read as {fitting[0]} they do: pass --boxes "
      f"{fitting[0]}" + ("" if stated else f", or --boxes {name} to keep it")
    )
  if shares:
    what = "data sets with boxes from 0 to 1, read as shares"
    request.problems.note(what, first)
  return name, shares


def _resolved(obj, form, shares):
  box = obj.box
  if box is None:
    box = _around(obj.mask, obj.where)
  elif obj.shares is None:
    box = entries.BOXES[form](*box)
  if obj.shares is not None:
    return dataclasses.replace(obj, box=box)
  given = obj.box or box
  if shares and not _are_shares(given):
    raise ValueError(
      f"{obj.where}: expected numbers from 0 to 1, as the boxes of this data "
      f"set are shares of the image's sides, found {list(given)!r:.80}"
    )
  # An area has no unit that goes with shares.
  area = None if shares else obj.area
  return dataclasses.replace(obj, box=box, shares=shares, area=area)


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


def _around(mask, where):
  """The box (y0, x0, y1, x1) around polygons or a run-length mask of COCO."""
  if isinstance(mask, dict):
    what = "as the size of a run-length mask"
    height, width = files.numbers(mask.get("size"), 2, what, where)
    with files.at(where):
      runs = masks.from_rle(mask, int(height), int(width))
      return masks.bounding_box(runs)
  outlines = []
  for polygon in mask:
    count = len(polygon) if isinstance(polygon, list) else 0
    if count < 6 or count % 2:
      raise ValueError(
        f"{where}: expected x and y of 3 points or more as a polygon, found "
        f"{polygon!r:.80}"
      )
    outlines.append(files.numbers(polygon, count, "of a polygon", where))
  return shapes.box(outlines)


def _size(entry, known):
  """As stated, or of the file; None where SAMPLE others are known already."""
  image = entry.images[0]
  if entry.size is None and image not in known and len(known) < SAMPLE:
    known[image] = None
    with contextlib.suppress(ValueError):  # raised where the image is read
      known[image] = image_files.size(getattr(image, "data", image))
  return entry.size or known.get(image)


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
