"""What every format comes down to: annotated images, and their problems."""

import dataclasses
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

# name of a split elsewhere -> ours
SPLITS = {"train": "train", "val": "val", "valid": "val", "test": "test"}
SPLITS["validation"] = SPLITS["dev"] = "val"


@dataclasses.dataclass(frozen=True)
class Thing:
  """An annotated object of an image.

  Attributes:
    label: What it is.
    box: (y0, x0, y1, x1) in pixels.
    where: The place to name in an error, "instances.json: annotation 17".
    mask: None, or polygons or a run-length mask of COCO.
    crowd: Whether it stands for many, which are neither asked for nor wrong to
      name.
    area: In pixels, where it is not that of the box.
  """

  label: str
  box: tuple[float, float, float, float]
  where: str
  mask: Sequence[Sequence[float]] | dict[str, Any] | None = None
  crowd: bool = False
  area: float | None = None


@dataclasses.dataclass(frozen=True)
class Entry:
  """An image with its annotations; those that it does not have are None.

  Attributes:
    image: Path of the file; without one, a name for `data`.
    where: The place to name in an error, "captions.csv:12".
    split: "train", "val", "test" or another name.
    data: Contents of an image that is no file.
    size: (height, width) that the annotations state.
    things: Objects in it.
    captions: Texts, one at least.
    question: Text.
    answers: Texts, one at least.
    fields: Further keys for the JSONL.
  """

  image: pathlib.Path
  where: str
  split: str = "train"
  data: bytes | None = None
  size: tuple[int, int] | None = None
  things: tuple[Thing, ...] | None = None
  captions: tuple[str, ...] | None = None
  question: str | None = None
  answers: tuple[str, ...] | None = None
  fields: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Annotations:
  """What a format's `read` returns.

  Attributes:
    entries: The images in order, read when asked for.
    labels: All that objects can have, where the format says it.
  """

  entries: Iterator[Entry]
  labels: tuple[str, ...] | None = None


class Problems:
  """A context around what may be bad: ends in its ValueError, or counts it.

  Attributes:
    skip: Whether errors are only counted.
    messages: Of what was skipped.
  """

  def __init__(self, skip: bool = False):
    self.skip = skip
    self.messages = []

  def __enter__(self):
    return self

  def __exit__(self, kind, error, trace):
    if not self.skip or kind is not ValueError:
      return False
    self.messages.append(str(error))
    return True


def split_name(name: str) -> str:
  """The split's name in our spelling: "validation" is "val"."""
  return SPLITS.get(name.lower(), name)
