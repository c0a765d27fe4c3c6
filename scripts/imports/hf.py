"""Hugging Face: a folder of images with metadata, of Parquet or of Arrow."""

import contextlib
import dataclasses
import itertools
import json
import pathlib
from typing import Any

from paligemma import messages
from paligemma.data import image_files
from scripts.imports import boxes as boxes_lib
from scripts.imports import columns, entries, files, folders, table

NEEDED = {**table.NEEDED, "detect": ("image", "objects")}
METADATA = ("metadata.jsonl", "metadata.csv")
TABLES = (".parquet", ".arrow")
_BATCH = 32  # rows of a table in memory


@dataclasses.dataclass(frozen=True)
class _Source:
  """How the rows of a data set are read as entries."""

  folder: pathlib.Path  # the data set
  task: str  # "caption", "vqa" or "detect"
  # key of columns.NAMES -> column, where it has another name
  names: dict[str, str]
  # column -> what a dataset_info.json or the schema says of it
  features: dict[str, Any]
  problems: entries.Problems

  def choose(self, row, where):
    return columns.choose(NEEDED[self.task], list(row), self.names, where)

  def split(self, path):
    """The split that a path names, as it is relative to the data set."""
    return entries.split_of(pathlib.PurePath(path)) or "train"


def read(request: entries.Request) -> entries.Annotations:
  """Reads metadata.jsonl or metadata.csv files beside images, or tables.

  Tables are Parquet, or Arrow as save_to_disk of the library datasets writes
  it. Classes given by number have the names that the schema of a table,
  dataset_info.json or README.md gives them. Which split a file belongs to is
  read off its name or its folders, such as validation/metadata.jsonl or
  data/train-00000-of-00001.parquet. Boxes are "xywh", as in the library's
  guide, unless others are given.
  """
  src, task, names = request.src, request.task, request.names
  if task not in NEEDED:
    raise ValueError(f"{src}: a data set of this form has no masks to segment")
  if request.images is not None:
    raise ValueError(f"{src}: --images is of no use, images lie in the folder")
  folder = src if src.is_dir() else src.parent
  metadata = folders.matching(src, "**/metadata.*")
  if metadata := [path for path in metadata if path.name in METADATA]:
    features = _described(folder)
    found, sampled = metadata, _metadata_boxes
    entry_of = _folder_entries
  elif found := [src] if src.is_file() else _tables(src):
    features = _features(found[0]) or _described(folder)
    sampled, entry_of = _table_boxes, _table_entries
  else:
    raise ValueError(
      f"{src}: no {' or '.join(METADATA)} and no Parquet file in this folder"
    )
  source = _Source(folder, task, names, features, request.problems)
  reading = None
  if task == "detect":
    reading = boxes_lib.decide(
      sampled(source, found), src, request.problems, stated=request.boxes
    )
  options = [names["objects"]] if "objects" in names else ["objects"]
  column = columns.find(options, list(features), str(src))
  classes = [*_classes(features.get(column))] if task == "detect" else []
  return entries.Annotations(
    entry_of(source, found, reading), classes[0] if len(classes) == 1 else None
  )


def _tables(folder):
  """The tables in a folder, without what the library keeps for itself."""
  return [
    path
    for path in folders.matching(folder, "**/*")
    if path.suffix in TABLES and not path.name.startswith("cache-")
  ]


def _folder_rows(source, metadata):
  """Yields (columns, image or images, split, place, row)."""
  for path in metadata:
    chosen = None
    below = path.relative_to(source.folder).parent
    for where, row in files.read_rows(path):
      with source.problems:
        if chosen is None or not set(chosen.values()) <= row.keys():
          chosen = source.choose(row, where)
        named = columns.texts(row[chosen["image"]], where, "image")
        found = [
          folders.find(name, [path.parent], where, source.problems)
          for name in named
        ]
        at = pathlib.PurePath(named[0].replace("\\", "/")).parent
        split = source.split(below if at.is_absolute() else below / at)
        yield chosen, found, split, where, row


def _folder_entries(source, metadata, reading):
  for chosen, found, split, where, row in _folder_rows(source, metadata):
    with source.problems:
      image = found[0] if len(found) == 1 else tuple(found)
      yield _entry(source, row, chosen, reading, image, split, where)


def _metadata_boxes(source, metadata):
  sizes = boxes_lib.Sizes()
  quiet = dataclasses.replace(source, problems=entries.Problems(skip=True))
  for chosen, found, _, where, row in _folder_rows(quiet, metadata):
    for values in _values(row[chosen["objects"]], where):
      yield values, sizes(found[0], found[0]), where


def _table_entries(source, tables, reading):
  for path in tables:
    split, chosen = source.split(path.relative_to(source.folder)), None
    for i, row in enumerate(_rows(path)):
      where = f"{path}: row {i}"
      chosen = chosen or source.choose(row, str(path))
      with source.problems:
        cell = row[chosen["image"]]
        found = [
          _image(x, path, source, where)
          for x in (cell if isinstance(cell, list) else [cell])
        ]
        if not found:
          raise ValueError(f"{where}: holds no image")
        kinds = {isinstance(x, bytes) for x in found}
        if len(kinds) > 1:
          raise ValueError(
            f"{where}: holds contents of some images and paths of others"
          )
        data = None
        if kinds == {True}:
          data = tuple(found)
          found = [
            path.with_name(
              f"{path.stem}-{i:06d}{f'-{j}' if j else ''}"
              f"{image_files.suffix(x, where=where)}"
            )
            for j, x in enumerate(data)
          ]
        image = tuple(found)
        if len(image) == 1:
          image, data = image[0], data and data[0]
        entry = _entry(source, row, chosen, reading, image, split, where)
        yield dataclasses.replace(entry, data=data)


def _table_boxes(source, tables):
  """Yields boxes, sizes and places; images of the first rows are looked at."""
  sizes = boxes_lib.Sizes()
  left = boxes_lib.SAMPLE
  for path in tables:
    first = next(_rows(path, limit=1), None)
    if first is None:
      continue
    chosen = source.choose(first, str(path))
    looked = _rows(path, limit=left)
    for i, row in enumerate(_rows(path, [chosen["objects"]])):
      where, size = f"{path}: row {i}", None
      values = list(_values(row[chosen["objects"]], where))
      if full := next(looked, None):
        left -= 1
        size = _looked_at(full[chosen["image"]], path, source, where, sizes)
      yield from ((value, size, where) for value in values)


def _looked_at(cell, path, source, where, sizes):
  """The size of the image in a cell, None if it is none."""
  quiet = dataclasses.replace(source, problems=entries.Problems(skip=True))
  with quiet.problems:
    cell = cell[0] if isinstance(cell, list) and cell else cell
    image = _image(cell, path, quiet, where)
    return sizes(image, where)
  return None


def _image(cell, path, source, where):
  """The contents or the path of an image."""
  found = cell
  if isinstance(cell, dict):
    found = cell.get("bytes") or cell.get("path")
  if isinstance(found, bytes):
    return found
  if isinstance(found, str) and found.strip():
    places = [path.parent, source.folder]
    return folders.find(found, places, where, source.problems)
  raise ValueError(
    f"{where}: expected the contents or the path of an image, found "
    f"{cell!r:.60}"
  )


def _values(objects, where):
  """The numbers of the boxes in a cell, but for bad ones."""
  try:
    found = columns.each(objects, where)
  except ValueError:  # said where it is read
    found = []
  return filter(None, (columns.box(fields, where) for fields in found))


def _entry(source, row, chosen, reading, image, split, where):
  row = {
    column: _decoded(value, source.features.get(column), where)
    for column, value in row.items()
    if column != chosen["image"]
  }
  found = columns.annotations(row, chosen, where)
  if "objects" in chosen:
    found["objects"] = columns.to_objects(
      row[chosen["objects"]], reading, where
    )
  fields = columns.rest(row, chosen)
  return entries.Entry(image, where, split, fields=fields, **found)


def _rows(path, only=None, limit=None):
  """The first rows of a table, or some columns of them."""
  with _pyarrow(path) as (arrow, parquet):
    if path.suffix == ".parquet":
      with parquet.ParquetFile(path) as file:
        batches = file.iter_batches(_BATCH, columns=only)
        yield from itertools.islice(_each(batches), limit)
    else:
      with arrow.memory_map(str(path)) as file:
        batches = arrow.ipc.open_stream(file)
        if only:
          batches = (batch.select(only) for batch in batches)
        yield from itertools.islice(_each(batches), limit)


def _each(batches):
  for batch in batches:
    for start in range(0, len(batch), _BATCH):
      yield from batch.slice(start, _BATCH).to_pylist()


def _features(path):
  """What the schema of a table keeps beside the columns."""
  with _pyarrow(path) as (arrow, parquet):
    if path.suffix == ".parquet":
      schema = parquet.read_schema(path)
    else:
      with arrow.memory_map(str(path)) as file:
        schema = arrow.ipc.open_stream(file).schema
  content = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
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
  """The features in the YAML that a README.md begins with.

  Several configurations count where they have the same ones.
  """
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
  while True:
    if isinstance(feature, list) and feature:
      (feature, *_) = feature
    elif isinstance(feature, dict) and isinstance(
      feature.get("feature"), dict | list
    ):
      feature = feature["feature"]
    else:
      return feature if isinstance(feature, dict) else {}


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
  return tuple(names) if is_class else None


@contextlib.contextmanager
def _pyarrow(path):
  """The library and its part for Parquet, whose errors are one line."""
  try:
    import pyarrow
    import pyarrow.ipc
    from pyarrow import parquet
  except ImportError:
    raise ValueError(
      "Parquet is read by pyarrow, which is missing: pip install pyarrow"
    ) from None
  try:
    yield pyarrow, parquet
  except (pyarrow.ArrowException, OSError) as error:
    reason = str(error).splitlines()[0]
    raise ValueError(f"{path}: cannot read it: {reason}") from None
