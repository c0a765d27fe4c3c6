"""Which images are copies of one picture, and a share of the pictures."""

import os

import pytest

from paligemma.data import copies


def write(folder, contents):
  files = {}
  for name, data in contents.items():
    files[name] = folder / name
    files[name].parent.mkdir(parents=True, exist_ok=True)
    files[name].write_bytes(data)
  return files


def test_copies_are_found_by_name_by_contents_and_by_line(tmp_path):
  files = write(
    tmp_path,
    {
      "train/a_jpg.rf.5d41402abc.jpg": b"1",
      "valid/a_jpg.rf.Zq9.jpg": b"2",
      "train/a_jpg.jpg": b"3",
      "train/b.jpg": b"the same",
      "c.png": b"the same",
      "d.png": b"as long!",
      "e.png": b"5",
      "f.png": b"6",
    },
  )
  found = copies.pictures(files, [["c.png"], ["e.png", "f.png"]])
  assert found == {
    **{name: name for name in files},
    "valid/a_jpg.rf.Zq9.jpg": "train/a_jpg.rf.5d41402abc.jpg",
    "c.png": "train/b.jpg",
    "f.png": "e.png",
  }


def test_copies_of_copies_are_copies(tmp_path):
  contents = {"b": b"same", "a.rf.1.png": b"1", "a.rf.2.png": b"same"}
  files = write(tmp_path, {**contents, "c": b"2"})
  found = copies.pictures(files, [["a.rf.1.png", "c"]])
  assert set(found.values()) == {"b"}


def test_long_files_differ_before_their_end(tmp_path):
  contents = {"a": b"1" + bytes(9999), "b": b"2" + bytes(9999)}
  files = write(tmp_path, {**contents, "c": contents["b"]})
  found = copies.pictures(files, [])
  assert found == {"a": "a", "b": "b", "c": "b"}


def test_what_is_no_file_is_a_picture_of_its_own(tmp_path):
  files = write(tmp_path, {"a": b"", "b": b""})
  os.mkfifo(tmp_path / "pipe")  # to open it would never end
  files |= {name: tmp_path / name for name in ("pipe", "gone", "n\0l")}
  assert copies.pictures(files, []) == {n: n for n in files} | {"b": "a"}


def test_a_seed_draws_other_pictures():
  picture = {f"{i}_{n}.png": f"{i}_0.png" for i in range(41) for n in range(3)}
  drawn = {seed: copies.share(picture, 0.2, seed=seed) for seed in ("", "1")}
  assert [len(x) for x in drawn.values()] == [8, 8]
  assert drawn[""] != drawn["1"] == copies.share(picture, 0.2, seed="1")


@pytest.mark.parametrize(("fraction", "taken"), [(0.01, 0), (0.99, 9)])
def test_both_parts_have_an_image(fraction, taken):
  message = f"^{fraction} of 9 images of 9 pictures is {taken}, which leaves"
  with pytest.raises(ValueError, match=message):
    copies.share({str(i): str(i) for i in range(9)}, fraction)
