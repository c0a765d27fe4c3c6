"""Text for people: errors on one line of limited length, aligned tables.

Values from files and data may hold line breaks or a million characters.
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
  """Returns a message on one line; escapes unprintable characters, shortens
  long values.

  Args:
    text: An exception, or an object whose str() is the message. The message of
      an OSError begins with the file.
  """
  if isinstance(text, OSError) and text.filename and text.strerror:
    text = f"{text.filename}: {text.strerror}"
  words = " ".join(str(text).split()) or type(text).__name__
  words = _LONG.sub(lambda found: _cut(found[0], LONGEST), words)
  return _cut(printable(words), _OF_ALL)


def shown(text: str) -> str:
  """Returns a user's text as a message quotes it: one line, not too long."""
  return _cut(printable(" ".join(text.split())), LONGEST)


def printable(text: str) -> str:
  """Returns a text whose unprintable characters are escaped."""
  return "".join(
    char if char.isprintable() else char.encode("unicode_escape").decode()
    for char in text
  )


def listed(lines: Sequence[str], most: int = 10) -> str:
  """Returns "a; b; and 3 more": the first lines, and how many others."""
  more = [f"and {len(lines) - most} more"] if len(lines) > most else []
  return "; ".join([*lines[:most], *more])


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
  """Returns one line per row, columns aligned and two spaces apart."""
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  return [
    "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip()
    for row in rows
  ]


def _cut(text, longest):
  if len(text) <= longest:
    return text
  end = longest // 3
  return f"{text[: longest - end]} ... {text[-end:]}"
