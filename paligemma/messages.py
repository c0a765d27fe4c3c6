"""What people read: errors on one line of bearable length, tables in columns.

Files and data say what they like: values with line breaks in them, or of a
million characters.
"""

import re
from collections.abc import Sequence

LONGEST = 200  # characters of one value that a message shows
_OF_ALL = 2000
# A value stands in quotes, or is a word.
_LONG = re.compile(
  rf'"[^"]{{{LONGEST},}}"|\'[^\']{{{LONGEST},}}\'|\S{{{LONGEST},}}'
)


def one_line(text: object) -> str:
  """Returns a message without line breaks, escapes for what has no glyph, and
  of long values the beginning and the end.

  Args:
    text: An exception, or what str() makes the message of. That of an OSError
      names the file first.
  """
  if isinstance(text, OSError) and text.filename and text.strerror:
    text = f"{text.filename}: {text.strerror}"
  words = " ".join(str(text).split()) or type(text).__name__
  words = _LONG.sub(lambda found: _cut(found[0], LONGEST), words)
  return _cut(_printable(words), _OF_ALL)


def shown(text: str) -> str:
  """Returns what a message shows of a user's text: one line, not too long."""
  return _cut(_printable(" ".join(text.split())), LONGEST)


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
  """One line per row, two spaces between columns; rows are of one length."""
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  return [
    "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip()
    for row in rows
  ]


def _printable(text):
  return "".join(
    char if char.isprintable() else char.encode("unicode_escape").decode()
    for char in text
  )


def _cut(text, longest):
  if len(text) <= longest:
    return text
  end = longest // 3
  return f"{text[: longest - end]} ... {text[-end:]}"
