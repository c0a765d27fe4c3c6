"""Splits of a data set: images in several of them, and a val cut off train.

Records are {split: objects of its lines}; `picture` is what copies.pictures
gives.
"""

import pathlib
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from paligemma.data import copies

Records = dict[str, list[dict[str, Any]]]  # split -> objects of its lines


def images(line: Mapping[str, Any]) -> list[str]:
  """The names of the images of a line."""
  return line["image"] if isinstance(line["image"], list) else [line["image"]]


def pictures(
  records: Records, files: Mapping[str, pathlib.Path]
) -> dict[str, str]:
  """The picture of each image; those of one line count as one."""
  lines = (line for lines in records.values() for line in lines)
  return copies.pictures(files, map(images, lines))


def shared(records: Records, picture: Mapping[str, str]) -> list[list[str]]:
  """Images of one picture in several splits: [["train: a", "test: b"], ...]."""
  found = defaultdict(dict)
  for split, lines in records.items():
    for line in lines:
      for image in images(line):
        found[picture[image]].setdefault(split, f"{split}: {image}")
  return [list(x.values()) for x in found.values() if len(x) > 1]


def cut_off(
  records: Records, share: float, picture: Mapping[str, str]
) -> Records:
  """Moves a share of the images of "train" to "val", which neither may lack.

  Images of one picture stay together, see copies.share.
  """
  if "val" in records or "train" not in records:
    raise ValueError(
      f"--val: the data set has the splits {', '.join(records)} of its own, "
      'expected "train" without "val"'
    )
  names = {image for line in records["train"] for image in images(line)}
  # In the order of the lines.
  of_train = {name: first for name, first in picture.items() if name in names}
  try:
    chosen = copies.share(of_train, share)
  except ValueError as error:
    raise ValueError(f"--val: {error}") from None
  parts = {"train": [], "val": []}
  for line in records["train"]:
    part = "val" if picture[images(line)[0]] in chosen else "train"
    parts[part].append(line)
  return {**parts, **{k: v for k, v in records.items() if k != "train"}}
