"""Photos of a folder: all of them, once, in an order that stays."""

import pytest

from paligemma.data import photos


@pytest.fixture
def folder(tmp_path):
  for name in (
    "b.JPG",
    "a.png",
    "sub/c.webp",
    "sub/.d.png",
    ".e/f.png",
    "n.txt",
  ):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(name.encode())
  return tmp_path


def names(folder, *given):
  found = photos.Photos([folder / name for name in given])
  return [
    x["_where"].removeprefix(f"{folder}/") for x in found.without_images()
  ]


@pytest.mark.parametrize(
  ("given", "expected"),
  [
    ((".",), ["a.png", "b.JPG", "sub/c.webp"]),
    (("*.png",), ["a.png"]),
    (("**/*.webp", "a.png"), ["sub/c.webp", "a.png"]),
    (("s*/**/[c]*", "**/sub/*"), ["sub/c.webp"]),
    (("n.txt",), ["n.txt"]),  # who names a file knows what it is
    (("b.JPG", "sub", "b.JPG", "*.JPG"), ["b.JPG", "sub/c.webp"]),
  ],
)
def test_names(folder, given, expected):
  assert names(folder, *given) == expected


def test_examples(folder):
  found = photos.Photos([folder])
  path = str(folder / "b.JPG")
  expected = {"image": b"b.JPG", "_image_path": path, "_where": path}
  assert len(found) == 3 and found[1] == expected
  assert str(found) == f"3 photos from {folder}/a.png on"


def test_the_fingerprint_is_of_paths_and_sizes(folder):
  prints = [photos.Photos([folder]).fingerprint() for _ in range(2)]
  (folder / "a.png").write_bytes(b"other")
  (folder / "sub/.d.png").unlink()
  prints.append(photos.Photos([folder]).fingerprint())
  (folder / "a.png").write_bytes(b"longer")
  prints.append(photos.Photos([folder]).fingerprint())
  (folder / "g.png").touch()
  prints.append(photos.Photos([folder]).fingerprint())
  assert prints[0] == prints[1] == prints[2]
  assert len(set(prints)) == 3


@pytest.mark.parametrize("name", [".", "**", "**/*.*"])
def test_links_that_lead_back_show_nothing_twice(folder, name):
  (folder / "other").mkdir()
  (folder / "other/h.png").touch()
  (folder / "sub/loop").symlink_to("..")
  (folder / "sub/other").symlink_to("../other")
  (folder / "other/sub").symlink_to("../sub")
  (folder / "n.txt").unlink()
  assert names(folder, name) == [
    "a.png",
    "b.JPG",
    "other/h.png",
    "other/sub/c.webp",
    "sub/c.webp",
    "sub/other/h.png",
  ]


def test_a_link_to_nothing_is_a_photo_that_cannot_be_read(folder):
  (folder / "dead.png").symlink_to("none.png")
  found = photos.Photos([folder])
  assert len(found) == 4
  assert found.fingerprint() != photos.Photos([folder / "*"]).fingerprint()
  with pytest.raises(
    ValueError, match=r"dead\.png: cannot read image: No such"
  ):
    found[2]


@pytest.mark.parametrize(
  ("name", "message"),
  [
    (".e", None),
    ("none.png", "none.png: cannot read image: No such file"),
    ("*.gif", r"\*.gif: no file has a name of this pattern"),
    ("empty", "empty: the folder has no image files, expected names such as"),
  ],
)
def test_errors(folder, name, message):
  (folder / "empty").mkdir()
  if message is None:  # a hidden folder that is named is no secret
    assert names(folder, name) == [".e/f.png"]
    return
  with pytest.raises(ValueError, match=message):
    photos.Photos([folder / name])
