"""Reads JSON value by value, as annotation files can be larger than memory."""

import json
import re
from collections.abc import Iterator
from typing import Any, TextIO

_CHUNK = 1 << 20  # characters that are read at a time
_LONGEST = 1 << 28  # characters of one value
_SPACE = re.compile(r"[ \t\n\r]*")
_decode = json.JSONDecoder().raw_decode


class JsonStream:
  """A position in a JSON text.

  Args:
    file: Of the text.
    where: The file, for errors.
  """

  def __init__(self, file: TextIO, where: str):
    self._file, self._where = file, where
    self._text, self._at, self._passed = "", 0, 0

  def members(self) -> Iterator[Any]:
    """Yields the names in an object, or the numbers of a list's elements.

    The caller reads the value of each, by `value`, `members` or `skip`.

    Raises:
      ValueError: It is neither, or malformed.
    """
    opening = self._take("[{")
    closing = "]" if opening == "[" else "}"
    number = 0
    while self._peek() != closing:
      if number:
        self._take(",")
      if opening == "{":
        name = self.value()
        self._take(":")
      yield name if opening == "{" else number
      number += 1
    self._take(closing)

  def value(self) -> Any:
    """Parses the value that begins here, whole."""
    self._peek()
    size = _CHUNK
    while True:
      found = end = None
      try:
        found, end = _decode(self._text, self._at)
      except json.JSONDecodeError as error:
        rest = len(self._text) - error.pos
        if not error.msg.startswith("Unterminated string") and rest > 10:
          raise self._error(error.msg, error.pos) from None
        reason = error.msg
      except RecursionError:
        raise self._error("nested too deep", self._at) from None
      # Of a number that goes on, "0." or "0e-", "0" alone is read.
      if end is not None and len(self._text) - end > 2:
        self._at = end
        return found
      length = None if end is None else end - self._at
      if len(self._text) - self._at > _LONGEST or not self._more(size):
        if length is None:
          raise self._error(f"{reason}; is the file complete?", self._at)
        self._at = length
        return found
      size *= 2

  def skip(self) -> None:
    """Goes past a value, an element of it at a time."""
    if self._peek() in "[{":
      for _ in self.members():
        self.value()
    else:
      self.value()

  def _take(self, expected):
    found = self._peek()
    if found not in expected:
      raise self._error(
        f"expected {' or '.join(expected)}, found {found!r}", self._at
      )
    self._at += 1
    return found

  def _peek(self):
    while True:
      self._at = _SPACE.match(self._text, self._at).end()
      if self._at < len(self._text):
        return self._text[self._at]
      if not self._more(_CHUNK):
        raise self._error("the file ends too early", self._at)

  def _more(self, size):
    read = self._file.read(size)
    self._passed += self._at
    self._text, self._at = self._text[self._at :] + read, 0
    return bool(read)

  def _error(self, reason, at):
    place = self._passed + at
    return ValueError(
      f"{self._where}: malformed JSON at character {place:,}: {reason}"
    )
