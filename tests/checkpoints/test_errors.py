"""One printable line that names the checkpoint, whatever was raised."""

import pytest

from paligemma.checkpoints import errors


def message(path, raised):
  with pytest.raises(ValueError) as error, errors.named(path):
    raise ValueError(raised)
  return str(error.value)


def test_the_path_stands_there_once():
  assert message("a/b", "no config") == "a/b: no config"
  assert message("a/b", "a/b/config.json: empty") == "a/b/config.json: empty"


def test_one_printable_line():
  assert message("a/b", "two\n lines\tand \x1b[31m red") == (
    r"a/b: two lines and \x1b[31m red"
  )
  assert message("a\nb", "bad") == "a b: bad"


def test_long_messages_are_cut():
  found = message("a/b", "x" * 10_000)
  assert found.startswith("a/b: xxx") and len(found) < 220


def test_other_errors_pass():
  with pytest.raises(KeyError), errors.named("a/b"):
    raise KeyError("x")
