"""What every format is read into: images with their annotations."""

import dataclasses
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from paligemma import messages

# split -> its names elsewhere, as the library datasets of Hugging Face reads
# them off file names
_NAMES = {
  "train": ("train", "training"),
  "val": ("val", "valid", "validation", "dev"),
  "test": ("test", "testing", "eval", "evaluation"),
}
SPLITS = {name: split for split, names in _NAMES.items() for name in names}
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

  label: str
  # (y0, x0, y1, x1); None is that around the mask
  box: Sequence[float] | None
  where: str  # begins its errors: "instances.json: annotation 17"
  # None, or polygons or a run-length mask of COCO
  mask: Sequence[Sequence[float]] | dict[str, Any] | None = None
  # whether it stands for many, which are neither asked for nor wrong to name
  crowd: bool = False
  area: float | None = None  # in pixels, where it is not that of the box
  # whether the box, and polygons, are given as shares of the sides of the
  # image, 0 to 1, in place of pixels; None before boxes.resolve decides it, and
  # what the four numbers of the box are
  shares: bool | None = False


class Contents(NamedTuple):
  """An image that is no file, with a name for the file it is to become."""

  path: pathlib.Path
  data: bytes


@dataclasses.dataclass(frozen=True)
class Entry:
  """An image with its annotations; those that it does not have are None."""

  # several where one prompt is about several
  images: tuple[pathlib.Path | Contents, ...]
  where: str  # begins its errors: "captions.csv:12"
  split: str = "train"  # "train", "val", "test" or another name
  # (height, width) that the annotations state
  size: tuple[int, int] | None = None
  objects: tuple[Object, ...] | None = None
  captions: tuple[str, ...] | None = None  # texts, one at least
  question: str | None = None
  answers: tuple[str, ...] | None = None  # texts, one at least
  # further keys for the JSONL
  fields: dict[str, Any] = dataclasses.field(default_factory=dict)


Entries = Iterator[Entry]  # what a format's `read` yields, in order


@dataclasses.dataclass
class Request:
  """The data set that a format's `read` gets.

  `read` raises ValueError where a file is malformed, or whatever `problems`
  does not skip.
  """

  src: pathlib.Path  # a file or a folder
  problems: "Problems"
  # folder that image paths are relative to; None as the format has it
  images: pathlib.Path | None = None
  task: str = "detect"  # one of prompts.TASKS
  # key of columns.NAMES -> column or key, where it has another name
  names: dict[str, str] = dataclasses.field(default_factory=dict)
  # key of BOXES that the user gives; None as the format has it
  boxes: str | None = None
  # those that undecided boxes can have, the most likely first; set by `read`
  forms: Sequence[str] = tuple(BOXES)
  # all labels that objects can have; set by `read` where the format says it
  labels: Sequence[str] | None = None


class Problems:
  """A context that passes a ValueError on, or with `skip` only collects it.

  It is entered once per image: one bad object leaves out its image, as a model
  would learn to miss what an image shows without annotation.

  Attributes:
    messages: Of what was skipped.
    notes: Of what was corrected, {what: (count, where it was first)}.
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
    """Counts what was corrected, such as "boxes cut to their picture"."""
    count, first = self.notes.get(what, (0, messages.one_line(where)))
    self.notes[what] = count + 1, first


def split_of(
  path: pathlib.PurePath | str, default: str | None = "train"
) -> str | None:
  """The split that a path relative to the data set names.

  The name of the file goes before its folder, and that before the ones above;
  words end at anything but letters: "vqa-dev/train_0.parquet" is "train".
  """
  for name in reversed(pathlib.PurePath(path).parts):
    for word in re.split(r"[\W\d_]+", name.lower()):
      if word in SPLITS:
        return SPLITS[word]
  return default
