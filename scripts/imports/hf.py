"""Hugging Face: a folder of images with metadata, of Parquet or of Arrow."""

import contextlib
import dataclasses
import itertools
import json
import pathlib

from paligemma import messages
from paligemma.data import image_files
from scripts.imports import boxes as boxes_lib
from scripts.imports import columns, entries, files, folders, table

NEEDED = {**table.NEEDED, "detect": ("image", "objects")}
METADATA = ("metadata.jsonl", "metadata.csv")
TABLES = (".parquet", ".arrow")
_BATCH = 32  # rows of a table in memory


def read(request: entries.Request) -> entries.Entries:
  """Reads metadata.jsonl or metadata.csv files beside images, or tables.

  Tables are Parquet, or Arrow as save_to_disk of the library datasets writes
  it. The names of classes given by number are in the schema of a table,
  dataset_info.json or README.md. The name of a file or its folders tell the
  split: validation/metadata.jsonl, data/train-00000-of-00001.parquet. Boxes are
  "xywh", as in the library's guide, unless others are given.
  """
  src, task, names = request.src, request.task, request.names
  if task not in NEEDED:
    raise ValueError(f"{src}: a data set of this form has no masks to segment")
  if request.images is not None:
    raise ValueError(f"{src}: --images is of no use, images lie in the folder")
  folder = src if src.is_dir() else src.parent
  metadata = folders.matching(src, "**/metadata.*")
  if found := [path for path in metadata if path.name in METADATA]:
    features = _described(folder)
    sampled, entries_of = _metadata_boxes, _metadata_entries
  elif found := [src] if src.is_file() else _tables(src):
    features = _features(found[0]) or _described(folder)
    sampled, entries_of = _table_boxes, _table_entries
  else:
    raise ValueError(
      f"{src}: no {' or '.join(METADATA)} and no Parquet file in this folder"
    )
  reading = None
  if task == "detect":
    reading = boxes_lib.decide(
      sampled(request, folder, found),
      src,
      request.problems,
      stated=request.boxes,
    )
    options = [names.get("objects", "objects")]
    column = columns.find(options, list(features), str(src))
    classes = list(_classes(features.get(column)))
    request.labels = classes[0] if len(classes) == 1 else None
  for row, chosen, image, data, split, where in entries_of(
    request, folder, found
  ):
    with request.problems:
      row = {
        column: _decoded(value, features.get(column), where)
        for column, value in row.items()
        if column != chosen["image"]
      }
      annotated = columns.annotations(row, chosen, where)
      if task == "detect":
        cell = row[chosen["objects"]]
        annotated["objects"] = columns.to_objects(cell, reading, where)
      fields = columns.rest(row, chosen)
      yield entries.Entry(
        image, where, split, data=data, fields=fields, **annotated
      )


def _choose(request, row, where):
  needed = NEEDED[request.task]
  return columns.choose(needed, list(row), request.names, where)


def _quiet(request):
  """The request with problems of its own: they are raised at the entry."""
  return dataclasses.replace(request, problems=entries.Problems(skip=True))


def _tables(folder):
  """The tables in a folder, without what the library keeps for itself."""
  return [
    path
    for path in folders.matching(folder, "**/*")
    if path.suffix in TABLES and not path.name.startswith("cache-")
  ]


def _metadata_entries(request, folder, metadata):
  """Yields (row, columns, image or images, None, split, place)."""
  for path in metadata:
    chosen = None
    below = path.relative_to(folder).parent
    for where, row in files.read_rows(path):
      with request.problems:
        if chosen is None or not set(chosen.values()) <= row.keys():
          chosen = _choose(request, row, where)
        named = columns.texts(row[chosen["image"]], where, "image")
        found = tuple(
          folders.find(name, [path.parent], where, request.problems)
          for name in named
        )
        parent = pathlib.PurePath(named[0].replace("\\", "/")).parent
        split = entries.split_of(
          parent if parent.is_absolute() else below / parent
        )
        image = found[0] if len(found) == 1 else found
        yield row, chosen, image, None, split, where


def _metadata_boxes(request, folder, metadata):
  sizes = boxes_lib.Sizes()
  rows = _metadata_entries(_quiet(request), folder, metadata)
  for row, chosen, image, _, _, where in rows:
    image = image[0] if isinstance(image, tuple) else image
    for box in columns.boxes_of(row[chosen["objects"]], where):
      yield box, sizes(image), where


def _table_entries(request, folder, tables):
  """Yields (row, columns, image or images, contents, split, place)."""
  for path in tables:
    split, chosen = entries.split_of(path.relative_to(folder)), None
    for i, row in enumerate(_rows(path)):
      where = f"{path}: row {i}"
      chosen = chosen or _choose(request, row, str(path))
      with request.problems:
        cell = row[chosen["image"]]
        found = [
          _image(x, path, folder, request.problems, where)
          for x in (cell if isinstance(cell, list) else [cell])
        ]
        if not found:
          raise ValueError(f"{where}: holds no image")
        stored = [isinstance(x, bytes) for x in found]
        if any(stored) and not all(stored):
          raise ValueError(
            f"{where}: holds contents of some images and paths of others"
          )
        data = tuple(found) if all(stored) else None
        for j, contents in enumerate(data or ()):
          number = f"{i:06d}-{j}" if j else f"{i:06d}"
          suffix = image_files.suffix(contents, where=where)
          found[j] = path.with_name(f"{path.stem}-{number}{suffix}")
        image = tuple(found)
        if len(image) == 1:
          image, data = image[0], data and data[0]
        yield row, chosen, image, data, split, where


def _table_boxes(request, folder, tables):
  """Yields boxes, sizes and places; images of the first rows are looked at."""
  request = _quiet(request)
  left = boxes_lib.SAMPLE
  for path in tables:
    first = next(_rows(path, limit=1), None)
    if first is None:
      continue
    chosen = _choose(request, first, str(path))
    sampled = _rows(path, limit=left)
    for i, row in enumerate(_rows(path, [chosen["objects"]])):
      where, size = f"{path}: row {i}", None
      if full := next(sampled, None):
        left -= 1
        cell = full[chosen["image"]]
        cell = cell[0] if isinstance(cell, list) and cell else cell
        with request.problems:
          image = _image(cell, path, folder, request.problems, where)
          size = image_files.size(image, where=where)
      for box in columns.boxes_of(row[chosen["objects"]], where):
        yield box, size, where


def _image(cell, path, folder, problems, where):
  """The contents or the path of an image."""
  found = cell
  if isinstance(cell, dict):
    found = cell.get("bytes") or cell.get("path")
  if isinstance(found, bytes):
    return found
  if isinstance(found, str) and found.strip():
    return folders.find(found, [path.parent, folder], where, problems)
  raise ValueError(
    f"{where}: expected the contents or the path of an image, found "
    f"{cell!r:.60}"
  )


def _rows(path, only=None, limit=None):
  """The first rows of a table, or some columns of them."""
  with _opened(path) as (_, read):
    rows = (
      row
      for batch in read(only)
      for start in range(0, len(batch), _BATCH)
      for row in batch.slice(start, _BATCH).to_pylist()
    )
    yield from itertools.islice(rows, limit)


def _features(path):
  """What the schema of a table keeps beside the columns."""
  with _opened(path) as (schema, _):
    kept = schema.metadata or {}
  content = json.loads(kept.get(b"huggingface", b"{}"))
  return content.get("info", {}).get("features") or {}


def _described(folder):
  """The features in dataset_info.json, or else in README.md."""
  path = folder / "dataset_info.json"
  if path.is_file():
    content = files.read_json(path)
    found = content.get("features") if isinstance(content, dict) else None
    return found if isinstance(found, dict) else {}
  path = folder / "README.md"
  return _of_card(path) if path.is_file() else {}


def _of_card(path):
  """The features in the YAML of a README.md, if all configurations agree."""
  lines = files.read_lines(path)
  if lines[0].strip() != "---" or "---" not in lines[1:]:
    return {}
  end = lines.index("---", 1)
  content = files.parse_yaml("\n".join(lines[1:end]), path, first=2)
  info = content.get("dataset_info") if isinstance(content, dict) else None
  found = [
    _feature(x.get("features"), path)
    for x in (info if isinstance(info, list) else [info])
    if isinstance(x, dict)
  ]
  return found[0] if found and found[1:] == found[:-1] else {}


def _feature(described, path):
  """What the YAML says of a feature, in the form of dataset_info.json.

  - {name: label, dtype: {class_label: {names: {'0': cat, '1': dog}}}}
  """
  if isinstance(described, list):
    return {
      x["name"]: _feature({k: v for k, v in x.items() if k != "name"}, path)
      for x in described
      if isinstance(x, dict) and isinstance(x.get("name"), str)
    }
  if not isinstance(described, dict):
    return {}
  if "class_label" in described:
    names = files.get(described["class_label"], "names", (dict, list), path)
    if isinstance(names, dict):
      numbers = [str(i) for i in range(len(names))]
      if names.keys() != set(numbers):
        raise ValueError(
          f"{path}: expected names of the classes from 0 to {len(names) - 1}, "
          f"found those of {messages.shown(', '.join(names))}"
        )
      names = [names[number] for number in numbers]
    return {"names": names}
  inner = files.key_of(described, ("dtype", "sequence", "list", "struct"))
  return _feature(described.get(inner), path)


def _inner(feature):
  """The feature of the innermost items of lists and sequences."""
  if isinstance(feature, list) and feature:
    return _inner(feature[0])
  if not isinstance(feature, dict):
    return {}
  inner = feature.get("feature")
  return _inner(inner) if isinstance(inner, dict | list) else feature


def _decoded(value, feature, where):
  """A cell with class numbers replaced by their names."""
  feature = _inner(feature)
  names = _names(feature)
  if isinstance(value, list):
    return [_decoded(x, feature, where) for x in value]
  if isinstance(value, dict):
    return {
      key: _decoded(x, feature.get(key), where) for key, x in value.items()
    }
  if names is None or not isinstance(value, int):
    return value
  if not 0 <= value < len(names):
    raise ValueError(
      f"{where}: unknown class {value}, the data set has {len(names)}"
    )
  return names[value]


def _classes(feature):
  """Yields the names of every class inside of a feature."""
  feature = _inner(feature)
  if (names := _names(feature)) is not None:
    yield names
  for value in feature.values():
    yield from _classes(value)


def _names(feature):
  """The class names of a feature, None if it is no class label."""
  names = feature.get("names")
  is_class = isinstance(names, list) and all(isinstance(x, str) for x in names)
  return names if is_class else None


@contextlib.contextmanager
def _opened(path):
  """The schema of a table, and a function from columns to its batches."""
  try:
    import pyarrow
    import pyarrow.ipc
    from pyarrow import parquet
  except ImportError:
    raise ValueError(
      "Parquet is read by pyarrow, which is missing: pip install pyarrow"
    ) from None
  try:
    if path.suffix == ".parquet":
      with parquet.ParquetFile(path) as file:

        def read(only):
          return file.iter_batches(_BATCH, columns=only)

        yield file.schema_arrow, read
    else:
      with pyarrow.memory_map(str(path)) as file:
        stream = pyarrow.ipc.open_stream(file)

        def read(only):
          return (batch.select(only) if only else batch for batch in stream)

        yield stream.schema, read
  except (pyarrow.ArrowException, OSError) as error:
    reason = str(error).splitlines()[0]
    raise ValueError(f"{path}: cannot read it: {reason}") from None
