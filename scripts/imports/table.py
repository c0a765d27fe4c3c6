"""CSV or TSV: a file with a row for each caption, question or box."""

from paligemma import messages
from scripts.imports import boxes, columns, entries, files, folders

NEEDED = {
  "caption": ("image", "caption"),
  "vqa": ("image", "question", "answer"),
  "detect": ("image", "label"),
}


def read(request: entries.Request) -> entries.Entries:
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
  src, problems = request.src, request.problems
  task, names = request.task, request.names
  if task not in NEEDED:
    raise ValueError(f"{src}: a table has nothing for --task {task}")
  folder = request.images or src.parent
  rows = list(files.read_rows(src))
  present, where, edges = list(rows[0][1]), str(src), ()
  _check_header(present, src)
  if task == "detect":
    edges = _edges(request.boxes, present, names, where)
    # The columns of corners can hold something else, which --boxes says.
    given = dict(zip(edges, columns.EDGES["xyxy"], strict=True))
    given = {new: names[old] for new, old in given.items() if old in names}
    names = {**given, **names}
  chosen = columns.choose((*NEEDED[task], *edges), present, names, where)
  if len({chosen[name] for name in edges}) < len(edges):
    raise ValueError(
      f"{where}: no four columns {', '.join(edges)}, found "
      f"{messages.shown(', '.join(present))}"
    )
  groups = _groups(rows, chosen, task, problems)
  sides = _sides(rows, chosen, edges, where) if task == "detect" else {}
  request.forms = tuple(columns.EDGES)
  for (name, _), members in groups.items():
    with problems:
      where, first = members[0]
      found = columns.annotations(first, chosen, where)
      if task == "detect":
        objects = (_object(x, chosen, edges, at) for at, x in members)
        found["objects"] = tuple(filter(None, objects))
        found["size"] = _size(first, sides)
      if task == "caption":
        texts = (columns.annotations(x, chosen, at) for at, x in members)
        found["captions"] = tuple(x for some in texts for x in some["captions"])
      if len(members) == 1:
        found["fields"] = columns.rest(first, {**chosen, **sides})
      image = folders.find(name, [folder], where, problems)
      yield entries.Entry((image,), where, _split(members), **found)


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


def _split(members):
  """The split in the column "split"; the rows of an image must agree."""
  found = {}
  for where, row in members:
    column = columns.find(("split",), list(row), where)
    name = str(row.get(column)).strip().lower()
    found.setdefault(entries.SPLITS.get(name, "train"), where)
  (first, place), *others = found.items()
  if others:
    other, where = others[0]
    raise ValueError(
      f"{where}: {other} is the split, but {first} at {place} of the same image"
    )
  return first


def _edges(form, present, names, where):
  """The keys of columns.NAMES for the four numbers of boxes."""
  if form is not None:
    if form not in columns.EDGES:
      raise ValueError(
        f"{where}: --boxes {form} is none of a table, expected "
        f"{', '.join(columns.EDGES)}"
      )
    return columns.EDGES[form]

  def are_there(edges):
    found = {
      names.get(name) or columns.find(columns.NAMES[name], present, where)
      for name in edges
    }
    return None not in found and len(found) == len(edges)

  if not are_there(columns.EDGES["xyxy"]) and any(
    map(are_there, columns.EDGES.values())
  ):
    raise ValueError(
      f"{where}: found columns {messages.shown(', '.join(present))}; say what "
      "they are with --boxes xywh (x and y of the upper left corner) or "
      "--boxes cxcywh (of the centre)"
    )
  return columns.EDGES["xyxy"]


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
    x0, y0, x1, y1 = (boxes.number(row[chosen[name]]) for name in edges)
    height, width = (boxes.number(row[found[side]]) for side in found)
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


def _size(row, sides):
  """The (height, width) that the first row of an image states, or None."""
  return boxes.size(*(row.get(sides.get(x)) for x in ("height", "width")))


def _object(row, chosen, edges, where):
  """The object of a row, None of a row without one."""
  cells = [row[chosen[name]].strip() for name in edges]
  label = row[chosen["label"]].strip()
  if not any(cells) and not label:
    return None
  if not label:
    raise ValueError(f"{where}: box without a label")
  values = files.numbers(cells, 4, ", ".join(edges), where)
  return entries.Object(label, values, where, shares=None)
