"""A message is one line of bearable length, whatever was put into it."""

import errno
import os

import pytest

from paligemma import messages


@pytest.mark.parametrize(
  ("text", "expected"),
  [
    ("two\n lines\r\n\tand \x1b[31m red", r"two lines and \x1b[31m red"),
    ("half \ud800 of a pair, a NUL \x00", r"half \ud800 of a pair, a NUL \x00"),
    ("caf\u00e9 \u732b", "caf\u00e9 \u732b"),
    (ValueError("x.jsonl:3: no image"), "x.jsonl:3: no image"),
    (RecursionError(), "RecursionError"),
    (OSError(errno.ENOSPC, "No space left", "a/b"), "a/b: No space left"),
    (OSError("of another library"), "of another library"),
  ],
)
def test_one_line(text, expected):
  assert messages.one_line(text) == expected
  messages.one_line(text).encode()


@pytest.mark.parametrize(
  "value", ["x" * 10**6, '"' + "x y " * 10**5 + '"', "'" + "\n" * 10**6 + "x'"]
)
def test_a_long_value_shows_its_beginning_and_end(value):
  found = messages.one_line(f"x.jsonl:3: expected a number, found {value}, so")
  assert found.startswith("x.jsonl:3: expected a number, found ")
  assert len(found) < 260
  assert found.endswith("so")


def test_many_values_are_cut_as_a_whole():
  found = messages.one_line("; ".join(f"leaf {i} differs" for i in range(9999)))
  assert len(found) < 2010
  assert found.startswith("leaf 0 differs; leaf 1 differs; ")
  assert found.endswith("; leaf 9998 differs")


def test_a_path_of_usual_length_is_whole():
  path = "/" + "/".join(["folder"] * 20) + "/train.jsonl:7"
  error = OSError(errno.EACCES, os.strerror(errno.EACCES), path)
  assert messages.one_line(error) == f"{path}: Permission denied"


def test_of_a_users_text_so_much_is_shown():
  assert messages.shown(" a\n b\u2028c\0 ") == r"a b c\x00"
  long = messages.shown("x" * 999)
  assert 200 < len(long) < 210
  assert " ... " in long
