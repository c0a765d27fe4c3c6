"""Files of publishers that are damaged: one line says what, or it is counted.

Each case damages one file of a data set in one way, drawn by a seed, and
prepares one split that reads it, strictly and with skip_bad.
"""

import json
import random

import pytest

from scripts.datasets import catalog, folder
from tests.scripts.datasets import publishers
from tests.scripts.datasets.publishers import made as making

MEDIA = (".jpg", ".jpeg", ".JPEG", ".JPG", ".png", ".gif", ".tif")
VIDEOS = (".mp4", ".avi", ".mkv", ".webm")
CASES = 3  # of each data set


def truncated(data, rng):
  return data[: rng.randrange(len(data))]


def empty(data, rng):
  return b""


def of_another_kind(data, rng):
  return making.tarred({"a.txt": b"x"}) if data[:2] == b"PK" else b"PK\3\4 no"


def with_a_flipped_byte(data, rng):
  at = rng.randrange(len(data))
  return data[:at] + bytes([data[at] ^ 255]) + data[at + 1 :]


def without_a_key(value, key, rng):
  if isinstance(value, dict):
    del value[key]


def of_a_wrong_type(value, key, rng):
  value[key] = 5 if isinstance(value[key], list | dict | str) else {"a": [1]}


def null(value, key, rng):
  value[key] = None


def no_number(value, key, rng):
  value[key] = float("nan")


def half_a_character(value, key, rng):
  value[key] = "a \ud83d"


def listed_twice(value, key, rng):
  if isinstance(value, list):
    value.insert(key, value[key])


DAMAGES = (truncated, empty, of_another_kind, with_a_flipped_byte)
CHANGES = (
  *(without_a_key, of_a_wrong_type, null, no_number, half_a_character),
  listed_twice,
)


def places(value):
  """Yields (container, key) of all that is in a value of JSON."""
  for key in list(value) if isinstance(value, dict) else range(len(value)):
    yield value, key
    if isinstance(value[key], list | dict):
      yield from places(value[key])


def changed(data, rng):
  """A JSON, or JSONL, with a change anywhere, at any depth."""
  text = data.decode("utf-8-sig")
  try:
    values, is_lines = json.loads(text), False
  except ValueError:
    rows = [x for x in text.encode().splitlines() if x]
    values, is_lines = list(map(json.loads, rows)), True
  change = rng.choice(CHANGES)
  change(*rng.choice(list(places(values))), rng)
  if is_lines:
    return change, making.json_lines(values).encode()
  return change, json.dumps(values).encode()


def damaged(name, data, rng):
  """(what was done, contents of the file, None if it is gone)."""
  if rng.random() < 0.1:
    return "missing", None
  if name.endswith((".json", ".jsonl")) and rng.random() < 0.7:
    change, data = changed(data, rng)
    return change.__name__, data
  damage = rng.choice(DAMAGES)
  return damage.__name__, damage(data, rng)


def outcomes(name, raw, split, expected):
  """What is told of a split, prepared strictly and with skip_bad.

  A problem, or how many examples were left out, or "" if nothing was; None if
  nothing is told, although lines are not as expected.
  """
  out, found = raw.parent / "out", []
  for skip_bad in (False, True):
    try:
      written = folder.prepare(
        name, raw, out, splits=[split], skip_bad=skip_bad
      )[split]
    except ValueError as error:
      assert not list(out.glob("*.jsonl"))
      found.append(str(error))
    else:
      lines = publishers.read_lines(out / f"{split}.jsonl")
      is_video = "video" in lines[0]
      _, told = folder.check(name, out, splits=[split], decode=not is_video)
      told = [x for x in told if "were published" not in x]
      assert skip_bad or not written.left_out
      if written.left_out or len(lines) != len(expected):
        told.append(f"{written.left_out} left out: {written.first}")
      if told or lines == expected:
        found.append("; ".join(told))
      else:
        found.append(None)
    for path in out.rglob("*"):
      assert not path.name.startswith("."), "half-written"
      if path.suffix in (".jsonl", ".json"):
        path.unlink()
  return found


@pytest.mark.parametrize("name", catalog.DATA_SETS)
def test_what_is_damaged_is_told(name, tmp_path):
  made = getattr(publishers, name)()
  raw = publishers.write_all(tmp_path / "raw", made.files)
  pictures = [x for x in made.files if x.endswith(MEDIA)]
  others = [x for x in made.files if not x.endswith((*MEDIA, *VIDEOS))]
  for case in range(CASES):
    rng = random.Random(f"{name} {case}")
    file = rng.choice(pictures if pictures and case % 4 == 3 else others)
    path = raw / file
    data = path.read_bytes()
    what, content = damaged(file, data, rng)
    if content is None:
      path.unlink()
    else:
      path.write_bytes(content)
    split = rng.choice(list(made.lines))
    found = outcomes(name, raw, split, made.lines[split])
    path.write_bytes(data)
    for told in filter(None, found):
      assert "\n" not in told
    # A row that is listed twice, and a text or a table that is cut between
    # two rows, are as good as others.
    if what != "listed_twice" and not file.endswith((".csv", ".txt")):
      assert None not in found, (file, what, split)
