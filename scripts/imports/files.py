"""Reads annotation files: text, JSON, XML, YAML, CSV."""

import codecs
import contextlib
import csv
import json
import math
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from xml.etree import ElementTree

import yaml

from paligemma import messages, registry

# Numbers that json.loads refuses or should: of words, and of 1,000 digits.
_NUMBER = re.compile(r"[\[:,\s](NaN|-?Infinity|-?[0-9]{1000})")
_INDEX = re.compile(r"(Unnamed: 0(\.[0-9]+)?)?")  # as pandas heads its own


def _lines(path):
  """Yields the lines of a text file in UTF-8, with their ends."""
  try:
    with path.open("rb") as file:
      for number, data in enumerate(file, start=1):
        if number == 1:
          if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise ValueError(
              f"{path}: is in UTF-16 or UTF-32; save it as UTF-8"
            )
          data = data.removeprefix(codecs.BOM_UTF8)
        if 0 in data:
          raise ValueError(
            f"{path}:{number}: a NUL byte; this is no text, or one in UTF-16"
          )
        try:
          yield data.decode()
        except UnicodeDecodeError as error:
          raise ValueError(
            f"{path}:{number}: not UTF-8, but byte 0x{data[error.start]:02x}; "
            "save it as UTF-8"
          ) from None
  except OSError as error:
    raise ValueError(f"{path}: cannot read it: {error.strerror}") from None


def read_text(path: pathlib.Path) -> str:
  """The contents of a text file in UTF-8."""
  return "".join(_lines(path))


def read_lines(path: pathlib.Path) -> Iterator[str]:
  r"""Yields the lines of a text file, without their ends, \n or \r\n.

  Other characters that str.splitlines cuts at, as U+2028, belong to a text.
  """
  for line in _lines(path):
    yield line.removesuffix("\n").removesuffix("\r")


def lines_and_places(path: pathlib.Path) -> Iterator[tuple[str, str]]:
  """Yields ("a.txt:12", line) for each line that is not blank."""
  for number, line in enumerate(read_lines(path), start=1):
    if line.strip():
      yield f"{path}:{number}", line


def read_words(path: pathlib.Path) -> list[str]:
  """The lines that are not blank, without spaces around them."""
  return [line.strip() for _, line in lines_and_places(path)]


def read_json(path: pathlib.Path) -> Any:
  return _parse_json(read_text(path), str(path))


def read_list(
  path: pathlib.Path, item: str, hint: str = ""
) -> Iterator[tuple[str, Any]]:
  """Yields ("a.json: task number 12", value) for each item of a JSON list."""
  content = read_json(path)
  if not isinstance(content, list):
    raise ValueError(
      f"{path}: expected a list of {item}s, found {content!r:.60}{hint}"
    )
  for i, value in enumerate(content):
    yield f"{path}: {item} number {i}", value


def _parse_json(text, where):
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


def parse_yaml(text: str, path: pathlib.Path, first: int = 1) -> Any:
  """Parses YAML that begins at line `first` of a file.

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

  A CSV file has a header. Its delimiter is the one of comma, semicolon, tab and
  "|" that separates the header into most columns. Index columns that pandas
  wrote in front are left out.
  """
  read = _json_rows if path.suffix.lower() == ".jsonl" else _csv_rows
  rows = read(path)
  first = next(rows, None)
  if first is None:
    raise ValueError(f"{path}: holds no row, expected at least one")
  yield first
  yield from rows


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


def get_numbers(
  fields: Mapping[str, Any], keys: Sequence[str], where: str
) -> list[float]:
  """Finite numbers under some keys of a mapping."""
  found = [fields.get(key) for key in keys]
  return numbers(found, len(keys), ", ".join(keys), where)


def numbers(values: Any, count: int, what: str, where: str) -> list[float]:
  """Finite numbers, given as numbers, as texts or in one text."""
  items = values
  if isinstance(values, str):
    items = values.strip().strip("[]()").replace(",", " ").split()
  try:
    found = [float(x) for x in items if not isinstance(x, bool)]
    if len(items) == count == len(found) and all(map(math.isfinite, found)):
      return found
  except (TypeError, ValueError, OverflowError):
    pass
  raise ValueError(
    f"{where}: expected {count} numbers {what}, found {values!r:.80}"
  )


def read_json_lines(path: pathlib.Path) -> Iterator[tuple[str, Any]]:
  """Yields ("a.jsonl:12", value) for each line that is not blank."""
  for where, line in lines_and_places(path):
    yield where, _parse_json(line, where)


def _json_rows(path):
  for where, row in read_json_lines(path):
    if not isinstance(row, dict):
      raise ValueError(f"{where}: expected an object, found {row!r:.60}")
    yield where, row


def _csv_rows(path):
  # A cell can hold the end of a line, so the reader needs to see it.
  ended = (f"{line}\n" for line in read_lines(path))
  delimiter = _delimiter(path, next(filter(None, read_lines(path)), ""))
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
  def count(delimiter):
    try:
      return len(next(csv.reader([line], delimiter=delimiter, strict=True), []))
    except csv.Error:
      return 0

  usual = "\t,;|" if path.suffix.lower() == ".tsv" else ",;\t|"
  return max(usual, key=count)


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
def at(where: str) -> Iterator[None]:
  """Begins the message of a ValueError with `where`."""
  try:
    yield
  except ValueError as error:
    raise ValueError(f"{where}: {error}") from None


@contextlib.contextmanager
def one_line() -> Iterator[None]:
  """Puts the message of a ValueError on one line."""
  try:
    yield
  except ValueError as error:
    raise ValueError(messages.one_line(error)) from error
