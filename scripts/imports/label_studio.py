"""Label Studio: a file exported as JSON or JSON-MIN, or its folder.

The exports "JSON" and "JSON-MIN", as labelstud.io/guide/export describes them;
masks of brushes are packed by rle-pack of thi.ng/umbrella, which the converter
of HumanSignal/label-studio-sdk unpacks.
"""

import pathlib
import re
import urllib.parse

import numpy as np

from paligemma.data import image_files
from scripts.imports import bitmaps, columns, entries, files, folders, shapes


def read(request: entries.Request) -> entries.Annotations:
  """Reads an export of tasks.

  One annotation of each task counts: the ground truth, or else the first that
  was not cancelled; tasks without one are left out. Rectangles are boxes
  without a mask; polygons, ellipses and brushes have one. What is turned has
  the box around it. A caption is the text that an annotator wrote; an answer is
  that or a choice, to the question in the task's data. Names can be given of
  "image" and "question".

  Pictures lie in `images`, or beside the JSON or in its folder images. There
  "/data/upload/1/1a2b3c4d-a.jpg" is found as 1a2b3c4d-a.jpg or a.jpg, and
  "/data/local-files/?d=x/a.jpg" as x/a.jpg or a.jpg.
  """
  src = request.src
  if src.is_dir():
    src, *others = folders.ending(src, ".json")
    if others:
      raise ValueError(f"{src.parent}: several JSON files, name one of them")
  content = files.read_json(src)
  if not isinstance(content, list):
    raise ValueError(
      f"{src}: expected a list of tasks, found {content!r:.60}; export as JSON"
    )
  places = [src.parent, src.parent / "images"]
  if request.images is not None:
    places = [request.images]
  return entries.Annotations(_entries(request, src, content, places))


def _entries(request, src, content, places):
  task, names, problems = request.task, request.names, request.problems
  for i, fields in enumerate(content):
    where = f"{src}: task number {i}"
    with problems:
      data, results = _results(fields, task, where, problems)
      if results is None:
        problems.note("tasks without an annotation left out", where)
        continue
      regions, said = _sorted(results, where)
      if said and task in ("detect", "segment"):
        problems.note("what is said of whole pictures left out", where)
      yield entries.Entry(
        _find(_picture_name(data, names, where), places, where, problems),
        where,
        size=_size(regions, where),
        **_annotated(data, regions, said, task, names, where),
      )


def _results(fields, task, where, problems):
  """A task's data, and the results that count, None without any."""
  if not isinstance(fields, dict):
    raise ValueError(f"{where}: expected a task, found {fields!r:.60}")
  if "data" not in fields:
    if task not in ("detect", "segment"):
      raise ValueError(
        f"{where}: JSON-MIN does not tell data and answers apart; export as "
        "JSON"
      )
    return fields, _flat(fields)
  data = files.get(fields, "data", dict, where)
  key = "annotations" if "annotations" in fields else "completions"
  made = fields.get(key) or []
  done = [
    annotation
    for annotation in files.get({key: made}, key, list, where)
    if isinstance(annotation, dict) and not annotation.get("was_cancelled")
  ]
  if not done:
    return data, None
  if len(done) > 1:
    problems.note("further annotations of a task left out", where)
  done.sort(key=lambda annotation: not annotation.get("ground_truth"))
  return data, files.get(done[0], "result", list, where)


def _flat(fields):
  """The results of a task in JSON-MIN: lists of regions under any key."""
  return [
    {**region, "value": region}
    for regions in fields.values()
    if isinstance(regions, list)
    for region in regions
    if isinstance(region, dict) and "original_width" in region
  ]


def _sorted(results, where):
  """Splits results into regions, (where, fields), and answers on the image.

  Results of one id are one region: its outline, its label, its text.
  """
  regions, said = {}, []
  for i, result in enumerate(results):
    if isinstance(result, dict) and result.get("type") == "relation":
      continue
    value = files.get(result, "value", dict, f"{where}: result {i}")
    if value.keys() & {"x", "points", "vertices", "rle"}:
      key = str(result.get("id", i))
      place = f"{where}: region {key:.40}"
      region = regions.setdefault(key, (place, {}))[1]
      region.update({k: v for k, v in result.items() if k != "value"} | value)
    else:
      said.append(value)
  return list(regions.values()), said


def _texts(said):
  for value in said:
    for key in ("choices", "text"):
      found = value.get(key) or ()
      for text in [found] if isinstance(found, str) else found:
        if str(text).strip():
          yield str(text).strip()


def _annotated(data, regions, said, task, names, where):
  texts = tuple(_texts(said)) or None
  if task in ("detect", "segment"):
    return {
      "objects": tuple(_object(region, place) for place, region in regions)
    }
  if task == "caption":
    return {"captions": texts}
  chosen = columns.choose(("question",), list(data), names, where)
  question = columns.texts(data[chosen["question"]], where, "question")
  return {"question": question[0], "answers": texts}


def _object(region, where):
  label = _label(region, where)
  height, width = _sides(region, where)
  if region.get("image_rotation"):
    raise ValueError(
      f"{where}: its picture was turned to be annotated, image_rotation is "
      f"{region['image_rotation']!r:.20}, expected 0"
    )
  if "rle" in region:
    return bitmaps.to_object(label, _brush(region, height, width, where), where)
  scale = width / 100, height / 100
  (degrees,) = files.numbers(
    [region.get("rotation") or 0], 1, "rotation", where
  )
  if "radiusX" in region:
    numbers = _numbers(region, ("x", "y", "radiusX", "radiusY"), scale, where)
    outline = [shapes.ellipse(*numbers, degrees)]
  elif "height" in region:
    x, y, w, h = _numbers(region, ("x", "y", "width", "height"), scale, where)
    if not degrees:
      return entries.Object(label, (y, x, y + h, x + w), where)
    corners = shapes.rectangle(x, y, x + w, y + h)
    corners = shapes.turned(corners, (x, y), degrees)
    return entries.Object(label, shapes.box([corners]), where)
  elif "points" in region:
    points = [
      np.multiply(files.numbers(point, 2, "x, y", where), scale).tolist()
      for point in files.get(region, "points", list, where)
    ]
    outline = [shapes.polygon(points, where)]
  else:
    raise ValueError(
      f"{where}: is no box; expected rectangle, polygon, ellipse or brush"
    )
  return entries.Object(label, shapes.box(outline), where, outline)


def _label(region, where):
  found = [
    label
    for key, value in region.items()
    if key.endswith("labels") and isinstance(value, list)
    for label in value
  ]
  if len(found) != 1 or not isinstance(found[0], str):
    raise ValueError(f"{where}: expected one label, found {found!r:.80}")
  return found[0]


def _numbers(region, keys, scale, where):
  found = [region.get(key) for key in keys]
  numbers = files.numbers(found, len(keys), ", ".join(keys), where)
  return np.multiply(numbers, scale * 2).tolist()


def _sides(region, where):
  keys = ("original_height", "original_width")
  found = [region.get(key) for key in keys]
  height, width = files.numbers(found, 2, " and ".join(keys), where)
  return int(height), int(width)


def _size(regions, where):
  """The size that the regions are annotated for, None without any."""
  sizes = {_sides(region, place) for place, region in regions}
  if len(sizes) > 1:
    raise ValueError(
      f"{where}: regions of pictures of several sizes, expected one picture"
    )
  return sizes.pop() if sizes else None


def _brush(region, height, width, where):
  """Unpacks the mask of a brush: the pixels of RGBA that are not transparent.

  A head: how many values (32 bits), the bits of one less 1 (5), and four sizes
  of lengths less 1 (4 each). Then runs: whether it is one value repeated (1),
  which size its length has (2), its length less 1, and its value or values.
  """
  try:
    bits = "".join(f"{byte:08b}" for byte in bytes(region["rle"]))
    start = 0

    def take(count):
      nonlocal start
      start += count
      return int(bits[start - count : start], 2)

    total, word = take(32), take(5) + 1
    lengths = [take(4) + 1 for _ in range(4)]
    if total != 4 * height * width:
      raise ValueError(f"{total} values, expected 4 x {height} x {width}")
    found = np.zeros(total, np.uint8 if word <= 8 else np.uint32)
    i = 0
    while i < total:
      repeated = take(1)
      stop = i + take(lengths[take(2)]) + 1
      if repeated:
        found[i:stop] = take(word)
      else:
        found[i:stop] = [take(word) for _ in range(stop - i)]
      i = stop
  except (TypeError, ValueError) as error:
    raise ValueError(f"{where}: malformed mask: {error!s:.100}") from None
  return found.reshape(height, width, 4)[:, :, 3] > 0


def _picture_name(data, names, where):
  """The path or address of the image of a task."""
  options = [names["image"]] if "image" in names else columns.NAMES["image"]
  key = next((key for key in options if key in data), None)
  if key is None:
    paths = [
      key
      for key, value in data.items()
      if isinstance(value, str) and value.lower().endswith(image_files.SUFFIXES)
    ]
    if len(paths) != 1:
      raise ValueError(
        f"{where}: which of {', '.join(map(str, data))} is the picture? Name "
        "it with --columns image=KEY"
      )
    key = paths[0]
  return files.get(data, key, str, where)


def _find(name, places, where, problems):
  """The file of "/data/upload/1/1a2b3c4d-a.jpg" and other addresses."""
  names = [name]
  if "://" in name or name.startswith("/data/"):
    address = urllib.parse.urlsplit(name)
    path = urllib.parse.unquote(address.path)
    if local := urllib.parse.parse_qs(address.query).get("d"):
      path = local[0]
    base = pathlib.PurePosixPath(path).name
    names = [path.lstrip("/"), base, re.sub("^[0-9a-f]{8}-", "", base)]
  found = [folders.find(option, places, where, problems) for option in names]
  return next((path for path in found if path.is_file()), found[0])
