"""What an import tells at its end."""

import re

import pytest

from paligemma.data import sequence
from scripts.imports import summary


def line(image, *things, size=(50, 100), **more):
  objects = [{"box": box, "label": label} for label, box in things]
  return {
    "image": image,
    "prefix": "detect cat ; dog",
    "suffix": " ; ".join(f"<loc0001> {label}" for label, _ in things),
    "objects": objects,
    "height": size[0],
    "width": size[1],
    **more,
  }


CROWD = {"box": [0, 0, 50, 100], "label": "dog", "iscrowd": 1}
RECORDS = {
  "train": [
    line("a", ("cat", [0, 0, 10, 20.5]), ("cat", [0, 0, 5, 5])),
    line("b"),
    line("c", ("dog", [0, 0, 7, 7]), size=(7, 9)),
  ],
  "val": [line("d", objects=[CROWD])],
}
LABELS = ("cat", "dog", "unicorn")


def test_boxes_and_labels():
  found = summary.make(
    RECORDS, LABELS, None, {"boxes cut": (3, "x:1")}, ["bad"]
  )
  assert found.left_out == ["bad"]
  assert str(found).splitlines() == [
    "split  images  examples  empty answers  images without objects  objects",
    "train  3       3         33.3%          1                       3",
    "val    1       1         100.0%         0                       0",
    "",
    "label  train  val",
    "cat    2      0",
    "dog    1      0",
    "crowds, neither asked for nor wrong to name: 1",
    "labels without an object (1): unicorn",
    "",
    "box       height  width  share   image",
    "smallest  5       5      0.50%   a",
    "largest   7       7      77.78%  c",
    "",
    "tokens: not counted; pass --tokenizer FILE, the one of the checkpoint, "
    "for the text_len that holds them",
    "",
    "note: boxes cut: 3, the first at x:1",
  ]


def test_many_labels_and_long_ones():
  names = [f"{i:03d}" for i in range(37)]
  things = [
    (name, [0, 0, 5, 5]) for i, name in enumerate(names) for _ in range(i)
  ]
  unused = ["y" * 99] * 1 + [f"n{i}" for i in range(40)]
  records = {"train": [line("a", *things)]}
  lines = str(
    summary.make(records, [*names, *unused], None, {}, [])
  ).splitlines()
  assert lines[4].split() == ["036", "36"]
  assert lines[33].split() == ["007", "7"]
  assert lines[34] == "further labels (6): 1 to 6 objects each"
  assert lines[35].startswith("labels without an object (42): 000, ")
  assert "y" * 40 + "," in lines[35] and "y" * 41 not in lines[35]
  assert lines[35].endswith("n27, ...")


def test_text_len_holds_what_it_says(tokenizer):
  records = {
    "train": [
      {"image": f"{i}", "prefix": "caption en", "suffix": "red " * (i % 7)}
      for i in range(1998)
    ]
    + [
      {"image": "long", "prefix": "caption en", "suffix": "blue " * 50},
      {
        "image": "longer",
        "prefix": "what digit is this",
        "suffix": "red " * 90,
      },
    ]
  }
  found = summary.make(records, (), tokenizer, {}, [])
  lines = records["train"]

  def fit(text_len):
    held = 0
    for x in lines:
      try:
        sequence.training(tokenizer, x["prefix"], x["suffix"], text_len)
      except ValueError:
        continue
      held += 1
    return held

  shown = str(found).splitlines()
  pattern = r"text_len (\d+) holds 99\.9 % of the examples, (\d+) all"
  held, text_len = map(int, re.fullmatch(pattern, shown[-1]).groups())
  assert fit(held) == len(lines) - 2  # 99.9 % of 2,000 are 1,998
  assert fit(held - 1) < len(lines) - 2
  assert fit(text_len) == len(lines)
  assert fit(text_len - 1) == len(lines) - 1
  assert shown[0] == "split  images  examples  empty answers"
  # No block of labels and none of boxes.
  assert shown[3].split() == ["tokens", "p50", "p99", "max"]
  assert len(shown) == 7


@pytest.mark.parametrize("several", [False, True])
def test_images_are_counted_once(several):
  image = ["a", "b"] if several else "a"
  record = {"image": image, "prefix": "answer en x", "suffix": "y"}
  found = summary.make({"test": [record, record]}, ["cat"], None, {}, [])
  lines = str(found).splitlines()
  assert lines[1].split() == ["test", str(1 + several), "2", "0.0%"]
  assert "without an object" not in str(found)
