"""Reads annotation files: text, JSON, XML, YAML, CSV."""

import codecs
import contextlib
import csv
import json
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from xml.etree import ElementTree

import yaml

from paligemma import messages, registry

_DELIMITERS = {".csv": ",;\t|", ".tsv": "\t,;|"}
# Numbers that json.loads refuses or should: of words, and of 1,000 digits.
_NUMBER = re.compile(r"[\[:,\s](NaN|-?Infinity|-?[0-9]{1000})")
_INDEX = re.compile(r"(Unnamed: 0(\.[0-9]+)?)?")  # as pandas heads its own


def read_text(path: pathlib.Path) -> str:
  """The contents of a text file in UTF-8."""
  try:
    data = path.read_bytes()
  except OSError as error:
    raise ValueError(f"{path}: cannot read it: {error.strerror}") from None
  if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
    raise ValueError(f"{path}: is in UTF-16 or UTF-32; save it as UTF-8")
  try:
    text = data.decode("utf-8-sig")
  except UnicodeDecodeError as error:
    raise ValueError(
      f"{path}:{_line(data, error.start)}: not UTF-8, but byte "
      f"0x{data[error.start]:02x}; save it as UTF-8"
    ) from None
  if "\0" in text:
    raise ValueError(
      f"{path}:{_line(data, data.index(0))}: a NUL byte; this is no text, or "
      "one in UTF-16"
    )
  return text


def _line(data, position):
  return data.count(b"\n", 0, position) + 1


def read_lines(path: pathlib.Path) -> list[str]:
  r"""The lines of a text file, without their ends, which are \n or \r\n.

  Other characters that str.splitlines cuts at, as U+2028, belong to a text.
  """
  return [line.removesuffix("\r") for line in read_text(path).split("\n")]


def read_json(path: pathlib.Path) -> Any:
  """The value in a JSON file."""
  return parse_json(read_text(path), str(path))


def parse_json(text: str, where: str) -> Any:
  """The value of a JSON text."""
  try:
    return json.loads(text, parse_constant=_no_constant)
  except json.JSONDecodeError as error:
    line, column, reason = error.lineno, error.colno, error.msg
  except RecursionError:
    line, column, reason = 1, 1, "nested too deep"
  except ValueError as error:  # of _no_constant, or of int()
    found = _NUMBER.search(text)
    start = found.start(1) if found else 0
    line = text.count("\n", 0, start) + 1
    column, reason = start - text.rfind("\n", 0, start), str(error)
  place = f"{where}:{line}" if line > 1 else where
  raise ValueError(
    f"{place}: malformed JSON at column {column}: {reason.partition(';')[0]}"
  )


def _no_constant(name):
  raise ValueError(f"{name} is no number of JSON")


def read_xml(path: pathlib.Path) -> ElementTree.Element:
  """The root of an XML file.

  A file that declares entities is refused: no annotation needs them, and a few
  lines of them can grow to gigabytes.
  """
  text = read_text(path)
  if "<!ENTITY" in text:
    raise ValueError(f"{path}: declares XML entities, expected none")
  try:
    return ElementTree.fromstring(text)
  except ElementTree.ParseError as error:
    line, column = error.position
    reason = str(error).partition(":")[0]
    raise ValueError(
      f"{path}:{line}: malformed XML at column {column + 1}: {reason}"
    ) from None


def read_yaml(path: pathlib.Path) -> Any:
  """The value in a YAML file."""
  return parse_yaml(read_text(path), path)


def parse_yaml(text: str, path: pathlib.Path, first: int = 1) -> Any:
  """The value of YAML that begins at line `first` of a file.

  Scalars stay text, as [no, yes] is no [0, 1].
  """
  try:
    return yaml.load(text, yaml.BaseLoader)
  except (yaml.YAMLError, RecursionError) as error:
    mark = getattr(error, "problem_mark", None)
    line = f":{mark.line + first}" if mark else ""
    reason = getattr(error, "problem", None) or "not to be parsed"
    raise ValueError(f"{path}{line}: malformed YAML: {reason}") from None


def read_rows(path: pathlib.Path) -> Iterator[tuple[str, dict[str, Any]]]:
  """The rows of a CSV, TSV or JSONL file with their places, "a.csv:12".

  A CSV file has a header. What parts it into most columns, of comma, semicolon,
  tabulator and "|", parts the other lines too. Columns in front that pandas has
  written of its index are left out.
  """
  read = _json_rows if path.suffix.lower() == ".jsonl" else _csv_rows
  empty = True
  for row in read(path):
    empty = False
    yield row
  if empty:
    raise ValueError(f"{path}: holds no row, expected at least one")


def get(
  fields: Any, key: str, kind: type | tuple[type, ...], where: str
) -> Any:
  """A field of a mapping, which must be of that kind."""
  if not isinstance(fields, Mapping):
    raise ValueError(
      f'{where}: expected fields, "{key}" among them, found {fields!r:.60}'
    )
  if key not in fields:
    found = messages.shown(", ".join(map(str, fields)))
    raise ValueError(
      f'{where}: missing key "{key}", found {found}.'
      + registry.did_you_mean(key, map(str, fields))
    )
  value = fields[key]
  if not isinstance(value, kind) or isinstance(value, bool):
    names = kind if isinstance(kind, tuple) else (kind,)
    expected = " or ".join(name.__name__ for name in names)
    raise ValueError(
      f'{where}: expected {expected} under "{key}", found {value!r:.60}'
    )
  return value


def key_of(fields: Any, options: Sequence[str]) -> str:
  """The first of some keys that a mapping has; without any the first key."""
  present = fields if isinstance(fields, Mapping) else ()
  return next((key for key in options if key in present), options[0])


def numbers(values: Any, count: int, what: str, where: str) -> list[float]:
  """So many finite numbers, given as numbers or as text."""
  try:
    found = [] if isinstance(values, str) else [float(x) for x in values]
    if len(found) == count and all(abs(x) < float("inf") for x in found):
      return found
  except (TypeError, ValueError, OverflowError):
    pass
  raise ValueError(
    f"{where}: expected {count} numbers {what}, found {values!r:.80}"
  )


def read_json_lines(path: pathlib.Path) -> Iterator[tuple[str, Any]]:
  """The values of a JSONL file with their places; blank lines are none."""
  for number, line in enumerate(read_lines(path), start=1):
    if line.strip():
      where = f"{path}:{number}"
      yield where, parse_json(line, where)


def _json_rows(path):
  for where, row in read_json_lines(path):
    if not isinstance(row, dict):
      raise ValueError(f"{where}: expected an object, found {row!r:.60}")
    yield where, row


def _csv_rows(path):
  lines = read_lines(path)
  delimiter = _delimiter(path, next(filter(None, lines), ""))
  # A cell can hold the end of a line, so the reader needs to see it.
  ended = (f"{line}\n" for line in lines)
  reader = csv.reader(ended, delimiter=delimiter, strict=True)
  header = None
  try:
    for cells in reader:
      where = f"{path}:{reader.line_num}"
      if not cells:
        continue
      if header is None:
        header, first = _header(cells, where)
        continue
      if len(cells) != first + len(header):
        raise ValueError(
          f"{where}: found {len(cells)} cells, expected {first + len(header)}: "
          f"{messages.shown(', '.join(header))}"
        )
      yield where, dict(zip(header, cells[first:], strict=True))
  except csv.Error as error:
    raise ValueError(
      f"{path}:{reader.line_num}: malformed CSV: {error}"
    ) from None


def _delimiter(path, line):
  """The delimiter that cuts a header into most cells."""

  def cells(delimiter):
    try:
      return len(next(csv.reader([line], delimiter=delimiter, strict=True), []))
    except csv.Error:
      return 0

  usual = _DELIMITERS.get(path.suffix.lower(), _DELIMITERS[".csv"])
  return max(usual, key=cells)


def _header(cells, where):
  """The names of the columns, and how many index columns precede them."""
  header = [cell.strip() for cell in cells]
  first = 0
  while len(header) > first + 1 and _INDEX.fullmatch(header[first]):
    first += 1
  header = header[first:]
  if len(set(header)) < len(header) or "" in header:
    raise ValueError(
      f"{where}: expected a header of different names, found "
      f"{messages.shown(', '.join(cells))!r}"
    )
  return header, first


@contextlib.contextmanager
def one_line() -> Iterator[None]:
  """Puts the message of a ValueError on one line."""
  try:
    yield
  except ValueError as error:
    raise ValueError(messages.one_line(error)) from error
