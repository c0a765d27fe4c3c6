"""Hugging Face: a folder of images with metadata, of Parquet or of Arrow."""

import contextlib
import json
import pathlib
from collections.abc import Iterator
from typing import Any

from paligemma import messages
from paligemma.data import image_files
from scripts.imports import columns, entries, files, folders, table

NEEDED = {**table.NEEDED, "detect": ("image", "objects")}
METADATA = ("metadata.jsonl", "metadata.csv")
TABLES = (".parquet", ".arrow")
_BATCH = 32  # rows of a table in memory
# Keys of a feature under which the one inside of it is described.
_AROUND = ("feature", "dtype", "sequence", "list", "struct")


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
  classes = _described(folder, found[0])
  if task == "detect":
    options = [names.get("objects", "objects")]
    column = columns.find(options, list(classes), str(src))
    inside = list(_classes(classes.get(column)))
    request.labels = inside[0] if len(inside) == 1 else None
  for where, split, images, chosen, row in _examples(request, folder, found):
    with request.problems:
      row = {
        column: _decoded(value, classes.get(column), where)
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
  with opened(path) as (_, batches):
    rows = (
      row
      for batch in batches
      for start in range(0, len(batch), _BATCH)
      for row in batch.slice(start, _BATCH).to_pylist()
    )
    for i, row in enumerate(rows):
      yield f"{path}: row {i}", row


def _described(folder, path):
  """Names of classes by column, in a table, dataset_info.json or README.md."""
  if path.suffix in TABLES:
    with opened(path) as (schema, _):
      kept = schema.metadata or {}
    content = json.loads(kept.get(b"huggingface", b"{}"))
    if features := content.get("info", {}).get("features"):
      return _names(features, path)
  if (path := folder / "dataset_info.json").is_file():
    content = files.read_json(path)
    return _names(isinstance(content, dict) and content.get("features"), path)
  path = folder / "README.md"
  return _of_card(path) if path.is_file() else {}


def _of_card(path):
  """Those in the YAML of a README.md, if all configurations agree."""
  lines = [*files.read_lines(path)] or [""]
  if lines[0].strip() != "---" or "---" not in lines[1:]:
    return {}
  end = lines.index("---", 1)
  content = files.parse_yaml("\n".join(lines[1:end]), path, first=2)
  info = content.get("dataset_info") if isinstance(content, dict) else None
  found = [
    _names(x.get("features"), path)
    for x in (info if isinstance(info, list) else [info])
    if isinstance(x, dict)
  ]
  return found[0] if found and found[1:] == found[:-1] else {}


def _names(feature, path):
  """The names of a class, or by field those inside of a feature.

  In JSON {"feature": {"names": ["cat", "dog"], "_type": "ClassLabel"}}, in YAML
  - {name: label, dtype: {class_label: {names: {'0': cat, '1': dog}}}}
  """
  if isinstance(feature, list):
    found = {
      x["name"]: _names({k: v for k, v in x.items() if k != "name"}, path)
      for x in feature
      if isinstance(x, dict) and isinstance(x.get("name"), str)
    }
    return found or (_names(feature[0], path) if feature else {})
  if not isinstance(feature, dict):
    return {}
  if "class_label" in feature:
    kinds = (dict, list)
    names = files.get(feature["class_label"], "names", kinds, path)
    if isinstance(names, list):
      return names
    numbers = [str(i) for i in range(len(names))]
    if names.keys() != set(numbers):
      raise ValueError(
        f"{path}: expected names of the classes from 0 to {len(names) - 1}, "
        f"found those of {messages.shown(', '.join(names))}"
      )
    return [names[number] for number in numbers]
  names = feature.get("names")
  if isinstance(names, list) and all(isinstance(x, str) for x in names):
    return names
  for key in _AROUND:
    if isinstance(feature.get(key), dict | list):
      return _names(feature[key], path)
  return {key: _names(value, path) for key, value in feature.items()}


def _classes(names):
  """Yields the names of every class inside of a feature."""
  if isinstance(names, list):
    yield names
  for inner in names.values() if isinstance(names, dict) else ():
    yield from _classes(inner)


def _decoded(value, names, where):
  """A cell with class numbers replaced by their names."""
  if isinstance(value, list):
    return [_decoded(x, names, where) for x in value]
  if isinstance(value, dict):
    inner = names if isinstance(names, dict) else {}
    return {key: _decoded(x, inner.get(key), where) for key, x in value.items()}
  if not isinstance(names, list) or not isinstance(value, int):
    return value
  if not 0 <= value < len(names):
    raise ValueError(
      f"{where}: unknown class {value}, the data set has {len(names)}"
    )
  return names[value]


@contextlib.contextmanager
def opened(path: pathlib.Path) -> Iterator[tuple[Any, Iterator[Any]]]:
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
