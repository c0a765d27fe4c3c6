"""The folder that a config reads: a JSONL file for each split, and pictures.

Pictures that are files stay where they are; those in archives, and edited ones,
are written to images/. In place of a JSONL file, and of its pictures, there can
be a folder that scripts.pack makes of them. prepared.json says which splits are
complete, and of which files they were made.
"""

import collections
import concurrent.futures
import concurrent.futures.process
import dataclasses
import functools
import itertools
import json
import multiprocessing
import os
import pathlib
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence

import PIL

from paligemma import disk, messages, registry
from paligemma.data import image_files, pictures, shards, sources, video
from scripts import pack as pack_lib
from scripts.datasets import catalog, lines
from scripts.datasets import raw as raw_lib
from scripts.datasets.data_set import Picture, Split
from scripts.datasets.raw import Raw
from scripts.imports import entries

RECORD = "prepared.json"
MOST = 10  # problems that a report names

_COUNTED = 500  # examples between two looks of the progress bar
# Fields without which an example teaches nothing.
_NEEDED = (
  "answer",
  "answers",
  "captions",
  "caption",
  "direct_answers",
  "label",
)
_MEDIA = {"image": "picture", "video": "video"}

# What a record of another form raises where it is read.
_MALFORMED = (
  *(LookupError, TypeError, AttributeError),
  PIL.UnidentifiedImageError,
)

Show = Callable[[int, int], None]


@dataclasses.dataclass
class Written:
  """A split that was read.

  Attributes:
    examples: Lines that were written; None if the split was left out.
    left_out: How many examples were left out.
    first: Why the first of these, or the split, was.
    opened: As of Raw.
  """

  examples: int | None = None
  left_out: int = 0
  first: str = ""
  opened: dict[str, list[int]] = dataclasses.field(default_factory=dict)


def prepare(
  name: str,
  raw: os.PathLike | str,
  out: os.PathLike | str,
  *,
  splits: Sequence[str] = (),
  skip_bad: bool = False,
  link: bool = False,
  jobs: int = 1,
  show: Show = lambda done, total: None,
) -> dict[str, Written]:
  """Writes the folder of a data set; complete splits are not read again.

  Args:
    name: Of the data set, a key of catalog.DATA_SETS.
    raw: Folder of what was downloaded.
    out: Folder to write.
    splits: To write. Default: all.
    skip_bad: Leave out examples whose picture is missing or whose record is
      malformed (see lines.encode), and splits whose files are missing or
      damaged; otherwise the first of these is an error.
    link: Give pictures that are files a second name in images/, or copy them
      where the file system has no such links.
    jobs: Splits that are read at a time, each in a process of its own.
    show: Called with the examples that were read, and all that were published.

  Returns:
    {split: what was written}, without those that were complete.

  Raises:
    ValueError: What is missing, damaged or malformed, in one line.
  """
  data_set = registry.lookup(catalog.DATA_SETS, name, "data set")
  raw, out = pathlib.Path(raw), pathlib.Path(out)
  for split in splits:
    registry.lookup(data_set.splits, split, f"split of {name}")
  record = _read_record(out, name)
  todo = [
    split
    for split in splits or data_set.splits
    if not _is_complete(record["splits"].get(split), raw, out, split, link)
  ]
  for half in (out / "images").rglob(".*.tmp"):  # of a killed process
    half.unlink()
  total = sum(data_set.splits[split].count or 0 for split in todo)
  arguments = name, raw, out, skip_bad, link
  if min(jobs, len(todo)) > 1:
    results = _in_processes(todo, arguments, jobs, total, show)
  else:
    results = _in_turn(todo, arguments, total, show)
  found = {}
  for split, written in results:
    found[split] = written
    if written.examples is not None:
      record["splits"][split] = dict(
        examples=written.examples,
        left_out=written.left_out,
        linked=link,
        raw=written.opened,
      )
      disk.write(out / RECORD, json.dumps(record, indent=1) + "\n")
  if found and all(written.examples is None for written in found.values()):
    raise ValueError(next(iter(found.values())).first)
  return {split: found[split] for split in todo}


def pack(
  name: str,
  out: os.PathLike | str,
  *,
  splits: Sequence[str] = (),
  skip_bad: bool = False,
) -> dict[str, Written]:
  """Makes a folder of scripts.pack of each split, and removes its pictures.

  Args:
    name, out, splits: As of `prepare`, which has written them.
    skip_bad: Leave out examples whose picture is damaged, as far as its head
      and its end tell; otherwise the first is an error.

  Returns:
    {split: what was packed}, of those of which examples were left out.

  Raises:
    ValueError: It is a data set of videos, or a picture is damaged.
  """
  out, found = pathlib.Path(out), {}
  for split in (
    splits or registry.lookup(catalog.DATA_SETS, name, "data set").splits
  ):
    path = out / f"{split}.jsonl"
    if not path.is_file():
      continue
    with path.open(encoding="utf-8") as file:
      if "video" in json.loads(file.readline()):
        raise ValueError(f"{path}: videos are not packed; leave --pack out")
    if skip_bad and (damaged := _damaged(path, out)):
      found[split] = _without(path, name, damaged)
    packed = path.with_suffix(".packed")
    shutil.rmtree(packed, ignore_errors=True)
    with disk.folder(packed) as temporary:
      pack_lib.pack(path, temporary)
    path.unlink()
    packed.rename(path)
  if all(path.is_dir() for path in out.glob("*.jsonl")):
    shutil.rmtree(out / "images", ignore_errors=True)
  return found


def check(
  name: str,
  out: os.PathLike | str,
  *,
  splits: Sequence[str] = (),
  skip_bad: bool = False,
  decode: bool = True,
  jobs: int = 1,
  show: Show = lambda done, total: None,
) -> tuple[list[tuple[str, ...]], list[str]]:
  """Compares a prepared folder with what was published.

  Args:
    skip_bad: What `prepare` has left out may be missing.
    decode: Decode every picture, as a training does.
    jobs: Processes that decode.

  Other arguments as of `prepare`.

  Returns:
    Rows of a table, and what is wrong, a line each.
  """
  data_set = registry.lookup(catalog.DATA_SETS, name, "data set")
  out = pathlib.Path(out)
  rows = [("split", "examples", "left out", "published", "pictures")]
  record = _read_record(out, name)["splits"]
  wrong, of_splits = [], {}
  for split in splits or data_set.splits:
    facts = data_set.splits[split]
    path = out / f"{split}.jsonl"
    published = "" if facts.count is None else f"{facts.count:,}"
    if not path.exists():
      rows.append((split, "missing", "", published, ""))
      wrong.append(f"{path}: missing, expected {published or 'some'} examples")
      continue
    left_out = record.get(split, {}).get("left_out", 0)
    count, media = _check_lines(_lines(path), facts, wrong)
    shown = f"{left_out:,}" if left_out else ""
    rows.append((split, f"{count:,}", shown, published, f"{len(media):,}"))
    if facts.count not in (None, count, count + left_out * skip_bad):
      reason = "is it another release?"
      if left_out:
        reason = f"--skip_bad left out {left_out:,}"
      wrong.append(
        f"{path}: {count:,} examples, {facts.count:,} were published: "
        f"{abs(count - facts.count):,} "
        f"{'less' if count < facts.count else 'more'}; {reason}"
      )
    of_splits[split] = media
  wrong += _shared(of_splits)
  wrong += _check_pictures(out, of_splits, decode, jobs, show)
  return rows, wrong


def _in_turn(todo, arguments, total, show):
  """Yields (split, Written) of splits that are read one after another."""
  read = 0

  def add(count):
    nonlocal read
    read += count
    show(read, max(total, read))

  for split in todo:
    yield split, _write_split(split, *arguments, add)


def _in_processes(todo, arguments, jobs, total, show):
  """Yields (split, Written) as splits are complete; ends all with an error."""
  # Workers do not inherit the threads of JAX.
  context = multiprocessing.get_context("spawn")
  counter = context.Value("q", 0)
  with concurrent.futures.ProcessPoolExecutor(
    min(jobs, len(todo)), context, _share, (counter,)
  ) as pool:
    running = {
      pool.submit(_write_in_worker, split, *arguments): split for split in todo
    }
    try:
      while running:
        done, _ = concurrent.futures.wait(
          running, 0.5, concurrent.futures.FIRST_COMPLETED
        )
        show(counter.value, max(total, counter.value))
        for future in [x for x in running if x in done]:
          yield running.pop(future), future.result()
    except concurrent.futures.process.BrokenProcessPool:
      raise ValueError(
        "a process that read a split was ended, perhaps for want of memory; "
        "run it again with --jobs 1"
      ) from None
    finally:
      if running:
        # The pool, broken by it, waits for their ends.
        for child in multiprocessing.active_children():
          child.terminate()


def _share(counter):
  global _counter
  _counter = counter
  # A worker whose parent was killed would wait for work for ever.
  threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent():
  multiprocessing.parent_process().join()
  os._exit(1)


_counter = None  # of the examples that all processes have read


def _write_in_worker(*arguments):
  def add(count):
    with _counter.get_lock():
      _counter.value += count

  return _write_split(*arguments, add)


def _write_split(split, name, raw_folder, out, skip_bad, link, add):
  """Writes SPLIT.jsonl and the pictures that it names; returns Written."""
  data_set = catalog.DATA_SETS[name]
  problems = entries.Problems(skip_bad)
  written = Written()
  with problems:
    raw = Raw(raw_folder, data_set.files)
    place = _Pictures(raw, out, link)
    path = out / f"{split}.jsonl"
    with disk.file(path) as temporary:
      with temporary.open("w", encoding="utf-8") as file:
        examples = _examples(data_set.splits[split], raw, place, problems)
        count = _write_lines(file, examples, add)
      failed = raw.extract(place.wanted)
      if failed:
        count -= _leave_out(pathlib.Path(temporary), out, failed, problems)
      if not count:
        reason = problems.messages[:1] or ["its files hold none"]
        raise ValueError(f"{split}: no example was written: {reason[0]}")
      if path.is_dir():  # packed, of other files
        shutil.rmtree(path)
    written.examples, written.opened = count, raw.opened
  written.left_out = len(problems.messages)
  if problems.messages:  # the last one is that of the split
    written.first = problems.messages[0 if written.examples else -1]
  return written


def _write_lines(file, examples, add):
  count = 0
  for count, line in enumerate(examples, 1):
    file.write(f"{line}\n")
    if count % _COUNTED == 0:
      add(_COUNTED)
  add(count % _COUNTED)
  return count


def _examples(split: Split, raw, place, problems) -> Iterator[str]:
  """Yields the lines of a split; raises at its end if pictures are missing."""
  missing, first, total, what = 0, "", 0, ""
  for where, record in _records(split, raw):
    with problems:
      try:
        fields = split.fields(record)
      except (*_MALFORMED, ValueError) as error:
        raise _malformed(where, error) from None
      if fields is None:
        continue
      total += 1
      key, what = next(pair for pair in _MEDIA.items() if pair[0] in fields)
      try:
        named = place(fields[key])
      except LookupError as error:
        missing, first = missing + 1, first or f"{where}: {error.args[0]}"
        if problems.skip:
          raise ValueError(f"{where}: no {what} {error.args[0]}") from None
        continue
      except (TypeError, AttributeError) as error:
        raise _malformed(where, error) from None
      rest = {k: v for k, v in fields.items() if k != key}
      try:
        line = lines.encode({key: named, **rest}, split.answer)
      except ValueError as error:
        raise ValueError(f"{where}: malformed record: {error}") from None
      yield line
  if missing and not problems.skip:
    raise ValueError(
      f"{raw.folder}: {missing:,} of {total:,} examples name {what}s that are "
      f"not there, the first: {first}; --list names where they come from, "
      "--skip_bad leaves these examples out"
    )


def _records(split, raw):
  """Yields as split.read; a file of another form is one line."""
  try:
    yield from split.read(raw)
  except (*_MALFORMED, ValueError) as error:
    names = [str(raw.folder), *raw.opened]
    if isinstance(error, ValueError) and any(
      pathlib.PurePath(name).name in str(error) for name in names
    ):
      raise
    raise _malformed(names[-1], error) from None


def _malformed(where, error):
  """The error of a record, unless it says where it is."""
  if str(error).startswith(where):
    return error
  what = f"a value of another kind ({error})"
  if isinstance(error, KeyError):
    what = f"missing key {error}"
  return ValueError(
    f"{where}: malformed record: {what}; is it of another release?"
  )


class _Pictures:
  """Names the pictures of examples relative to the folder that is written.

  Attributes:
    wanted: Archive -> {path in it: path to write}, see Raw.extract.
  """

  def __init__(self, raw, out, link):
    self.wanted = collections.defaultdict(dict)
    self._raw, self._out, self._links = raw, out, link
    self._root = os.path.relpath(raw.folder, out)

  def __call__(self, picture):
    if isinstance(picture, list):
      return [self(x) for x in picture]
    if isinstance(picture, entries.Contents):
      return self._write(picture.path.as_posix(), lambda: picture.data)
    if isinstance(picture, str):
      picture = Picture((picture,))
    found = next(filter(None, map(self._raw.find, picture.paths)), None)
    if found is None:
      raise LookupError(picture.paths[0])
    if picture.edit is not None:
      edited = functools.partial(self._edited, picture, found)
      return self._write(picture.name, edited)
    if found.archive is None and not self._links:
      return pathlib.PurePath(self._root, found.path).as_posix()
    name = f"images/{found.path}"
    if found.archive is None:
      _link(self._raw.folder / found.path, self._out / name)
      return name
    self.wanted[found.archive][found.path] = self._out / name
    return name

  def _edited(self, picture, found):
    where = str(self._raw.folder / found.path)
    try:
      return picture.edit(self._raw.read(found.path))
    except OSError as error:  # of Pillow
      raise ValueError(f"{where}: no picture: {error}") from None
    except _MALFORMED as error:
      raise _malformed(f"{where}: its texts", error) from None

  def _write(self, name, data):
    path = self._out / "images" / name
    if not path.is_file():
      disk.write(path, data())
    return f"images/{name}"


def _link(source, target):
  """Gives a file a second name, or copies it; one that is there stays."""
  if raw_lib.is_there(target, source.stat().st_size):
    return
  target.parent.mkdir(parents=True, exist_ok=True)
  target.unlink(missing_ok=True)
  try:
    os.link(os.path.realpath(source), target)
  except OSError:  # another disk, or one without links
    raw_lib.write(target, source.read_bytes())


def _leave_out(path, out, failed, problems):
  """Removes lines whose pictures are damaged; returns how many.

  Raises if no line is left, and changes nothing.
  """
  names = {path.relative_to(out).as_posix(): x for path, x in failed.items()}
  left_out, is_empty = 0, True
  with (
    disk.file(path) as kept,
    path.open(encoding="utf-8") as old,
    kept.open("w", encoding="utf-8") as new,
  ):
    for line in old:
      bad = [x for x in _media(line) if x in names]
      if not bad:
        new.write(line)
        is_empty = False
        continue
      left_out += 1
      with problems:
        raise ValueError(names[bad[0]])
    if is_empty:
      raise ValueError(f"{names[bad[0]]}; no picture of the split is sound")
  return left_out


def _damaged(path, out):
  """{picture: error} of those that a split names and that cannot be packed."""
  with path.open(encoding="utf-8") as file:
    names = {name for line in file for name in _media(line)}
  failed = {}
  for name in sorted(names):
    try:
      image_files.size(out / name)
    except ValueError as error:
      failed[out / name] = str(error)
  return failed


def _without(path, name, damaged):
  """Leaves out lines with damaged pictures, also in the record."""
  out, split = path.parent, path.stem
  problems = entries.Problems(skip=True)
  count = _leave_out(path, out, damaged, problems)
  record = _read_record(out, name)
  state = record["splits"].setdefault(split, {"examples": 0, "left_out": 0})
  state["examples"] -= count
  state["left_out"] += count
  disk.write(out / RECORD, json.dumps(record, indent=1) + "\n")
  return Written(state["examples"], count, problems.messages[0])


def _read_record(out, name):
  if not (out / RECORD).exists():
    return {"data_set": name, "splits": {}}
  record = disk.read_json(out / RECORD)
  if record.get("data_set") != name:
    raise ValueError(
      f"{out}: holds {record.get('data_set')}, name another folder for {name}"
    )
  return record


def _is_complete(record, raw, out, split, link):
  """Whether a split was written, of files that have not changed since."""
  path = out / f"{split}.jsonl"
  if record is None or not path.exists():
    return False
  if link and path.is_file() and not record.get("linked"):
    return False
  return not record["left_out"] and all(
    (raw / path).is_file()
    and [(raw / path).stat().st_size, (raw / path).stat().st_mtime_ns] == state
    for path, state in record["raw"].items()
  )


def _lines(path):
  """The JSONL file of a split, also of one that is packed."""
  return path / shards.LINES if path.is_dir() else path


def _check_lines(path, facts, wrong):
  """Returns how many examples a file has, and the names of its pictures."""
  media, count, empty, first = set(), 0, 0, ""
  asked, twice, again = set(), 0, ""
  with path.open(encoding="utf-8") as file:
    for count, line in enumerate(file, 1):
      try:
        example = json.loads(line)
        media.update(_media(line))
      except (ValueError, StopIteration, TypeError):
        wrong.append(f"{path}:{count}: no example, expected what was written")
        continue
      if (question := example.get("question_id")) is not None:
        if str(question) in asked:
          twice, again = twice + 1, again or f"{path}:{count}: {question}"
        asked.add(str(question))
      if not facts.hidden and any(
        key in example and example[key] in ("", []) for key in _NEEDED
      ):
        empty, first = empty + 1, first or f"{path}:{count}"
  if empty:
    wrong.append(f"{first}: this and {empty - 1:,} more have no answer")
  if twice:
    wrong.append(
      f"{again} is the question_id of another example too, and so are "
      f"{twice - 1:,} more"
    )
  return count, media


def _shared(of_splits):
  """Pictures to train on that are evaluated as well."""
  wrong = []
  for one, other in itertools.combinations(of_splits, 2):
    trains = [name.startswith(("train", "restval")) for name in (one, other)]
    if sum(trains) != 1:
      continue
    if both := of_splits[one] & of_splits[other]:
      wrong.append(
        f"{one} and {other} share {len(both):,} pictures, such as {min(both)}"
      )
  return wrong


def _check_pictures(out, of_splits, decode, jobs, show):
  """What is wrong with the pictures of all splits."""
  files, packed = set(), []
  for split, media in of_splits.items():
    path = out / f"{split}.jsonl"
    if path.is_dir():
      packed += [(path, i) for i in range(len(sources.Packed(path)))]
    else:
      files |= media
  missing = sorted(name for name in files if not (out / name).is_file())
  wrong = []
  if missing:
    wrong.append(
      f"{out / missing[0]}: no such file, and {len(missing) - 1:,} more of "
      f"{len(files):,} are missing"
    )
  present = [(out / name, None) for name in sorted({*files} - {*missing})]
  bad = []
  if decode and (todo := present + packed):
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(jobs, context) as pool:
      run = map if jobs == 1 else functools.partial(pool.map, chunksize=64)
      for done, reason in enumerate(run(_undecodable, todo), 1):
        show(done, len(todo))
        if reason:
          bad.append(reason)
  if bad:
    wrong.append(f"{bad[0]}; {len(bad) - 1:,} more cannot be decoded")
  return wrong


def _undecodable(place):
  """Why a training would stop at a file, or at an index of a folder, or None.

  The file is a picture or a video, the folder of scripts.pack.
  """
  path, index = place
  try:
    if index is not None:
      example = _packed(path)[index]
      for data in _listed(example["image"]):
        image_files.decode(data, where=example["_where"])
    elif path.name.lower().endswith(image_files.SUFFIXES):
      image_files.decode(pictures.read(path), where=str(path))
    else:
      with path.open("rb") as file:
        video.Frames(1, 1).sample(file, where=str(path))
  except ValueError as error:
    return messages.one_line(error)
  return None


_packed = functools.lru_cache(sources.Packed)


def _media(line):
  """The names of the pictures, or of the video, of a line."""
  value = json.loads(line)
  return _listed(next(value[key] for key in _MEDIA if key in value))


def _listed(media):
  return media if isinstance(media, list) else [media]
