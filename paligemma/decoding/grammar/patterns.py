r"""Regular expressions: a subset of those of Python's `re` with re.ASCII.

Supported are characters; `.`; classes such as [a-z_] and [^;<]; \d \D \w \W \s
\S, ASCII only; the escapes \n \t \r \f \v \a \0 \xhh \uhhhh \Uhhhhhhhh and
escaped punctuation; groups (...), (?:...) and (?P<name>...); alternatives |;
the quantifiers ? * + {n} {n,} {,m} {n,m}. The whole answer is matched, as by
re.fullmatch, so ^ and $ are not needed.
"""

import re
import warnings
from collections.abc import Iterable

from paligemma.decoding.grammar import language

_LAST = 0x10FFFF
_DIGIT = ((0x30, 0x39),)
_WORD = (*_DIGIT, (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A))
_SPACE = ((0x09, 0x0D), (0x20, 0x20))
_CLASSES = {"d": _DIGIT, "w": _WORD, "s": _SPACE}
_ESCAPES = dict(zip("ntrfva0", "\n\t\r\f\v\a\0", strict=True))
_HEX = {"x": 2, "u": 4, "U": 8}
_SIGNS = {"?": (0, 1), "*": (0, None), "+": (1, None)}
_QUANTIFIER = re.compile(r"([?*+])|\{(?=[0-9,])([0-9]*)(,?)([0-9]*)\}")
_GROUP = re.compile(r"\((?:\?:|\?P<\w+>|(?!\?))")


def parse(pattern: str) -> language.Expression:
  """Returns the expression of a pattern.

  Raises:
    ValueError: malformed or not supported; names the position.
  """
  try:
    # Python's own parser says what is malformed.
    with warnings.catch_warnings():
      warnings.simplefilter("ignore", FutureWarning)
      re.compile(pattern, re.ASCII)
    expression, stop = _alternatives(pattern, 0)
  except re.error as error:
    raise _wrong(pattern, error.pos or 0, error.msg) from None
  except (OverflowError, RecursionError) as error:
    raise _wrong(pattern, 0, str(error)) from None
  assert stop == len(pattern), pattern
  return expression


def inverted(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
  """Returns ranges of all code points that are in none of the given ranges."""
  found, start = [], 0
  for first, last in sorted(ranges):
    if start < first:
      found.append((start, first - 1))
    start = max(start, last + 1)
  return [*found, (start, _LAST)] if start <= _LAST else found


def _wrong(pattern, position, problem):
  return ValueError(f"pattern {pattern!r}: {problem}, at position {position}.")


def _alternatives(pattern, i):
  """Reads up to the end or ")"; returns the expression and the position."""
  options, parts = [], []
  while i < len(pattern) and pattern[i] != ")":
    if pattern[i] == "|":
      options.append(language.Sequence(tuple(parts)))
      parts, i = [], i + 1
    else:
      part, i = _item(pattern, i)
      part, i = _quantified(pattern, i, part)
      parts.append(part)
  options.append(language.Sequence(tuple(parts)))
  return language.Either(tuple(options)), i


def _item(pattern, i):
  """Reads a character, a class or a group."""
  character = pattern[i]
  if character in "^$":
    problem = f'"{character}" is not needed, as the whole answer is matched'
    raise _wrong(pattern, i, problem)
  if character == "(":
    start = _GROUP.match(pattern, i)
    if not start:
      problem = f'"{pattern[i : i + 3]}" is not supported, expected (...)'
      raise _wrong(pattern, i, problem)
    group, stop = _alternatives(pattern, start.end())
    return group, stop + 1
  if character == "[":
    ranges, i = _set(pattern, i + 1)
  elif character == ".":
    ranges, i = inverted([(0x0A, 0x0A)]), i + 1
  else:
    ranges, i = _one(pattern, i)
  return language.characters(ranges), i


def _quantified(pattern, i, part):
  """Reads the quantifier after a part, if there is one."""
  found = _QUANTIFIER.match(pattern, i)
  if not found:
    return part, i
  sign, low, comma, high = found.groups()
  if sign:
    least, most = _SIGNS[sign]
  else:
    high = high if comma else low
    least, most = int(low or 0), int(high) if high else None
  stop = found.end()
  if pattern[stop : stop + 1] in ("?", "+"):
    raise _wrong(
      pattern,
      stop,
      f'"{pattern[i : stop + 1]}" is not supported: what the model prefers is'
      " written, not what is shorter or longer",
    )
  return language.Repeat(part, least, most), stop


def _set(pattern, i):
  """Reads a class after its "["; returns its ranges."""
  negated = pattern[i] == "^"
  i += negated
  ranges, start = [], i
  while pattern[i] != "]" or i == start:
    first, i = _one(pattern, i)
    if pattern[i] == "-" and pattern[i + 1] != "]":
      last, i = _one(pattern, i + 1)
      first = [(first[0][0], last[0][1])]
    ranges += first
  return (inverted(ranges) if negated else ranges), i + 1


def _one(pattern, i):
  """Reads a character or an escape; returns its ranges."""
  if pattern[i] != "\\":
    return [(ord(pattern[i]),) * 2], i + 1
  letter = pattern[i + 1]
  if letter.lower() in _CLASSES:
    ranges = _CLASSES[letter.lower()]
    return (ranges if letter.islower() else inverted(ranges)), i + 2
  if letter in _HEX:
    stop = i + 2 + _HEX[letter]
    return [(int(pattern[i + 2 : stop], 16),) * 2], stop
  known = letter in _ESCAPES and not pattern[i + 2 : i + 3].isdigit()
  if not known and letter.isalnum():
    raise _wrong(pattern, i, f'"{pattern[i : i + 2]}" is not supported')
  return [(ord(_ESCAPES.get(letter, letter)),) * 2], i + 2
