"""Which images are copies of one source, and how a part of them is cut off.

Records are {split: objects of its lines}; a source is what `sources` gives.
"""

import hashlib
import pathlib
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

Records = dict[str, list[dict[str, Any]]]  # split -> objects of its lines

# Roboflow writes as many augmented copies of x.jpg: "x_jpg.rf.5d41402a.jpg".
_COPY = re.compile(r"(.+)\.rf\.\w+\.\w+")
_END = 4096  # bytes of a file that are compared first


def images(line: Mapping[str, Any]) -> list[str]:
  """The names of the images of a line."""
  return line["image"] if isinstance(line["image"], list) else [line["image"]]


def sources(
  records: Records, files: Mapping[str, pathlib.Path]
) -> dict[str, str]:
  """{name of an image: the first that must be on the same side of a split}.

  Those are augmented copies of one image, by their names; files of the same
  contents; and all images of one line. `files` are {name: file}.
  """
  found = {name: name for name in files}

  def first(name):
    while found[name] != name:
      found[name] = found[found[name]]
      name = found[name]
    return name

  def join(names):
    one, *others = names
    for other in others:
      found[first(other)] = first(one)

  copies = defaultdict(list)
  for name, file in files.items():
    if match := _COPY.fullmatch(file.name):
      copies[match[1]].append(name)
  for names in (*copies.values(), *_of_equal_contents(files)):
    join(names)
  for lines in records.values():
    for line in lines:
      join(images(line))
  return {name: first(name) for name in files}


def shared(records: Records, source: Mapping[str, str]) -> list[list[str]]:
  """Images of one source in several splits: [["train: a", "test: b"], ...]."""
  found = defaultdict(dict)
  for split, lines in records.items():
    for line in lines:
      for image in images(line):
        found[source[image]].setdefault(split, f"{split}: {image}")
  return [list(x.values()) for x in found.values() if len(x) > 1]


def cut_off(
  records: Records, share: float, source: Mapping[str, str]
) -> Records:
  """Moves a share of the images of "train" to "val", which neither may lack.

  Images of one source stay together. Which ones go depends on file names alone:
  the same are taken again as long as the data set stays the same.
  """
  if "val" in records or "train" not in records:
    raise ValueError(
      f"--val: the data set has the splits {', '.join(records)} of its own, "
      'expected "train" without "val"'
    )
  groups = defaultdict(set)
  for line in records["train"]:
    for image in images(line):
      groups[source[image]].add(image)
  total = sum(map(len, groups.values()))
  count = round(share * total)
  chosen, taken = set(), 0
  for group in sorted(groups, key=_shuffled):
    if len(groups[group]) < 2 * (count - taken):  # it comes nearer to the count
      chosen.add(group)
      taken += len(groups[group])
  if not 0 < taken < total:
    raise ValueError(
      f"--val {share:g} of {total} images of {len(groups)} sources is {taken}, "
      "which leaves a split without any"
    )
  parts = {"train": [], "val": []}
  for line in records["train"]:
    part = "val" if source[images(line)[0]] in chosen else "train"
    parts[part].append(line)
  return {**parts, **{k: v for k, v in records.items() if k != "train"}}


def _shuffled(image):
  name = pathlib.PurePath(image).name
  return hashlib.sha256(name.encode()).digest()


def _of_equal_contents(files: Mapping[str, pathlib.Path]) -> Iterable[list]:
  """Groups of two or more images whose files have equal contents.

  Files of one size are compared by their end before they are read whole.
  """
  groups = [list(files)]
  for key in (_size, _end, _contents):
    finer = []
    for group in groups:
      by_key = defaultdict(list)
      for name in group:
        by_key[key(files[name])].append(name)
      finer += [names for names in by_key.values() if len(names) > 1]
    groups = finer
  return groups


def _size(file):
  return file.stat().st_size


def _end(file):
  with file.open("rb") as opened:
    opened.seek(max(0, _size(file) - _END))
    return opened.read()


def _contents(file):
  return hashlib.sha256(file.read_bytes()).digest()
