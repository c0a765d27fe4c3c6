"""The text file of boxes that YOLO and Darknet have for each image."""

import contextlib
import itertools
import pathlib
from collections.abc import Iterator, Mapping, Sequence

from scripts.imports import boxes, entries, files, folders

_EDGE = 0.01  # by which a share may lie outside of its image
_PROOF = 10  # lines of one length, which outlines are not by chance


def path_of(image: pathlib.Path) -> pathlib.Path:
  """The path of an image's labels: a/images/b/c.jpg -> a/labels/b/c.txt."""
  parts = list(image.with_suffix(".txt").parts)
  for i in reversed(range(len(parts) - 1)):
    if parts[i] == "images":
      parts[i] = "labels"
      break
  return pathlib.Path(*parts)


def read(
  images: Sequence[pathlib.Path],
  root: pathlib.Path,
  split: str,
  labels: Mapping[int, str],
  where: str,
  problems: entries.Problems,
  *,
  key_points: bool | None = False,
) -> Iterator[entries.Entry]:
  """Yields the entries of a split's images, with what their label files say.

  A line is "class x y width height", of the box's centre, or "class x0 y0 x1 y1
  ..." of a polygon, all as shares of the image's sides. The file is at path_of
  an image or beside it. An image without one is one of nothing, and noted, but
  one image of the split must have one.

  Args:
    root: Folder of the data set, for the error.
    labels: Number of a class -> label.
    key_points: Whether key points follow the box, which are left out; None if
      nobody says it: then lines must not fit boxes with key points.
  """
  found = {}
  for image in images:
    for path in (path_of(image), image.with_suffix(".txt")):
      if path.is_file():
        found.setdefault(image, path)
  if images and not found:
    others = folders.matching(root, "**/*.txt")
    others = sorted({str(x.parent) for x in others if x.parent != root})
    raise ValueError(
      f"{where}: none of {len(images)} images has a label file, such as "
      f"{path_of(images[0])} or one beside the image; other folders with text "
      f"files: {', '.join(others[:3]) or 'none'}; an image of nothing has an "
      "empty file"
    )
  for image in images:
    if image not in found:
      what = "images without a label file, taken as images of nothing"
      problems.note(what, str(image))
  if key_points is None:
    _refuse_key_points(found.values())
  for image in images:
    with problems:
      path = found.get(image)
      objects = tuple(
        _object(line.split(), labels, key_points, place, problems)
        for place, line in (files.lines_and_places(path) if path else ())
      )
      where = str(path or image)
      yield entries.Entry((image,), where, split, objects=objects)


def _refuse_key_points(paths):
  """Raises if the first lines could be key points as well as outlines.

  Outlines differ in how many points they have, and lie anywhere; key points do
  not, and lie in the box that the first four numbers are.
  """
  lines = list(itertools.islice(_readable(paths), boxes.SAMPLE))
  if len(lines) < _PROOF:
    return
  fitting = set.intersection(*(_shapes(line.split()) for _, line in lines))
  if fitting:
    (where, _), shape = lines[0], list(max(fitting))
    raise ValueError(
      f"{where}: this and all other lines fit a box with {shape[0]} key points "
      f"as well as an outline; say in data.yaml kpt_shape: {shape} if they are "
      "key points, kpt_shape: [] if they are outlines"
    )


def _readable(paths):
  for path in paths:
    with contextlib.suppress(ValueError):  # raised where it is read
      yield from files.lines_and_places(path)


def _shapes(words):
  """Every kpt_shape that fits a line when it is read as key points."""
  if len(words) < 7 or len(words) % 2 == 0:
    return set()
  try:
    x, y, w, h, *rest = map(float, words[1:])
  except ValueError:
    return set()

  def is_inside(px, py):
    near = abs(px - x) <= w / 2 + _EDGE and abs(py - y) <= h / 2 + _EDGE
    return near or (px, py) == (0, 0)  # which is not seen

  box_in_image = all(
    c - side / 2 >= -_EDGE and c + side / 2 <= 1 + _EDGE
    for c, side in ((x, w), (y, h))
  )
  return {
    (len(rest) // step, step)
    for step in (2, 3)
    if box_in_image
    and len(rest) % step == 0
    and all(map(is_inside, rest[::step], rest[1::step]))
    and (step == 2 or {0, 1, 2}.issuperset(rest[2::step]))
  }


def _object(words, labels, key_points, where, problems):
  polygon = not key_points and len(words) >= 7 and len(words) % 2 == 1
  if key_points:
    words = words[:5]
  elif len(words) == 6:
    raise ValueError(
      f"{where}: found 6 numbers, expected 5: class x y width height; is the "
      "last a confidence of a prediction, or an angle?"
    )
  if len(words) != 5 and not polygon:
    raise ValueError(
      f"{where}: found {len(words)} numbers, expected a class and 4 of a box, "
      "or x and y of 3 points or more; key points need kpt_shape in the YAML"
    )
  what = "class x0 y0 x1 y1 ..." if polygon else "class x y width height"
  number, *shares = files.numbers(words, len(words), what, where)
  if number not in labels:
    raise ValueError(
      f"{where}: unknown class {words[0]:.20}, expected one from 0 to "
      f"{len(labels) - 1}"
    )
  label = labels[number]
  if outside := [x for x in shares if not -_EDGE <= x <= 1 + _EDGE]:
    raise ValueError(
      f"{where}: expected shares of the image's sides, from 0 to 1, found "
      f"{outside[0]:g}"
    )
  if not polygon:
    box = entries.BOXES["cxcywh"](*shares)
    return entries.Object(label, box, where, shares=True)
  if len(shares) == 8:
    problems.note(
      "polygons of 4 points or turned boxes, read as the box around", where
    )
  return entries.Object(label, None, where, mask=[shares], shares=True)
