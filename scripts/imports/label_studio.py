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
from scripts.imports import columns, entries, files, folders, shapes


def read(request: entries.Request) -> entries.Entries:
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
  task, names, problems = request.task, request.names, request.problems
  in_boxes = task in ("detect", "segment")
  src = request.src
  if src.is_dir():
    src, *others = folders.ending(src, ".json")
    if others:
      raise ValueError(f"{src.parent}: several JSON files, name one of them")
  places = [src.parent, src.parent / "images"]
  if request.images is not None:
    places = [request.images]
  for where, fields in files.read_list(src, "task", "; export as JSON"):
    with problems:
      data, results = _results(fields, in_boxes, where, problems)
      if results is None:
        problems.note("tasks without an annotation left out", where)
        continue
      regions, said = _sorted(results, where)
      if said and in_boxes:
        problems.note("what is said of whole pictures left out", where)
      sizes = {_size(region, place) for place, region in regions}
      if len(sizes) > 1:
        raise ValueError(
          f"{where}: regions of pictures of several sizes, expected one picture"
        )
      yield entries.Entry(
        (_find(_image_name(data, names, where), places, where, problems),),
        where,
        size=sizes.pop() if sizes else None,
        **_annotated(data, regions, said, task, names, where),
      )


def _results(fields, in_boxes, where, problems):
  """A task's data, and the results that count, None without any."""
  if not isinstance(fields, dict):
    raise ValueError(f"{where}: expected a task, found {fields!r:.60}")
  if "data" not in fields:
    if not in_boxes:
      raise ValueError(
        f"{where}: JSON-MIN does not tell data and answers apart; export as "
        "JSON"
      )
    return fields, [
      {**region, "value": region}
      for regions in fields.values()
      if isinstance(regions, list)
      for region in regions
      if isinstance(region, dict) and "original_width" in region
    ]
  data = files.get(fields, "data", dict, where)
  key = "annotations" if "annotations" in fields else "completions"
  made = files.get({key: fields.get(key) or []}, key, list, where)
  made = [annotation for annotation in made if isinstance(annotation, dict)]
  done = [x for x in made if not x.get("was_cancelled")]
  if not done:
    return data, None
  if len(done) > 1:
    problems.note("further annotations of a task left out", where)
  done.sort(key=lambda annotation: not annotation.get("ground_truth"))
  return data, files.get(done[0], "result", list, where)


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
  if task in ("detect", "segment"):
    return {"objects": tuple(_object(x, place) for place, x in regions)}
  texts = tuple(_texts(said)) or None
  if task == "caption":
    return {"captions": texts}
  chosen = columns.choose(("question",), list(data), names, where)
  question = columns.texts(data[chosen["question"]], where, "question")
  return {"question": question[0], "answers": texts}


def _object(region, where):
  label = _label(region, where)
  height, width = _size(region, where)
  if region.get("image_rotation"):
    raise ValueError(
      f"{where}: its picture was turned to be annotated, image_rotation is "
      f"{region['image_rotation']!r:.20}, expected 0"
    )
  if "rle" in region:
    return shapes.masked(label, _brush(region, height, width, where), where)

  def pixels(percents):
    scale = np.resize([width / 100, height / 100], len(percents))
    return (percents * scale).tolist()

  rotation = [region.get("rotation") or 0]
  (degrees,) = files.numbers(rotation, 1, "rotation", where)
  if "radiusX" in region:
    keys = ("x", "y", "radiusX", "radiusY")
    numbers = pixels(files.get_numbers(region, keys, where))
    outline = shapes.ellipse(*numbers, degrees)
  elif "height" in region:
    keys = ("x", "y", "width", "height")
    x, y, w, h = pixels(files.get_numbers(region, keys, where))
    box = shapes.rectangle(x, y, x + w, y + h, (x, y), degrees)
    return entries.Object(label, box, where)
  elif "points" in region:
    points = [
      pixels(files.numbers(point, 2, "x, y", where))
      for point in files.get(region, "points", list, where)
    ]
    outline = shapes.polygon(points, where)
  else:
    raise ValueError(
      f"{where}: is no box; expected rectangle, polygon, ellipse or brush"
    )
  return entries.Object(label, None, where, [outline])


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


def _size(region, where):
  keys = ("original_height", "original_width")
  return tuple(map(int, files.get_numbers(region, keys, where)))


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


def _image_name(data, names, where):
  """The path or address of the image of a task."""
  options = [names["image"]] if "image" in names else columns.NAMES["image"]
  found = [key for key in options if key in data][:1] or [
    key
    for key, value in data.items()
    if isinstance(value, str) and value.lower().endswith(image_files.SUFFIXES)
  ]
  if len(found) != 1:
    raise ValueError(
      f"{where}: which of {', '.join(map(str, data))} is the picture? Name "
      "it with --columns image=KEY"
    )
  return files.get(data, found[0], str, where)


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
