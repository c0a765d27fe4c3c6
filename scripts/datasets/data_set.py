"""What is known of a published data set, and how its examples are read."""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from scripts.datasets.raw import Raw

# (place for errors, what `fields` takes)
Records = Iterator[tuple[str, Any]]


def paired(where: str, one: Iterable, other: Iterable) -> Iterator[tuple]:
  """Yields the elements of two together; raises if one has more of them."""
  rest = object()
  for pair in itertools.zip_longest(one, other, fillvalue=rest):
    if rest in pair:
      raise ValueError(f"{where}: differ in length")
    yield pair


def flag(record: Mapping[str, Any], key: str) -> bool:
  """Returns the boolean of a key; raises if it is missing or no boolean."""
  value = record[key]
  if not isinstance(value, bool):
    raise TypeError(f"{key} is {value!r}, expected true or false")
  return value


@dataclasses.dataclass(frozen=True)
class Picture:
  """A picture, or a video, of an example.

  Attributes:
    paths: As the publisher names it, from a folder on: the first that is there
      is taken. Releases differ in their folders.
    edit: Contents of the file -> those to train on. Default: the file itself.
    name: Of the edited file; each edit has another.
  """

  paths: tuple[str, ...]
  edit: Callable[[bytes], bytes] | None = None
  name: str = ""


@dataclasses.dataclass(frozen=True)
class Split:
  """A split of a data set.

  Attributes:
    read: Yields the records of a split, with their places.
    fields: Record -> the fields that the config of a transfer names; None if
      it is of another split. "image" (or "video") is the publisher's path, a
      Picture, the contents of a file, or a list of these.
    count: Published number of examples; None: not published.
    hidden: The answers are not public.
    answer: Type of the field "answer", str or int.
  """

  read: Callable[[Raw], Records]
  fields: Callable[[Any], dict[str, Any] | None]
  count: int | None = None
  hidden: bool = False
  answer: type = str


@dataclasses.dataclass(frozen=True)
class DataSet:
  """A published data set.

  Attributes:
    about: What it is, and what surprises, in sentences.
    homepage: Of the publisher.
    licence: As the publisher states it.
    size: Of what is to be downloaded.
    files: Name of a file or folder -> the address it comes from. Archives may
      stay packed.
    splits: The name of a file that is written, without .jsonl -> the split.
  """

  about: str
  homepage: str
  licence: str
  size: str
  files: Mapping[str, str]
  splits: Mapping[str, Split]
