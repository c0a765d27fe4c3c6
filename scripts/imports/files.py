"""Reading annotation files; what is wrong with one is a line with its place."""

import csv
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from paligemma import tree


def read_text(path: pathlib.Path) -> str:
  """The contents of a text file in UTF-8.

  Raises:
    ValueError: it cannot be read, or is in another encoding.
  """
  try:
    return path.read_bytes().decode("utf-8-sig")
  except OSError as error:
    raise ValueError(f"{path}: cannot read it: {error.strerror}") from None
  except UnicodeDecodeError as error:
    raise ValueError(f"{path}: not UTF-8: {error}") from None


def read_lines(path: pathlib.Path) -> list[str]:
  r"""The lines of a text file, without their ends, which are \n or \r\n.

  Other characters that str.splitlines cuts at, as U+2028, belong to a text.

  Raises:
    ValueError: as read_text.
  """
  return [line.removesuffix("\r") for line in read_text(path).split("\n")]


def read_json(path: pathlib.Path) -> Any:
  """The value in a JSON file.

  Raises:
    ValueError: it cannot be read or is malformed.
  """
  return parse_json(read_text(path), str(path))


def parse_json(text: str, where: str) -> Any:
  """The value of a JSON text, which stands at that place."""
  try:
    return json.loads(text)
  except RecursionError:
    raise ValueError(f"{where}: JSON with too many brackets") from None
  except json.JSONDecodeError as error:
    line = f":{error.lineno}" if error.lineno > 1 else ""
    raise ValueError(
      f"{where}{line}: malformed JSON at column {error.colno}: {error.msg}"
    ) from None


def read_rows(path: pathlib.Path) -> Iterator[tuple[str, dict[str, Any]]]:
  """The rows of a CSV, TSV or JSONL file with their places, "a.csv:12".

  A CSV file has a header; it is comma-separated, a TSV file by tabulators.

  Raises:
    ValueError: it cannot be read, a line is malformed, or there is no row.
  """
  text = read_text(path)
  read = _json_rows if path.suffix == ".jsonl" else _csv_rows
  empty = True
  for row in read(path, text):
    empty = False
    yield row
  if empty:
    raise ValueError(f"{path}: holds no row, expected at least one")


def get(fields: Any, key: str, kind: type | tuple[type, ...], where: str):
  """A field of a mapping, which must be of that kind.

  Raises:
    ValueError: the field is missing or of another kind.
  """
  if not isinstance(fields, Mapping):
    raise ValueError(
      f'{where}: expected fields, "{key}" among them, found {fields!r:.60}'
    )
  if key not in fields:
    raise ValueError(
      f'{where}: missing key "{key}", found {", ".join(map(str, fields))}.'
      + tree.did_you_mean(key, map(str, fields))
    )
  value = fields[key]
  if not isinstance(value, kind) or isinstance(value, bool):
    names = kind if isinstance(kind, tuple) else (kind,)
    expected = " or ".join(name.__name__ for name in names)
    raise ValueError(
      f'{where}: expected {expected} under "{key}", found {value!r:.60}'
    )
  return value


def numbers(values: Any, count: int, what: str, where: str) -> list[float]:
  """So many finite numbers, given as such or as text.

  Raises:
    ValueError: they are not.
  """
  try:
    found = [float(value) for value in values]
    if len(found) == count and all(abs(x) < float("inf") for x in found):
      return found
  except (TypeError, ValueError):
    pass
  raise ValueError(
    f"{where}: expected {count} numbers {what}, found {values!r:.80}"
  )


def _json_rows(path, text):
  for number, line in enumerate(text.splitlines(), start=1):
    if line.strip():
      where = f"{path}:{number}"
      row = parse_json(line, where)
      if not isinstance(row, dict):
        raise ValueError(f"{where}: expected an object, found {row!r:.60}")
      yield where, row


def _csv_rows(path, text):
  delimiter = "\t" if path.suffix == ".tsv" else ","
  lines = text.splitlines(keepends=True)
  reader = csv.reader(lines, delimiter=delimiter, strict=True)
  header = None
  try:
    for cells in reader:
      where = f"{path}:{reader.line_num}"
      if not cells:
        continue
      if header is None:
        header = [cell.strip() for cell in cells]
        if len(set(header)) < len(header) or "" in header:
          raise ValueError(
            f"{where}: expected a header of different names, found "
            f"{delimiter.join(cells)!r:.80}"
          )
        continue
      if len(cells) != len(header):
        raise ValueError(
          f"{where}: found {len(cells)} cells, expected {len(header)}: "
          f"{', '.join(header)}"
        )
      yield where, dict(zip(header, cells, strict=True))
  except csv.Error as error:
    raise ValueError(
      f"{path}:{reader.line_num}: malformed CSV: {error}"
    ) from None
