"""Hugging Face: a folder of images with metadata, of Parquet or of Arrow."""

import contextlib
import json
import pathlib

from paligemma import messages
from paligemma.data import image_files
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
  found = [src] if src.is_file() else _files(src)
  features = found[0].suffix in TABLES and _features(found[0])
  features = features or _described(folder)
  if task == "detect":
    options = [names.get("objects", "objects")]
    column = columns.find(options, list(features), str(src))
    classes = list(_classes(features.get(column)))
    request.labels = classes[0] if len(classes) == 1 else None
  for where, split, images, chosen, row in _examples(request, folder, found):
    with request.problems:
      row = {
        column: _decoded(value, features.get(column), where)
        for column, value in row.items()
        if column != chosen["image"]
      }
      annotated = columns.annotations(row, chosen, where)
      if task == "detect":
        cell = row[chosen["objects"]]
        annotated["objects"] = columns.to_objects(cell, where)
      fields = columns.rest(row, chosen)
      yield entries.Entry(images, where, split, fields=fields, **annotated)


def _files(folder):
  """The files of metadata, or else the tables but for cached ones."""
  present = folders.matching(folder, "**/*")
  found = [path for path in present if path.name in METADATA] or [
    path
    for path in present
    if path.suffix in TABLES and not path.name.startswith("cache-")
  ]
  if not found:
    raise ValueError(
      f"{folder}: no {' or '.join(METADATA)} and no Parquet file in this folder"
    )
  return found


def _examples(request, folder, paths):
  """Yields (place, split, images, chosen columns, row)."""
  for path in paths:
    chosen, below = None, path.relative_to(folder)
    for i, (where, row) in enumerate(_rows(path)):
      with request.problems:
        if chosen is None or not set(chosen.values()) <= row.keys():
          needed = NEEDED[request.task]
          chosen = columns.choose(needed, list(row), request.names, where)
        cells, named = row[chosen["image"]], below
        if path.suffix not in TABLES:
          cells = columns.texts(cells, where, "image")
          parent = pathlib.PurePath(cells[0].replace("\\", "/")).parent
          named = parent if parent.is_absolute() else below.parent / parent
        elif not isinstance(cells, list):
          cells = [cells]
        if not cells:
          raise ValueError(f"{where}: holds no image")
        images = tuple(
          _image(
            cell,
            path,
            folder,
            f"{i:06d}-{j}" if j else f"{i:06d}",
            where,
            request.problems,
          )
          for j, cell in enumerate(cells)
        )
        yield where, entries.split_of(named), images, chosen, row


def _image(cell, path, folder, number, where, problems):
  """The contents or the path of an image."""
  found = cell
  if isinstance(cell, dict):
    found = cell.get("bytes") or cell.get("path")
  if isinstance(found, bytes):
    suffix = image_files.suffix(found, where=where)
    name = path.with_name(f"{path.stem}-{number}{suffix}")
    return entries.Contents(name, found)
  if isinstance(found, str) and found.strip():
    return folders.find(found, [path.parent, folder], where, problems)
  raise ValueError(
    f"{where}: expected the contents or the path of an image, found "
    f"{cell!r:.60}"
  )


def _rows(path):
  """Yields the rows of a file with their places."""
  if path.suffix not in TABLES:
    yield from files.read_rows(path)
    return
  with _opened(path) as (_, batches):
    rows = (
      row
      for batch in batches
      for start in range(0, len(batch), _BATCH)
      for row in batch.slice(start, _BATCH).to_pylist()
    )
    for i, row in enumerate(rows):
      yield f"{path}: row {i}", row


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
  """The schema of a table, and its batches of rows."""
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
        yield file.schema_arrow, file.iter_batches(_BATCH)
    else:
      with pyarrow.memory_map(str(path)) as file:
        stream = pyarrow.ipc.open_stream(file)
        yield stream.schema, stream
  except (pyarrow.ArrowException, OSError) as error:
    reason = str(error).splitlines()[0]
    raise ValueError(f"{path}: cannot read it: {reason}") from None
