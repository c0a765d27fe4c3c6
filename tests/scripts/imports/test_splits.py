"""Splits of a data set, and the one that keeps copies together."""

import pytest

from scripts.imports import splits


def alone(records):
  """Every image is its own picture."""
  return {
    image: image
    for lines in records.values()
    for line in lines
    for image in splits.images(line)
  }


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
    (
      {"train": 9},
      0.01,
      "^--val: 0.01 of 9 images of 9 pictures is 0, ",
    ),
    (
      {"train": 9},
      0.99,
      "^--val: 0.99 of 9 images of 9 pictures is 9, ",
    ),
  ],
)
def test_a_share_that_cannot_be(counts, share, message):
  records = {
    name: [{"image": f"{i}.png"} for i in range(count)]
    for name, count in counts.items()
  }
  with pytest.raises(ValueError, match=message):
    splits.cut_off(records, share, alone(records))


def test_copies_stay_on_one_side():
  names = [f"{i}_jpg.rf.{n}f.jpg" for i in range(14) for n in range(3)]
  records = {"train": [{"image": name} for name in names]}
  picture = {name: f"{name.split('_')[0]}_jpg.rf.0f.jpg" for name in names}
  for share, wanted in ((0.05, 3), (0.2, 9), (0.5, 21)):
    parts = splits.cut_off(records, share, picture)
    train, val = (
      {picture[line["image"]] for line in parts[split]}
      for split in ("train", "val")
    )
    assert not train & val
    assert len(parts["val"]) == wanted


def test_copies_across_splits_of_the_data_set():
  records = {
    "train": [{"image": "a"}, {"image": "b"}, {"image": ["c", "d"]}],
    "test": [{"image": "e"}, {"image": "f"}, {"image": "d"}],
  }
  picture = dict(zip("abcdef", "abccea", strict=True))
  assert splits.shared(records, picture) == [
    ["train: a", "test: f"],
    ["train: c", "test: d"],
  ]
