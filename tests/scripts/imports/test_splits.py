"""Copies of one source, and the validation split that keeps them together."""

import pytest

from scripts.imports import splits


def alone(records):
  """Every image is its own source."""
  return {
    image: image
    for lines in records.values()
    for line in lines
    for image in splits.images(line)
  }


def write(folder, contents):
  files = {}
  for name, data in contents.items():
    files[name] = folder / name
    files[name].parent.mkdir(parents=True, exist_ok=True)
    files[name].write_bytes(data)
  return files


def test_a_share_of_the_images():
  names = [f"x/{i}.png" for i in range(40)]
  lines = [{"image": name, "n": n} for name in names for n in range(2)]
  records = {"train": lines, "test": [{"image": "t"}]}
  parts = splits.cut_off(records, 0.25, alone(records))
  train, val = (
    {line["image"] for line in parts[split]} for split in ("train", "val")
  )
  assert len(val) == 10 and len(train) == 30 and not train & val
  assert len(parts["val"]) == 20 and parts["test"] == [{"image": "t"}]
  assert list(parts) == ["train", "val", "test"]
  # Not the first or the last ones, and the same from another folder.
  moved = {"train": [{"image": x["image"].replace("x/", "y/")} for x in lines]}
  again = splits.cut_off(moved, 0.25, alone(moved))
  assert {line["image"][2:] for line in again["val"]} == {v[2:] for v in val}
  assert val != set(names[:10]) and val != set(names[-10:])


@pytest.mark.parametrize(
  ("counts", "share", "message"),
  [
    ({"train": 9, "val": 1}, 0.2, "has the splits train, val of its own"),
    ({"test": 9}, 0.2, "has the splits test of its own"),
    ({"train": 9}, 0.01, "0.01 of 9 images of 9 sources is 0, which leaves"),
    ({"train": 9}, 0.99, "0.99 of 9 images of 9 sources is 9, which leaves"),
  ],
)
def test_a_share_that_cannot_be(counts, share, message):
  records = {
    name: [{"image": f"{i}.png"} for i in range(count)]
    for name, count in counts.items()
  }
  with pytest.raises(ValueError, match=message):
    splits.cut_off(records, share, alone(records))


def test_copies_are_told_by_name_by_contents_and_by_line(tmp_path):
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
  lines = [{"image": name} for name in list(files)[:6]]
  records = {"train": [*lines, {"image": ["e.png", "f.png"]}]}
  found = splits.sources(records, files)
  assert found == {
    **{name: name for name in files},
    "valid/a_jpg.rf.Zq9.jpg": "train/a_jpg.rf.5d41402abc.jpg",
    "c.png": "train/b.jpg",
    "f.png": "e.png",
  }


def test_copies_of_copies_are_copies(tmp_path):
  contents = {"b": b"same", "a.rf.1.png": b"1", "a.rf.2.png": b"same"}
  records = {"train": [{"image": ["a.rf.1.png", "c"]}]}
  found = splits.sources(records, write(tmp_path, {**contents, "c": b"2"}))
  assert set(found.values()) == {"b"}


def test_long_files_differ_before_their_end(tmp_path):
  contents = {"a": b"1" + bytes(9999), "b": b"2" + bytes(9999)}
  files = write(tmp_path, {**contents, "c": contents["b"]})
  found = splits.sources({}, files)
  assert found == {"a": "a", "b": "b", "c": "b"}


def test_copies_stay_on_one_side():
  names = [f"{i}_jpg.rf.{n}f.jpg" for i in range(14) for n in range(3)]
  records = {"train": [{"image": name} for name in names]}
  source = {name: f"{name.split('_')[0]}_jpg.rf.0f.jpg" for name in names}
  for share, wanted in ((0.05, 3), (0.2, 9), (0.5, 21)):
    parts = splits.cut_off(records, share, source)
    train, val = (
      {source[line["image"]] for line in parts[split]}
      for split in ("train", "val")
    )
    assert not train & val
    assert len(parts["val"]) == wanted


def test_copies_across_splits_of_the_data_set():
  records = {
    "train": [{"image": "a"}, {"image": "b"}, {"image": ["c", "d"]}],
    "test": [{"image": "e"}, {"image": "f"}, {"image": "d"}],
  }
  source = dict(zip("abcdef", "abccea", strict=True))
  assert splits.shared(records, source) == [
    ["train: a", "test: f"],
    ["train: c", "test: d"],
  ]
