"""Random access to raw examples: a dict of fields with the encoded image.

A source has a length and gives by index a dict with "image" (bytes, encoded; of
several images or frames a list of them, or of uint8[H, W, 3]), every further
field of the data set, and "_where" (str), the place to name in an error.
Sources are small to pickle, so that data workers can hold them.
"""

import inspect
import itertools
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy as np
from etils import epath

from paligemma import messages, registry
from paligemma.data import files, pictures
from paligemma.data import video as video_lib

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


class Source(Protocol):
  """What the rest of the package expects of a data set."""

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> dict[str, Any]: ...


class Jsonl:
  """PaliGemma JSONL: one object a line, with the path of an image.

      {"image": "0001.jpg", "prefix": "caption en", "suffix": "a red barn"}

  Only "image" must be there, or in its place a list of the paths of several;
  all keys are kept, what stood there as "_image_path". The file is scanned once
  for the positions of its lines; a line is parsed, and its image read, when it
  is asked for.

  Args:
    path: The file, on any file system that etils.epath opens.
    image_root: What image paths are relative to. Default: the file's folder.

  Raises:
    ValueError: At construction, no such file or no line in it. On access, a
      malformed line, a missing key or image, named as path:line.
  """

  def __init__(
    self, path: epath.PathLike, image_root: epath.PathLike | None = None
  ):
    self._lines = _Lines(path)
    self._root = self._lines.root(image_root)

  def __len__(self) -> int:
    return len(self._lines)

  def __getitem__(self, index: int) -> dict[str, Any]:
    example = self._described(*self._lines[index])
    value, where = example["_image_path"], example["_where"]
    names = value if isinstance(value, list) else [value]
    images = [
      pictures.read(name, root=self._root, where=where) for name in names
    ]
    image = images if isinstance(value, list) else images[0]
    return {**example, "image": image}

  def without_images(self) -> Iterator[dict[str, Any] | ValueError]:
    """Yields what __getitem__ gives of each line, with "image" left as None."""
    return self._lines.read_all(self._described)

  def _described(self, fields, where):
    value = fields.get("image")
    names = value if isinstance(value, list) and value else [value]
    if not all(isinstance(name, str) for name in names):
      raise ValueError(
        f'{where}: expected a path under the key "image", found '
        f"{_found(fields, 'image')}"
      )
    return {**fields, "image": None, "_image_path": value, "_where": where}

  def __str__(self) -> str:
    return str(self._lines)

  def frames(self) -> int:
    """Returns how many images the first line lists; 0 if it names one alone.

    It is what Preprocess(frames=...) expects of every line.
    """
    fields, _ = self._lines[0]
    value = fields.get("image")
    return len(value) if isinstance(value, list) else 0


class VideoJsonl:
  """PaliGemma JSONL of videos: one object a line, with the path of a video.

      {"video": "0001.mp4", "prefix": "caption en", "suffix": "a barn burns"}

  All keys are kept; "image" becomes the list of the video's frames, uint8[H, W,
  3], and "_video_path" the path.

  Args:
    path: As of Jsonl.
    video_root: What video paths are relative to. Default: the file's folder.
    num_frames: Frames of each video, as of video.Frames. None leaves "image"
      the contents of the file, for video.Frames among the ops, where frames can
      begin anywhere.
    stride: As of video.Frames.
    short: As of video.Frames.

  Raises:
    ValueError: As Jsonl; on access, whatever video.decode raises.
  """

  def __init__(
    self,
    path: epath.PathLike,
    video_root: epath.PathLike | None = None,
    num_frames: int | None = 16,
    stride: int = 9,
    short: str = "tile",
  ):
    self._lines = _Lines(path)
    self._root = self._lines.root(video_root)
    self._frames = None
    if num_frames is not None:
      self._frames = video_lib.Frames(num_frames, stride, short)

  def __len__(self) -> int:
    return len(self._lines)

  def __getitem__(self, index: int) -> dict[str, Any]:
    example = self._described(*self._lines[index])
    name, where = example["_video_path"], example["_where"]
    path = files.resolve(name, self._root, what="video", where=where)
    if self._frames is None:
      image = files.read(path, what="video", where=where)
    else:
      with files.open_binary(path, what="video", where=where) as file:
        image = self._frames.sample(file, where=f"{where}: {path}")
    return {**example, "image": image}

  def without_images(self) -> Iterator[dict[str, Any] | ValueError]:
    """Yields what __getitem__ gives of each line, with "image" left as None."""
    return self._lines.read_all(self._described)

  def _described(self, fields, where):
    name = fields.get("video")
    if not isinstance(name, str):
      raise ValueError(
        f'{where}: expected a path under the key "video", found '
        f"{_found(fields, 'video')}"
      )
    return {**fields, "image": None, "_video_path": name, "_where": where}

  def __str__(self) -> str:
    return str(self._lines)


class Tfds:
  """A TFDS data set in ArrayRecord files, read without TensorFlow.

  Text fields come as str; the image stays encoded, and is decoded by us. A
  sequence of images is a list of them; what holds the contents of a video file
  is decoded by video.Frames among the ops. (The feature Video of TFDS cannot be
  read without TensorFlow.)

  Args:
    name: Builder name, "coco_captions" or "ref_coco/refcoco_unc:1.1.0".
    split: Split name, TFDS slices included ("train[:90%]").
    data_dir: Where prepared data sets lie. Default: that of TFDS.
    image_key: The field that holds the image; it is renamed to "image".

  Raises:
    ValueError: The data set is not prepared, or has no such split or field.
  """

  def __init__(
    self,
    name: str,
    split: str,
    data_dir: epath.PathLike | None = None,
    image_key: str = "image",
  ):
    self._arguments = (name, split, data_dir, image_key)
    self._name = f"{name}/{split}"
    self._image_key = image_key
    self._data = _open_tfds(name, split, data_dir, image_key)
    if not len(self._data):
      raise ValueError(f"{self}: the split has no examples")

  def __len__(self) -> int:
    return len(self._data)

  def __getitem__(self, index: int) -> dict[str, Any]:
    where = f"{self._name}[{index}]"
    fields = dict(self._data[int(index)])
    image = fields.pop(self._image_key)
    try:
      fields = {key: _to_text(value) for key, value in fields.items()}
    except UnicodeDecodeError as error:
      raise ValueError(f"{where}: text is not UTF-8: {error}") from None
    return {**fields, "image": image, "_where": where}

  def __str__(self) -> str:
    return f"tfds {self._name}"

  def __reduce__(self):
    # What TFDS holds carries the builder's class, which a worker may not have;
    # prepared files can be opened without it.
    return Tfds, self._arguments


class Slice:
  """A contiguous part of a source.

  Args:
    source: What to cut.
    bounds: "[start:stop]" as in Python, each bound a count of examples or a
      percentage (rounded to the nearest example, so "[:90%]" and "[90%:]" are
      disjoint and leave nothing out): "[:100]", "[-5%:]", "[10%:50%]".

  Raises:
    ValueError: Malformed bounds, or nothing between them.
  """

  def __init__(self, source: Source, bounds: str):
    match = re.fullmatch(r"\[(-?\d+%?)?:(-?\d+%?)?\]", bounds)
    if not match:
      raise ValueError(
        f'malformed slice "{bounds}" of {source}, expected "[start:stop]" with '
        'counts or percentages, such as "[:90%]"'
      )
    start, stop = (_bound(text, len(source)) for text in match.groups())
    self._range = range(len(source))[start:stop]
    if not self._range:
      raise ValueError(
        f'slice "{bounds}" of the {len(source)} examples of {source} is empty'
      )
    self._source = source
    self._bounds = bounds

  def __len__(self) -> int:
    return len(self._range)

  def __getitem__(self, index: int) -> dict[str, Any]:
    return self._source[self._range[index]]

  def without_images(self) -> Iterator[dict[str, Any] | ValueError] | None:
    found = without_images(self._source)
    bounds = self._range.start, self._range.stop
    return found and itertools.islice(found, *bounds)

  def __str__(self) -> str:
    return f"{self._source}{self._bounds}"


class Cached:
  """Keeps every example it has read, with its encoded image, in memory.

  Each data worker fills a cache of its own; a pickle carries none of it.

  Args:
    source: What to read from.
  """

  def __init__(self, source: Source):
    self._source = source
    self._examples = {}

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, index: int) -> dict[str, Any]:
    if index not in self._examples:
      self._examples[index] = self._source[index]
    return dict(self._examples[index])

  def without_images(self) -> Iterator[dict[str, Any] | ValueError] | None:
    return without_images(self._source)

  def __str__(self) -> str:
    return str(self._source)

  def __getstate__(self):
    return {"_source": self._source, "_examples": {}}


SOURCES = {"jsonl": Jsonl, "video_jsonl": VideoJsonl, "tfds": Tfds}


def make(
  kind: str, /, *, slice: str | None = None, cache: bool = False, **arguments
) -> Source:
  """Makes a source from the values of a config.

  Args:
    kind: Key of SOURCES.
    slice: Bounds for Slice; default None, the whole.
    cache: Keep encoded examples in memory. Default False.
    **arguments: Of the source's constructor.

  Raises:
    ValueError: Unknown kind or argument; whatever the constructor raises.
  """
  constructor = registry.lookup(SOURCES, kind, "source")
  known = inspect.signature(constructor).parameters
  for argument in arguments:
    registry.lookup(known, argument, f"{kind} argument")
  source = constructor(**arguments)
  if slice is not None:
    source = Slice(source, slice)
  return Cached(source) if cache else source


def without_images(
  source: Source,
) -> Iterator[dict[str, Any] | ValueError] | None:
  """Reads all examples of a source in order, but no picture.

  Returns:
    What the source gives by index, its "image" None, or in its place the error
    of a line that cannot be read; None of a source whose texts cannot be read
    without the pictures, such as Tfds.
  """
  read = getattr(source, "without_images", None)
  return read and read()


class _Lines:
  """The objects of a JSONL file and their places, by index."""

  def __init__(self, path):
    self._path = files.resolve(path, what="data")
    self._positions = _line_positions(self._path)

  def root(self, folder):
    """The folder that names in the lines are relative to."""
    return self._path.parent if not folder else files.resolve(folder)

  def __len__(self):
    return len(self._positions)

  def __getitem__(self, index):
    number, offset = self._positions[index]
    where = f"{self._path}:{number}"
    with files.open_binary(self._path, what="data") as file:
      file.seek(offset)
      line = file.readline()
    return _parse_line(line, where), where

  def read_all(self, describe):
    """Yields describe(fields, where) of each line, or its ValueError."""
    with files.open_binary(self._path, what="data") as file:
      for number, line in enumerate(file, start=1):
        if line.strip():
          where = f"{self._path}:{number}"
          try:
            yield describe(_parse_line(line, where), where)
          except ValueError as error:
            yield error

  def __str__(self):
    return str(self._path)


def _line_positions(path):
  """Returns int64[N, 2]: line number and byte offset of the non-blank lines."""
  positions, offset = [], 0
  with files.open_binary(path, what="data") as file:
    for number, line in enumerate(file, start=1):
      if line.strip():
        positions.append((number, offset))
      offset += len(line)
  if not positions:
    raise ValueError(f"{path}: empty data set, expected a JSON object a line")
  return np.array(positions, np.int64)


def _parse_line(line, where):
  try:
    text = line.decode().removeprefix("\ufeff").rstrip("\r\n")
    fields = json.loads(text)
  except UnicodeError as error:
    raise ValueError(f"{where}: not UTF-8: {error}") from None
  except RecursionError:
    raise ValueError(f"{where}: JSON with too many brackets") from None
  except json.JSONDecodeError as error:
    found = repr(text[error.pos : error.pos + 20]) if text[error.pos :] else ""
    raise ValueError(
      f"{where}: malformed JSON at column {error.colno}: {error.msg}, found "
      f"{found or 'the end of the line'}"
    ) from None
  except ValueError as error:  # a number of thousands of digits
    raise ValueError(f"{where}: malformed JSON: {error}") from None
  if "\\u" in text and _SURROGATE.search(text):
    try:
      json.dumps(fields, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
      raise ValueError(
        f"{where}: a text holds {error.object[error.start]!a}, half a "
        "surrogate pair, which is no character; was it cut within an emoji?"
      ) from None
  if not isinstance(fields, dict):
    raise ValueError(
      f'{where}: expected an object such as {{"image": ..., "prefix": ...}}, '
      f"found {type(fields).__name__}"
    )
  return fields


def _found(fields: Mapping[str, Any], key: str) -> str:
  if key in fields:
    return messages.one_line(f"{fields[key]!r}")
  found = (
    f"keys {', '.join(fields) or 'none'}.{registry.did_you_mean(key, fields)}"
  )
  return messages.one_line(found)


def _open_tfds(name, split, data_dir, image_key):
  import tensorflow_datasets as tfds  # only who uses it pays for its import

  try:
    builder = tfds.builder(name, data_dir=data_dir)
  except ValueError as error:
    reason = str(error).strip().splitlines()[0]
    raise ValueError(f"tfds {name}: {reason}") from None
  registry.lookup(builder.info.features, image_key, f"image_key of tfds {name}")

  class Encoded(tfds.decode.SkipDecoding):
    def decode_batch_example_np(self, serialized_example):
      return list(serialized_example)

  decoders = {image_key: Encoded()}
  try:
    return builder.as_data_source(split=split, decoders=decoders)
  except (AssertionError, FileNotFoundError, NotImplementedError):
    raise ValueError(
      f"tfds {name}: not prepared in ArrayRecord format under "
      f"{builder.data_path}; run: tfds build {name} --file_format=array_record"
    ) from None
  except ValueError as error:
    reason = str(error).strip().splitlines()[0]
    raise ValueError(f"tfds {name}/{split}: {reason}") from None


def _to_text(value):
  if isinstance(value, bytes):
    return value.decode()
  if isinstance(value, list):
    return [_to_text(element) for element in value]
  if isinstance(value, dict):
    return {key: _to_text(element) for key, element in value.items()}
  return value


def _bound(text, length):
  if text is None or not text.endswith("%"):
    return text and int(text)
  return round(length * int(text[:-1]) / 100)
