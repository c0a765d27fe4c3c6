"""Random access to raw examples: a dict of fields with the encoded image.

A source has a length; an example is a dict with "image" (encoded bytes; a list
of these, or of uint8[H, W, 3], for several images or frames), every further
field of the data set, and "_where" (str), with which errors begin. Sources
pickle small, so that data workers can hold them.
"""

import codecs
import functools
import hashlib
import inspect
import itertools
import json
import pathlib
import re
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
from etils import epath

from paligemma import disk, messages, registry
from paligemma.data import copies, files, pictures, shards, tfrecords
from paligemma.data import video as video_lib


class Source(Protocol):
  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> dict[str, Any]: ...


class _Lines:
  """The objects of a JSONL file.

  Only the positions of lines are kept; a line is parsed when it is asked for.
  """

  def __init__(self, path, root=None):
    try:
      positions = [position for *position, _ in _lines(path)]
    except ValueError as error:
      raise ValueError(f"{error}{_preparation(path)}") from None
    if not positions:
      raise ValueError(f"{path}: empty data set, expected a JSON object a line")
    self._positions = np.array(positions, np.int64)
    self._path = epath.Path(path)
    try:
      self._root = disk.path(root or self._path.parent)
    except OSError as error:
      raise ValueError(messages.one_line(error)) from None

  def __len__(self) -> int:
    return len(self._positions)

  def __str__(self) -> str:
    return str(self._path)

  def lines(self) -> Iterator[bytes]:
    """Yields each line of the file that is not blank."""
    for _, _, line in _lines(self._path):
      yield line.removeprefix(codecs.BOM_UTF8).strip()

  def without_images(self) -> Iterator[dict[str, Any] | ValueError]:
    """Yields the example of each line with "image" None, or its error."""
    numbers = set(self._positions[:, 0].tolist())
    for number, _, line in _lines(self._path):
      if number not in numbers:
        continue
      try:
        yield self._read(line, number)
      except ValueError as error:
        yield error

  def _without_image(self, index):
    number, offset = self._positions[index]
    with files.open_binary(self._path, what="data") as file:
      file.seek(offset)
      return self._read(file.readline(), number)

  def _read(self, line, number):
    """Returns the fields of a line, with "_where"."""
    where = f"{self._path}:{number}"
    return {**_parse_line(line, where), "_where": where}

  def _keep_part(self, share, part, seed):
    """Leaves the lines of part "train" or "val" of a file that is split."""
    registry.lookup(dict.fromkeys(("train", "val")), part, "part")
    if share is None:
      if part == "val":
        raise ValueError(f'{self}: part "val" needs val_share, such as 0.1')
      return
    if not 0 < share < 1:
      raise ValueError(
        f"{self}: val_share is {share}, expected a share between 0 and 1"
      )
    try:
      is_val = self._is_val(share, str(seed))
    except ValueError as error:
      raise ValueError(f"{self}: val_share {error}") from None
    self._positions = self._positions[is_val == (part == "val")]


class _WithPath(_Lines):
  """Lines with the path of an image or video under _key."""

  _key: str

  def _read(self, line, number):
    fields, key = super()._read(line, number), self._key
    where, value = fields["_where"], fields.get(key)
    paths = value if key == "image" and isinstance(value, list) else [value]
    if not paths or not all(isinstance(path, str) for path in paths):
      names = [name for name in fields if name != "_where"]
      hint = registry.did_you_mean(key, names)
      keys = f"keys {', '.join(names) or 'none'}.{hint}"
      found = messages.one_line(repr(value) if key in fields else keys)
      raise ValueError(
        f'{where}: expected a path under the key "{key}", found {found}'
      )
    return {**fields, "image": None, f"_{key}_path": value}


class Jsonl(_WithPath):
  """PaliGemma JSONL: one object a line, with the path of an image.

      {"image": "0001.jpg", "prefix": "caption en", "suffix": "a red barn"}

  Only "image" is required, a path or a list of paths. All other keys are kept;
  "_image_path" holds the path. An image is read when its example is asked for.

  Args:
    path: The file, on any file system that etils.epath opens.
    image_root: Of relative image paths. Default: the file's folder.
    val_share: In (0, 1): the share of the images that make up part "val"; all
      others are part "train". Copies of one picture are in one part, see
      copies.pictures. Default: the file is not split.
    part: "train" or "val". Without val_share, "train" is the whole file.
    seed: Of the split, which depends besides on the names of the images alone.

  Raises:
    ValueError: The file is missing or has no line, or cannot be split. On
      access, a malformed line, a missing key or image; names path:line.
  """

  _key = "image"

  def __init__(
    self,
    path: epath.PathLike,
    image_root: epath.PathLike | None = None,
    val_share: float | None = None,
    part: str = "train",
    seed: int = 0,
  ):
    super().__init__(path, image_root)
    self._keep_part(val_share, part, seed)

  def __getitem__(self, index: int) -> dict[str, Any]:
    example = self._without_image(index)
    value = example["_image_path"]
    read = functools.partial(
      pictures.read, root=self._root, where=example["_where"]
    )
    image = list(map(read, value)) if isinstance(value, list) else read(value)
    return {**example, "image": image}

  def frames(self) -> int:
    """Returns Preprocess.frames of the first line: its images, 0 for a path."""
    value = self._without_image(0)["_image_path"]
    return len(value) if isinstance(value, list) else 0

  def copies(self) -> list[list[str]]:
    """Returns the names of images with equal contents, together."""
    found = (x for x in self.without_images() if isinstance(x, dict))
    values = (example["_image_path"] for example in found)
    named = ([x] if isinstance(x, str) else x for x in values)
    return copies.of_equal_contents(self._files_of(named))

  def _is_val(self, share, seed):
    """Whether each line is of part "val"; one that cannot be read is not."""
    lines = []  # the images of each
    for example in self.without_images():
      value = () if isinstance(example, ValueError) else example["_image_path"]
      lines.append([value] if isinstance(value, str) else value)
    named = [names for names in lines if names]
    files_of = self._files_of(named)
    picture = self._pictures(files_of, named)
    chosen = copies.share(picture, share, seed=seed)
    return np.array(
      [bool(names) and picture[names[0]] in chosen for names in lines]
    )

  def _files_of(self, named):
    names = itertools.chain.from_iterable(named)
    return {name: files.resolve(name, self._root) for name in names}

  def _pictures(self, files_of, named):
    return copies.pictures(files_of, named)


class Packed(Jsonl):
  """What scripts.pack has made of a PaliGemma JSONL: the same examples.

  A line and its images are read at once, from ArrayRecord files.

  Args:
    path: The folder.
    val_share, part, seed: As of Jsonl; the parts are those of the JSONL.

  Raises:
    ValueError: As Jsonl and shards.Shards.
  """

  def __init__(
    self,
    path: epath.PathLike,
    val_share: float | None = None,
    part: str = "train",
    seed: int = 0,
  ):
    self._shards = shards.Shards(path)
    lines = epath.Path(path) / shards.LINES
    super().__init__(lines, lines, val_share, part, seed)

  def __getitem__(self, index: int) -> dict[str, Any]:
    number = int(self._positions[index][0])
    line, images = self._shards[number - 1]
    example = self._read(line, number)
    is_list = isinstance(example["_image_path"], list)
    return {**example, "image": images if is_list else images[0]}

  def _pictures(self, files_of, named):
    return copies.pictures(files_of, [*self._shards.copies, *named])


class TextJsonl(_Lines):
  """JSONL of texts without images: one object a line, for a decoder alone.

      {"text": "All of this is learned."}
      {"prefix": "3 + 4 = ", "suffix": "7"}
      {"messages": [{"role": "user", "content": "Hi"}, ...]}

  All keys are kept.

  Args:
    path, val_share, part, seed: As of Jsonl; equal lines are in one part.

  Raises:
    ValueError: As Jsonl; on access, a line has an image.
  """

  def __init__(
    self,
    path: epath.PathLike,
    val_share: float | None = None,
    part: str = "train",
    seed: int = 0,
  ):
    super().__init__(path)
    self._keep_part(val_share, part, seed)

  def __getitem__(self, index: int) -> dict[str, Any]:
    return self._without_image(index)

  def _read(self, line, number):
    fields = super()._read(line, number)
    if "image" in fields:
      raise ValueError(
        f'{fields["_where"]}: has an "image", kind "text_jsonl" is of texts '
        'alone; use kind "jsonl" and a model with an image tower'
      )
    return fields

  def _is_val(self, share, seed):
    lines = [line.strip() for _, _, line in _lines(self._path)]
    names = [hashlib.sha256(line).hexdigest() for line in lines]
    chosen = copies.share(
      {str(i): name for i, name in enumerate(names)},
      share,
      seed=seed,
      what="texts of {} different ones",
    )
    return np.array([name in chosen for name in names])


class VideoJsonl(_WithPath):
  """PaliGemma JSONL of videos: one object a line, with the path of a video.

      {"video": "0001.mp4", "prefix": "caption en", "suffix": "a barn burns"}

  All keys are kept; "image" becomes the list of the video's frames, uint8[H, W,
  3], and "_video_path" the path.

  Args:
    path, video_root: As of Jsonl.
    num_frames, stride, short: As of video.Frames. num_frames None leaves the
      contents of the file as "image", for video.Frames among the ops, which can
      start at a random frame.
  """

  _key = "video"

  def __init__(
    self,
    path: epath.PathLike,
    video_root: epath.PathLike | None = None,
    num_frames: int | None = 16,
    stride: int = 9,
    short: str = "tile",
  ):
    super().__init__(path, video_root)
    self._frames = None
    if num_frames is not None:
      self._frames = video_lib.Frames(num_frames, stride, short)

  def __getitem__(self, index: int) -> dict[str, Any]:
    example = self._without_image(index)
    where = example["_where"]
    path = files.resolve(example["_video_path"], self._root)
    if self._frames is None:
      return {**example, "image": files.read(path, what="video", where=where)}
    with files.open_binary(path, what="video", where=where) as file:
      frames = self._frames.sample(file, where=f"{where}: {path}")
    return {**example, "image": frames}


class Tfds:
  """A TFDS data set in ArrayRecord or TFRecord files, without TensorFlow.

  Text fields become str; the image stays encoded. A sequence of images becomes
  a list. A field with the contents of a video file is decoded by video.Frames
  among the ops; the feature Video of TFDS needs TensorFlow.

  Args:
    name: Builder name, "coco_captions" or "ref_coco/refcoco_unc:1.1.0".
    split: Split name, TFDS slices included ("train[:90%]").
    data_dir: Folder of prepared data sets. Default: that of TFDS.
    image_key: Field of the image, which becomes "image".
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
    # The object of TFDS refers to the builder's class, which a worker may not
    # have; prepared files can be opened without it.
    return Tfds, self._arguments


class Slice:
  """A contiguous part of a source.

  Args:
    source: The whole source.
    bounds: "[start:stop]" as in Python, each bound a number of examples or a
      percentage (rounded to the nearest example, so "[:90%]" and "[90%:]" are
      disjoint and complete): "[:100]", "[-5%:]", "[10%:50%]".
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
  """Keeps every example that was read, with its encoded image, in memory.

  Each data worker fills a cache of its own; a pickle contains no cache.
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


def open_jsonl(
  path: epath.PathLike,
  image_root: epath.PathLike | None = None,
  val_share: float | None = None,
  part: str = "train",
  seed: int = 0,
) -> Jsonl:
  """Opens a PaliGemma JSONL, or a folder that scripts.pack has made of one.

  Arguments and errors as of Jsonl and Packed.
  """
  if not shards.is_packed(path):
    return Jsonl(path, image_root, val_share, part, seed)
  if image_root is not None:
    raise ValueError(f"{path}: holds its images, leave image_root out")
  return Packed(path, val_share, part, seed)


SOURCES = {
  "jsonl": open_jsonl,
  "text_jsonl": TextJsonl,
  "video_jsonl": VideoJsonl,
  "tfds": Tfds,
}


def make(
  kind: str,
  /,
  *,
  slice: str | None = None,
  cache: bool = False,
  **arguments: Any,
) -> Source:
  """Makes a source from the values of a config.

  Args:
    kind: Key of SOURCES.
    slice: Bounds for Slice. Default None: the whole source.
    cache: Whether to keep encoded examples in memory, see Cached.
    **arguments: Of the source's constructor.
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
  """Returns an iterator over all examples, with "image" None, or their errors.

  None if the source cannot read texts without the images, as Tfds.
  """
  read = getattr(source, "without_images", None)
  return read and read()


def _lines(path):
  """Yields the number, the byte offset and the bytes of each non-blank line."""
  offset = 0
  with files.open_binary(path, what="data") as file:
    for number, line in enumerate(file, start=1):
      if line.strip():
        yield number, offset, line
      offset += len(line)


def _preparation(path):
  """What writes a missing file of a published data set, for its error."""
  start, *names = pathlib.PurePath(path).parts or ("",)
  if start != "data" or len(names) != 2 or pathlib.Path(path).exists():
    return ""
  return (
    f"; if {names[0]} is a published data set, python -m scripts.prepare "
    f"{names[0]} --list says what to download for it"
  )


def _parse_line(line, where):
  try:
    text = line.decode().removeprefix("\ufeff").rstrip("\r\n")
    fields = json.loads(text)
  except UnicodeError as error:
    raise ValueError(f"{where}: not UTF-8: {error}") from None
  except RecursionError:
    raise ValueError(f"{where}: JSON with too many brackets") from None
  except json.JSONDecodeError as error:
    rest = text[error.pos : error.pos + 20]
    raise ValueError(
      f"{where}: malformed JSON at column {error.colno}: {error.msg}, found "
      f"{repr(rest) if rest else 'the end of the line'}"
    ) from None
  except ValueError as error:  # a number of thousands of digits
    raise ValueError(f"{where}: malformed JSON: {error}") from None
  if "\\u" in text:
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


def _open_tfds(name, split, data_dir, image_key):
  other = "scripts.prepare --list names data sets that need no TFDS"
  try:
    import tensorflow_datasets as tfds  # a slow import, only if it is used
  except ImportError:
    raise ValueError(
      f'tfds {name}: needs a package: pip install "paligemma[tfds]"; {other}'
    ) from None
  try:
    builder = tfds.builder(name, data_dir=data_dir)
  except ValueError as error:
    reason = str(error).strip().splitlines()[0]
    raise ValueError(f"tfds {name}: {reason} {other}") from None
  except ImportError:
    raise ValueError(
      f"tfds {name}: not prepared under {data_dir or 'the folder of TFDS'}, "
      f"and to prepare it TFDS needs TensorFlow; {other}"
    ) from None
  registry.lookup(builder.info.features, image_key, f"image_key of tfds {name}")

  class Encoded(tfds.decode.SkipDecoding):
    def decode_batch_example_np(self, serialized_example):
      return list(serialized_example)

  decoders = {image_key: Encoded()}
  try:
    formats = builder.info.available_file_formats()
    if formats == {tfds.core.FileFormat.TFRECORD}:
      return _TfRecords(builder.info, split, decoders)
    return builder.as_data_source(split=split, decoders=decoders)
  except (LookupError, OSError, AssertionError, NotImplementedError):
    raise ValueError(
      f"tfds {name}: not prepared in ArrayRecord or TFRecord format under "
      f"{builder.data_path}; run: tfds build {name} --file_format=array_record"
    ) from None
  except ValueError as error:
    reason = str(error).strip().splitlines()[0]
    raise ValueError(f"tfds {name}/{split}: {reason}") from None


class _TfRecords:
  """The examples of a split in TFRecord files, as TFDS decodes them."""

  def __init__(self, info, split, decoders):
    found = info.splits[split].file_instructions
    self._records = tfrecords.Records(
      [(part.filename, part.skip, part.take) for part in found]
    )
    self._decode = functools.partial(
      info.features.deserialize_example_np, decoders=decoders
    )

  def __len__(self):
    return len(self._records)

  def __getitem__(self, index):
    return self._decode(self._records[index])


def _to_text(value):
  if isinstance(value, list):
    return list(map(_to_text, value))
  if isinstance(value, dict):
    return {key: _to_text(element) for key, element in value.items()}
  return value.decode() if isinstance(value, bytes) else value


def _bound(text, length):
  if text is None or not text.endswith("%"):
    return text and int(text)
  return round(length * int(text[:-1]) / 100)
