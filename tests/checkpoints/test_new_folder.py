"""A folder is there as a whole or not at all."""

import os

import pytest

from paligemma.checkpoints.new_folder import new_folder


def test_appears_when_it_is_complete(tmp_path):
  with new_folder(tmp_path / "a" / "b") as folder:
    (folder / "x").write_text("1")
    assert not (tmp_path / "a" / "b").exists()
  assert [p.name for p in (tmp_path / "a").iterdir()] == ["b"]
  assert (tmp_path / "a" / "b" / "x").read_text() == "1"


def test_an_error_leaves_nothing(tmp_path):
  with pytest.raises(KeyError), new_folder(tmp_path / "b") as folder:
    (folder / "x").write_text("1")
    raise KeyError
  assert list(tmp_path.iterdir()) == []


def test_leftovers_of_a_killed_process_are_not_kept(tmp_path):
  left = tmp_path / f".b.{os.getpid()}.tmp"
  left.mkdir()
  (left / "old").touch()
  with new_folder(tmp_path / "b") as folder:
    (folder / "x").touch()
  assert [p.name for p in (tmp_path / "b").iterdir()] == ["x"]
