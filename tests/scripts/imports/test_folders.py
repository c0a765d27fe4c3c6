"""What counts as a file of a data set, and names that stand for one."""

import pytest

from scripts.imports import entries, folders


def write(path):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.touch()
  return path


def test_hidden_files_are_none(tmp_path):
  seen = write(tmp_path / ".x" / "data" / "b" / "a.JSON")
  src = tmp_path / ".x" / "data"  # a folder above the data set may be hidden
  for name in ("._a.json", "b/._a.json", ".c/a.json", "__MACOSX/b/a.json"):
    write(src / name)
  assert folders.ending(src, ".json") == [seen]
  assert folders.matching(src, "*") == [src / "b"]
  assert folders.matching(src / "none", "**/*") == []
  assert folders.root_and_files(src, ".json") == (src, [seen])
  assert folders.root_and_files(seen, ".xml") == (src / "b", [seen])
  with pytest.raises(
    ValueError, match=r"data: no file of \*\.xml, \*\.x in it"
  ):
    folders.ending(src, ".xml", ".x")


@pytest.mark.parametrize(
  ("name", "found"),
  [
    ("a.jpg", "one/a.jpg"),
    (" b/c.jpg\r", "two/b/c.jpg"),
    ("b\\c.jpg", "two/b/c.jpg"),
    ("d\\e.jpg", "one/d\\e.jpg"),  # its name, on Linux
    (" f.jpg", "one/ f.jpg"),
    ("g\nh.jpg", "one/g\nh.jpg"),
    ("b", "two/b"),
    ("none.jpg", "one/none.jpg"),
  ],
)
def test_find(name, found, tmp_path):
  for path in ("one/a.jpg", "one/d\\e.jpg", "one/ f.jpg", "one/g\nh.jpg"):
    write(tmp_path / path)
  for path in ("two/a.jpg", "two/b/c.jpg"):
    write(tmp_path / path)
  problems = entries.Problems()
  places = [tmp_path / "one", tmp_path / "two"]
  assert folders.find(name, places, "here", problems) == tmp_path / found
  assert not problems.notes


@pytest.mark.parametrize(
  "name", ["/home/x/b/c.jpg", "C:\\b\\c.jpg", "../../b/c.jpg"]
)
def test_paths_of_another_machine(name, tmp_path):
  path = write(tmp_path / "two" / "b" / "c.jpg")
  problems = entries.Problems()
  places = [tmp_path / "one", tmp_path / "two"]
  assert folders.find(name, places, "here", problems) == path
  what = "paths of another machine, found by their end"
  assert problems.notes == {what: (1, "here")}


@pytest.mark.parametrize(
  ("name", "shown"),
  [("x" * 999, f"'{'x' * 59}"), ("a\nb\0.jpg", r"'a\nb\x00.jpg'")],
)
def test_a_name_of_no_file(name, shown, tmp_path):
  with pytest.raises(ValueError) as info:
    folders.find(name, [tmp_path], "here", entries.Problems())
  assert str(info.value) == f"here: {shown} can be the name of no file"
