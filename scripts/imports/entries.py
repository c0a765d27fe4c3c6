"""Annotated images, which every format is read as, and their problems."""

import dataclasses
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

from paligemma import messages

# name of a split elsewhere -> ours, as the library datasets of Hugging Face
# reads them off file names
SPLITS = {
  "train": "train",
  "training": "train",
  "val": "val",
  "valid": "val",
  "validation": "val",
  "dev": "val",
  "test": "test",
  "testing": "test",
  "eval": "test",
  "evaluation": "test",
}
# what the four numbers of a box are -> (y0, x0, y1, x1) of them
BOXES = {
  "xywh": lambda x, y, w, h: (y, x, y + h, x + w),
  "xyxy": lambda x0, y0, x1, y1: (y0, x0, y1, x1),
  "cxcywh": lambda x, y, w, h: (y - h / 2, x - w / 2, y + h / 2, x + w / 2),
  "yxyx": lambda y0, x0, y1, x1: (y0, x0, y1, x1),
}


@dataclasses.dataclass(frozen=True)
class Object:
  """An annotated object of an image."""

  label: str  # what it is
  # (y0, x0, y1, x1) in pixels, or as shares
  box: tuple[float, float, float, float]
  where: str  # the place to name in an error, "instances.json: annotation 17"
  # None, or polygons or a run-length mask of COCO
  mask: Sequence[Sequence[float]] | dict[str, Any] | None = None
  # whether it stands for many, which are neither asked for nor wrong to name
  crowd: bool = False
  area: float | None = None  # in pixels, where it is not that of the box
  # whether the box, and polygons, are given as shares of the sides of the
  # image, 0 to 1, in place of pixels
  shares: bool = False


@dataclasses.dataclass(frozen=True)
class Entry:
  """An image with its annotations; those that it does not have are None."""

  # path of the file; without one, a name for `data`. Several paths where one
  # prompt is about several pictures.
  image: pathlib.Path | tuple[pathlib.Path, ...]
  where: str  # the place to name in an error, "captions.csv:12"
  split: str = "train"  # "train", "val", "test" or another name
  # contents of an image that is no file; of several, a tuple of them
  data: bytes | tuple[bytes, ...] | None = None
  # (height, width) that the annotations state
  size: tuple[int, int] | None = None
  objects: tuple[Object, ...] | None = None
  captions: tuple[str, ...] | None = None  # texts, one at least
  question: str | None = None
  answers: tuple[str, ...] | None = None  # texts, one at least
  # further keys for the JSONL
  fields: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Request:
  """What a format's `read` is asked for."""

  src: pathlib.Path  # the data set, a file or a folder
  # counts what is put right; may skip an image with something bad
  problems: "Problems"
  # folder that image paths are relative to; None as the format has it
  images: pathlib.Path | None = None
  task: str = "detect"  # one of prompts.TASKS
  # key of columns.NAMES -> column or key, where it has another name
  names: dict[str, str] = dataclasses.field(default_factory=dict)
  # key of BOXES that the user gives; None as the format has it
  boxes: str | None = None


@dataclasses.dataclass(frozen=True)
class Annotations:
  """What a format's `read` returns.

  Both `read` and going through the entries raise ValueError where a file is
  malformed, or whatever `problems` does not skip.
  """

  entries: Iterator[Entry]  # the images in order, read when asked for
  # all that objects can have, where the format says it
  labels: tuple[str, ...] | None = None


class Problems:
  """A context that lets a ValueError pass, or counts it and goes on.

  It stands around a whole picture: one object that is bad takes its picture
  out, as a model would learn to miss what a picture shows without annotation.

  Attributes:
    skip: Whether errors are only counted.
    messages: Of what was skipped.
    notes: Of what was put right, {what: (count, place of the first)}.
  """

  def __init__(self, skip: bool = False):
    self.skip = skip
    self.messages = []
    self.notes = {}

  def __enter__(self) -> "Problems":
    return self

  def __exit__(self, kind, error, trace) -> bool:
    if not self.skip or kind is not ValueError:
      return False
    self.messages.append(messages.one_line(str(error)))
    return True

  def note(self, what: str, where: str) -> None:
    """Counts what was put right, such as "boxes cut to their picture"."""
    count, first = self.notes.get(what, (0, messages.one_line(where)))
    self.notes[what] = count + 1, first


def split_name(name: str) -> str:
  """The split's name in our spelling: "validation" is "val"."""
  return SPLITS.get(name.lower(), name)


def split_of(path: pathlib.PurePath) -> str | None:
  """The split that a path relative to the data set names, None without one.

  The name of the file goes before its folder, and that before the ones above;
  words end at anything but letters: "vqa-dev/train_0.parquet" is "train".
  """
  for name in reversed(path.parts):
    for word in re.split(r"[\W\d_]+", name.lower()):
      if word in SPLITS:
        return SPLITS[word]
  return None
