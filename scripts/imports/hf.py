"""Hugging Face data sets on disk: a folder of images, or Parquet files."""

import dataclasses
import json
import pathlib

from scripts.imports import columns, entries, files, pictures

NEEDED = {
  "caption": ("image", "caption"),
  "vqa": ("image", "question", "answer"),
  "detect": ("image", "objects"),
}
METADATA = ("metadata.jsonl", "metadata.csv")
_BATCH = 32  # rows of a Parquet file in memory


def read(src, images, problems, *, task, names):
  """Reads metadata.jsonl or metadata.csv files beside images, or Parquet.

  Which split a file belongs to is read off its folders or its name, such as
  validation/metadata.jsonl or data/train-00000-of-00001.parquet.

  Args:
    src: the folder.
    images: must be None: the folder says where its images lie.
    problems: entries.Problems.
    task: "caption", "vqa" or "detect".
    names: key of columns.NAMES -> column, where it has another name.

  Returns:
    entries.Annotations; boxes are (x, y, width, height) in pixels.

  Raises:
    ValueError: a file is malformed or lacks a column, or whatever `problems`
      does not skip.
  """
  src = pathlib.Path(src)
  if task not in NEEDED:
    raise ValueError(f"{src}: a data set of this form has no masks to segment")
  if images is not None:
    raise ValueError(f"{src}: --images is of no use, images lie in the folder")
  needed = NEEDED[task]
  if metadata := sorted(x for name in METADATA for x in src.rglob(name)):
    found = _folder_entries(src, metadata, needed, names, problems)
    return entries.Annotations(found)
  if tables := sorted(src.rglob("*.parquet")):
    classes = _classes(tables[0])
    found = _parquet_entries(src, tables, needed, names, classes, problems)
    return entries.Annotations(found, classes)
  raise ValueError(
    f"{src}: no {' or '.join(METADATA)} and no Parquet file in this folder"
  )


def _split(src, path):
  """The split that a path below the folder names."""
  words = path.relative_to(src).with_suffix("").as_posix().replace("/", "-")
  for word in words.split("-"):
    if word.lower() in entries.SPLITS:
      return entries.split_name(word)
  return "train"


def _folder_entries(src, metadata, needed, names, problems):
  for path in metadata:
    chosen = None
    for where, row in files.read_rows(path):
      with problems:
        if chosen is None or not set(chosen.values()) <= row.keys():
          chosen = columns.choose(needed, list(row), names, where)
        (name,) = columns.texts(row[chosen["image"]], where, "image")
        image = path.parent / name
        yield _entry(
          row, chosen, image, _split(src, image), None, where, problems
        )


def _parquet_entries(src, tables, needed, names, classes, problems):
  for path in tables:
    split, chosen = _split(src, path), None
    for i, row in enumerate(_rows(path)):
      where = f"{path}: row {i}"
      chosen = chosen or columns.choose(needed, list(row), names, str(path))
      with problems:
        data = row[chosen["image"]]
        if isinstance(data, dict):
          data = data.get("bytes")
        if not isinstance(data, bytes):
          raise ValueError(
            f"{where}: expected the contents of an image, found "
            f"{row[chosen['image']]!r:.60}"
          )
        name = path.with_name(
          f"{path.stem}-{i:06d}{pictures.suffix(data, where)}"
        )
        entry = _entry(row, chosen, name, split, classes, where, problems)
        yield dataclasses.replace(entry, data=data)


def _entry(row, chosen, image, split, classes, where, problems):
  found = columns.annotations(row, chosen, where)
  if "objects" in chosen:
    objects = row[chosen["objects"]]
    found["things"] = columns.things(objects, classes, where, problems)
  fields = columns.rest(row, chosen)
  return entries.Entry(image, where, split, fields=fields, **found)


def _rows(path):
  arrow, parquet = _pyarrow()
  try:
    with parquet.ParquetFile(path) as file:
      for batch in file.iter_batches(_BATCH):
        yield from batch.to_pylist()
  except (arrow.ArrowException, OSError) as error:
    reason = str(error).splitlines()[0]
    raise ValueError(f"{path}: cannot read Parquet: {reason}") from None


def _classes(path):
  """The names of categories, which the schema keeps beside the columns."""
  arrow, parquet = _pyarrow()
  try:
    metadata = parquet.read_schema(path).metadata or {}
  except (arrow.ArrowException, OSError) as error:
    reason = str(error).splitlines()[0]
    raise ValueError(f"{path}: cannot read Parquet: {reason}") from None
  content = json.loads(metadata.get(b"huggingface", b"{}"))
  features = content.get("info", {}).get("features", {})
  names = list(_names(features.get("objects", {})))
  return tuple(names[0]) if len(names) == 1 else None


def _names(feature):
  """Yields the "names" of every ClassLabel inside of a feature."""
  if isinstance(feature, dict):
    if isinstance(feature.get("names"), list):
      yield feature["names"]
    for value in feature.values():
      yield from _names(value)
  elif isinstance(feature, list):
    for value in feature:
      yield from _names(value)


def _pyarrow():
  try:
    import pyarrow
    from pyarrow import parquet
  except ImportError:
    raise ValueError(
      "Parquet is read by pyarrow, which is missing: pip install pyarrow"
    ) from None
  return pyarrow, parquet
