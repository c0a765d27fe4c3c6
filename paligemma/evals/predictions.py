"""The file of predictions: JSON lines that are appended batch by batch.

    {"prefix": "count dots", "suffix": "3", "where": "val.jsonl:1", "index": 0,
     "prediction": "3", "score": -0.214, "correct": true}

With on_bad="skip", an example that cannot be used has a line with an error
instead of a prediction:

    {"index": 1, "error": "val.jsonl:2: truncated or damaged image"}

Lines are in the order of the source. A killed process leaves some batches and
part of a line; `resume` truncates the file after the last complete batch.
FILE.settings beside it holds what the predictions depend on; predictions with
other settings are never appended. "bundles" in it says by id what the programs
ran with that wrote some of them, which may differ.
"""

import contextlib
import functools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from paligemma import disk, tree
from paligemma.metrics import exact_match

Record = dict[str, Any]

_BUNDLES = "bundles"
_ANSWERS = {"prediction", "error"}
_WRITTEN_AS = {"_where": "where", "_image_path": "image"}
_OURS = ("index", "prediction", "score", "confidences", "correct")
# What answer_objects adds, in place of fields of this name.
_ADDED = ("objects", "malformed")

# NumPy scalars, such as a question id of TFDS, become numbers.
_to_json = functools.partial(
  json.dumps, ensure_ascii=False, default=np.generic.item
)


def record(
  index: int,
  example: Mapping[str, Any],
  answer_key: str,
  *,
  prediction: str,
  score: float,
  confidences: Sequence[float] = (),
) -> Record:
  """Returns the line of one example.

  Args:
    index: of the example in the source.
    example: its fields after the ops. Values that JSON cannot hold are left
      out, _where becomes where and _image_path becomes image.
    answer_key: field of the example with its answer or answers.
    score: log-probability of the prediction, summed over its tokens.
    confidences: of each box in the prediction.

  Returns:
    The fields of the example; index, prediction, score and confidences, if any,
    which replace fields of the same name; and `correct`, whether the prediction
    is an exact match, if there is an answer. Numbers are rounded to six digits,
    the precision of float32.
  """
  line = {k: v for k, v in _fields(example).items() if k not in _OURS}
  line |= {"index": index, "prediction": prediction, "score": round(score, 6)}
  if confidences:
    line["confidences"] = [round(value, 6) for value in confidences]
  answer = example.get(answer_key)
  answers = answer if isinstance(answer, list) else [answer]
  if all(isinstance(answer, str) for answer in answers):
    line["correct"] = bool(exact_match.exact_match(prediction, answers))
  return line


def bad_record(index: int, error: str) -> Record:
  """Returns the line of an example that cannot be used, with the reason."""
  return {"index": index, "error": error}


def is_bad(line: Record) -> bool:
  """Returns whether a record says that its example cannot be used."""
  return "error" in line and "prediction" not in line


def where(line: Record) -> str:
  """Returns the file and line of the example of a record."""
  return str(line.get("where", f"example {line['index']}"))


@contextlib.contextmanager
def appending(path: epath.PathLike) -> Iterator[Callable]:
  """Yields a function that appends records to a file and flushes it."""
  path = epath.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  with path.open("ab") as file:

    def append(records: Sequence[Record]) -> None:
      text = "".join(f"{_to_json(line)}\n" for line in records)
      # Half a surrogate pair, which UTF-8 cannot encode, stays escaped.
      file.write(text.encode(errors="backslashreplace"))
      file.flush()

    yield append


def resume(
  path: epath.PathLike,
  settings: Mapping[str, Any],
  *,
  count: int,
  batch_size: int,
) -> list[Record]:
  """Prepares a file for appending, whether it is new, begun or complete.

  Args:
    settings: what the predictions depend on, as JSON values; and "bundles",
      {id: what this program runs with}, which is not compared, but added to
      those of the file.
    count: number of examples.
    batch_size: records that are appended at a time.

  Returns:
    The records that are kept: all, or those of complete batches.

  Raises:
    ValueError: the file was made with other settings, or a line other than the
      last one is damaged.
  """
  path = disk.path(path)
  settings = json.loads(_to_json(settings))
  if not path.exists() or not path.stat().length:
    describe(path, settings)
    return []
  _add_bundles(path, settings)
  data = path.read_bytes()
  complete = data[: data.rfind(b"\n") + 1]
  records = _parse(path, complete)
  if len(records) > count:
    raise ValueError(
      f"{path}:{count + 1}: one line more than the {count} examples"
    )
  if len(records) < count:
    del records[len(records) // batch_size * batch_size :]
  lines = complete.split(b"\n")[: len(records)]
  kept = b"".join(line + b"\n" for line in lines)
  if kept != data:
    disk.write(path, kept)
  return records


def describe(path: epath.PathLike, settings: Mapping[str, Any]) -> None:
  """Writes FILE.settings beside a file, which need not be there."""
  content = f"{json.dumps(settings, indent=2)}\n"
  disk.write(_settings_of(epath.Path(path)), content)


def read(path: epath.PathLike, count: int | None = None) -> list[Record]:
  """Reads a complete file, whichever program wrote it.

  Each line must have "index", from 0 on, and "prediction" or "error".

  Args:
    count: of the examples. Default: unknown; what is missing at the end is not
      noticed.

  Raises:
    ValueError: a line is malformed, out of order, missing or one too many.
  """
  try:
    data = disk.path(path).read_bytes()
  except OSError as error:
    reason = error.strerror or error
    raise ValueError(f"{path}: cannot read predictions: {reason}") from None
  records = _parse(path, data)
  count = len(records) if count is None else count
  if len(records) < count:
    raise ValueError(
      f"{path}:{len(records) + 1}: the file ends here, expected {count} lines:"
      " one per example; what was interrupted goes on when started again"
    )
  if len(records) > count:
    raise ValueError(
      f"{path}:{count + 1}: one line more than the {count} examples: these are"
      " predictions for other data, or for more of it"
    )
  return records


def check_examples(
  path: epath.PathLike,
  records: Sequence[Record],
  examples: Sequence[Mapping[str, Any] | None],
) -> None:
  """Checks that the records of a file belong to these examples.

  Args:
    path: for the message.
    examples: one per record, after the ops; None for an unusable one.

  Raises:
    ValueError: a line and its example differ in a field that both have, other
      than "where"; or a prediction has no example.
  """
  pairs = zip(records, examples, strict=True)
  for number, (line, example) in enumerate(pairs, start=1):
    if is_bad(line):
      continue
    if example is None:
      raise ValueError(
        f"{path}:{number}: a prediction for an example that cannot be used: "
        "these are predictions for other data"
      )
    for key, value in _fields(example).items():
      if key in {"where", *_OURS, *_ADDED} or key not in line:
        continue
      found, expected = _to_json(line[key]), _to_json(value)
      if found != expected:
        raise ValueError(
          f'{path}:{number}: "{key}" is {found:.60}, but {expected:.60} in'
          f" {example.get('_where', f'example {number - 1}')}: these are"
          " predictions for other data"
        )


def _fields(example):
  """Returns the fields that JSON can hold, with the names of the file."""
  fields = {}
  for key, value in example.items():
    with contextlib.suppress(TypeError, ValueError):
      fields[_WRITTEN_AS.get(key, key)] = json.loads(_to_json(value))
  return fields


def _settings_of(path):
  return path.with_name(f"{path.name}.settings")


def _add_bundles(path, settings):
  """Checks that a file has these settings, and adds their bundles to its."""
  beside = _settings_of(path)
  try:
    found = disk.read_json(beside)
  except ValueError:
    raise ValueError(
      f"{path}: exists, and without a readable {beside.name} cannot be resumed;"
      " delete it, or write elsewhere"
    ) from None
  known, ours = (x.pop(_BUNDLES, {}) for x in (found, settings))
  old, new = (
    {name: json.dumps(value) for name, value in tree.flatten(values).items()}
    for values in (found, settings)
  )
  differences = [
    f"{name} was {old.get(name, 'nothing'):.200}, now"
    f" {new.get(name, 'nothing'):.200}"
    for name in sorted(old.keys() | new.keys())
    if old.get(name) != new.get(name)
  ]
  if differences:
    raise ValueError(
      f"{path}: holds predictions made with other settings"
      f" ({'; '.join(differences)}); restore them, delete the file, or write"
      " elsewhere"
    )
  known = known if isinstance(known, Mapping) else {}
  if ours.keys() - known.keys():
    describe(path, {**found, _BUNDLES: {**ours, **known}})


def _parse(path, data) -> list[Record]:
  """Returns one checked record per line of a file."""
  lines = data.removesuffix(b"\n").split(b"\n") if data else []
  return [
    _record_of(line, i, f"{path}:{i + 1}") for i, line in enumerate(lines)
  ]


def _record_of(line, index, where):
  try:
    found = json.loads(line)
  except (RecursionError, ValueError) as error:  # of JSON, of Unicode
    reason = f"{str(error) or type(error).__name__}, found {line[:40]!r}"
    raise ValueError(f"{where}: not JSON: {reason}") from None
  is_object = isinstance(found, Mapping)
  if not is_object or "index" not in found or not found.keys() & _ANSWERS:
    keys = f"keys {', '.join(found)}" if is_object else repr(found)[:40]
    expected = 'an object with "index" and "prediction" (or "error")'
    raise ValueError(f"{where}: found {keys}, expected {expected}")
  number, answer = found["index"], "error" if is_bad(found) else "prediction"
  confidences = found.get("confidences", [])
  if type(number) is not int or number < 0:
    problem = f"index {number!r:.40}, expected a number from 0 on"
  elif number < index:
    problem = f"index {number} for the second time, expected {index}"
  elif number > index:
    problem = f"index {number}, expected {index}: a line is missing"
  elif not isinstance(found[answer], str):
    problem = f"{answer} {found[answer]!r:.40}, expected a text"
  elif not _are_numbers(confidences):
    problem = f"confidences {confidences!r:.40}, expected a list of numbers"
  else:
    return found
  raise ValueError(f"{where}: {problem}")


def _are_numbers(values):
  return isinstance(values, list) and all(
    type(value) in (int, float) and math.isfinite(value) for value in values
  )
