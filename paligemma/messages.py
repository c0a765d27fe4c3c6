"""What an error says, on one line of bearable length.

Files and data say what they like: values with line breaks in them, or of a
million characters.
"""

import re

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
