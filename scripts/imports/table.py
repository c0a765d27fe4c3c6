"""CSV or TSV: a file with a row for each caption, question or box."""

from paligemma import messages
from scripts.imports import boxes as boxes_lib
from scripts.imports import columns, entries, files, folders

NEEDED = {
  "caption": ("image", "caption"),
  "vqa": ("image", "question", "answer"),
  "detect": ("image", "label"),
}


def read(request: entries.Request) -> entries.Annotations:
  """Reads a table with a header.

  Rows of one image are its captions or its boxes; a row without a box, with
  empty cells, says that nothing is in the image. A question stands alone.
  Columns width and height, unless they are those of the box, are the size of
  the image that the boxes are for. A column "split" that holds a key of
  entries.SPLITS, "train" or "dev", is the split of the row. Images are relative
  to `images`, or to the folder of the file. Boxes are those of columns.EDGES:
  "xyxy", the default, reads xmin, ymin, xmax and ymax, "xywh" x, y, w and h,
  "cxcywh" cx, cy, w and h.
  """
  src, task = request.src, request.task
  if task not in NEEDED:
    raise ValueError(f"{src}: a table has nothing for --task {task}")
  folder = request.images or src.parent
  rows = list(files.read_rows(src))
  present = list(rows[0][1])
  _check_header(present, src)
  if task == "detect":
    return _detect(request, rows, folder)
  chosen = columns.choose(NEEDED[task], present, request.names, str(src))
  return entries.Annotations(
    _texts(rows, chosen, folder, task, request.problems)
  )


def _check_header(header, src):
  for cell in header:
    try:
      float(cell)
    except ValueError:
      continue
    raise ValueError(
      f"{src}:1: expected a header, such as image,xmin,ymin,xmax,ymax,label, "
      f"found a row: {messages.shown(', '.join(header))}"
    )


def _texts(rows, chosen, folder, task, problems):
  for (name, _), members in _groups(rows, chosen, task, problems).items():
    with problems:
      where, first = members[0]
      found = columns.annotations(first, chosen, where)
      if task == "caption":
        captions = [
          columns.annotations(row, chosen, place)["captions"]
          for place, row in members
        ]
        found = {"captions": tuple(x for some in captions for x in some)}
      yield entries.Entry(
        folders.find(name, [folder], where, problems),
        where,
        _split(members),
        fields=_fields(members, chosen),
        **found,
      )


def _detect(request, rows, folder):
  names, boxes, problems = request.names, request.boxes, request.problems
  present, where = list(rows[0][1]), str(request.src)
  edges = _edges(boxes, present, names, where)
  # The columns of corners can hold something else, which --boxes says.
  given = dict(zip(edges, columns.EDGES["xyxy"], strict=True))
  given = {new: names[old] for new, old in given.items() if old in names}
  chosen = columns.choose(
    (*NEEDED["detect"], *edges), present, {**given, **names}, where
  )
  if len({chosen[name] for name in edges}) < len(edges):
    raise ValueError(
      f"{where}: no four columns {', '.join(edges)}, found "
      f"{messages.shown(', '.join(present))}"
    )
  sides = _sides(rows, chosen, edges, where)
  groups = _groups(rows, chosen, "detect", problems)
  reading = boxes_lib.decide(
    _numbers(groups, chosen, edges, sides, folder),
    where,
    problems,
    stated=boxes,
    default="xyxy",
    among=tuple(columns.EDGES),
  )

  def found():
    for (name, _), members in groups.items():
      with problems:
        where, _ = members[0]
        objects = [
          obj
          for place, row in members
          for obj in _objects(row, chosen, edges, reading, place)
        ]
        yield entries.Entry(
          folders.find(name, [folder], where, problems),
          where,
          _split(members),
          size=_size(members, sides),
          fields=_fields(members, {**chosen, **sides}),
          objects=tuple(objects),
        )

  return entries.Annotations(found())


def _split(members):
  """The split in the column "split"; the rows of an image must agree."""
  place, row = members[0]
  column = columns.find(("split",), list(row), place)
  first, *others = (
    entries.SPLITS.get(str(row.get(column)).strip().lower(), "train")
    for _, row in members
  )
  for other, (where, _) in zip(others, members[1:], strict=True):
    if other != first:
      raise ValueError(
        f"{where}: {other} is the split, but {first} at {place} of the same "
        "image"
      )
  return first


def _edges(boxes, present, names, where):
  """The keys of columns.NAMES for the four numbers of boxes."""
  if boxes is not None:
    if boxes not in columns.EDGES:
      raise ValueError(
        f"{where}: --boxes {boxes} is none of a table, expected "
        f"{', '.join(columns.EDGES)}"
      )
    return columns.EDGES[boxes]
  there = {
    reading: len(
      {_column(name, present, names, where) for name in edges} - {None}
    )
    == len(edges)
    for reading, edges in columns.EDGES.items()
  }
  if not there.pop("xyxy") and any(there.values()):
    raise ValueError(
      f"{where}: found columns {messages.shown(', '.join(present))}; say what "
      "they are with --boxes xywh (x and y of the upper left corner) or "
      "--boxes cxcywh (of the centre)"
    )
  return columns.EDGES["xyxy"]


def _column(name, present, names, where):
  return names.get(name) or columns.find(columns.NAMES[name], present, where)


def _sides(rows, chosen, edges, where):
  """The columns of image height and width, if there are any."""
  present = list(rows[0][1])
  found = {
    side: column
    for side in ("height", "width")
    if (column := columns.find(columns.NAMES[side], present, where))
    and column not in chosen.values()
  }
  if len(found) < 2:
    return {}
  for _, row in rows:
    x0, y0, x1, y1 = (boxes_lib.number(row[chosen[name]]) for name in edges)
    height, width = (boxes_lib.number(row[found[side]]) for side in found)
    if abs(x1 - x0 - width) > 1 or abs(y1 - y0 - height) > 1:
      return found
  return {}  # they are those of the boxes


def _groups(rows, chosen, task, problems):
  """(image, index of the question) -> its rows with their places."""
  groups = {}
  for i, (where, row) in enumerate(rows):
    with problems:
      (name,) = columns.texts(row[chosen["image"]], where, "image")
      key = name, i if task == "vqa" else 0
      groups.setdefault(key, []).append((where, row))
  return groups


def _numbers(groups, chosen, edges, sides, folder):
  """Yields boxes, sizes and places, for boxes.decide; bad ones are left out."""
  sizes = boxes_lib.Sizes()
  for (name, _), members in groups.items():
    for where, row in members:
      try:
        values = boxes_lib.numbers(_cells(row, chosen, edges), where)
      except ValueError:
        continue
      yield values, _size(members, sides) or sizes.named(name, folder), where


def _size(members, sides):
  """The (height, width) that the first row of an image states, or None."""
  _, row = members[0]
  return boxes_lib.size(*(row.get(sides.get(x)) for x in ("height", "width")))


def _fields(members, chosen):
  """The other columns, of an image that has only one row."""
  return columns.rest(members[0][1], chosen) if len(members) == 1 else {}


def _cells(row, chosen, edges):
  return [row[chosen[name]].strip() for name in edges]


def _objects(row, chosen, edges, reading, where):
  cells, label = _cells(row, chosen, edges), row[chosen["label"]].strip()
  if not any(cells) and not label:
    return []
  if not label:
    raise ValueError(f"{where}: box without a label")
  values = boxes_lib.numbers(cells, where, ", ".join(edges))
  return [reading.to_object(label, values, where)]
