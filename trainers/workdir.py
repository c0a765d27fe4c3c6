"""The folder of a run, which belongs to one config.

config.json        the config of the last start
bundle.json        what each start ran with, see bundle.py
fingerprints.json  what its files held
history.jsonl      per start with another config: the step, and what changed
"""

import json
import re
from typing import Any

import jax
from etils import epath
from ml_collections import ConfigDict

from configs import common
from paligemma import disk, messages, tree
from paligemma.checkpoints import formats
from paligemma.checkpoints.training import fingerprint

# May change between two starts of a run, as it changes no step: what is logged,
# kept and evaluated, sharding, paths of files that are not compared; and what
# happens at a bad example, at which the run may have stopped.
FREE = re.compile(
  r"(log_|checkpoint_|evals(/|$)).*"
  r"|keep_(checkpoints|every|best)|early_stop"
  r"|(mesh|sharding)(/.*)?|frozen_sharding"
  r"|model/(img|llm|txt)/remat_policy"
  r"|writers|train/(num_workers|on_bad|too_long|text_buckets)"
  r"|train/sources/[^/]+/(cache|image_root|video_root|data_dir)"
)
_OPS_OF_SOURCE = re.compile(r"train/sources/[^/]+/ops")
# Paths of files, which may be others if the files hold the same.
FILES = re.compile(
  r"init(/(img|llm))?|tokenizer|(train/sources/[^/]+|evals/[^/]+/source)/path"
  r"|evals/[^/]+/mask_codec"
)

# name -> [value before, value now]
Changes = dict[str, list[Any]]


def as_json(config: ConfigDict) -> dict[str, Any]:
  """The config as JSON values; a transform becomes its repr."""

  def describe(value):  # a plain function's repr ends in " at 0x7f...>"
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))

  return json.loads(json.dumps(config.to_dict(), default=describe))


def check(
  path: epath.PathLike, config: ConfigDict, *, override: bool = False
) -> epath.Path:
  """Checks that a folder is free, or was claimed with the same config.

  Args:
    path: folder of the run, which is returned.
    config: of the run.
    override: whether values that change the training may be others.

  Raises:
    ValueError: the folder belongs to another config; names what differs. Or its
      config cannot be read.
    OSError: it is no folder of a file system.
  """
  folder = disk.path(path)
  if not override:
    check_values(folder, as_json(config))
  return folder


def check_values(folder: epath.Path, new: dict[str, Any]) -> None:
  """`check` of a config as JSON values."""
  if changes := differences(folder, new):
    raise ValueError(
      f"{folder}: belongs to another config ({'; '.join(changes)}); use "
      "another --workdir, restore the values to resume, or resume with the "
      "changes by --override_config"
    )


def differences(folder: epath.Path, new: dict[str, Any]) -> list[str]:
  """What a config, as JSON, changes in the training of a folder, if claimed."""
  old = read(folder / "config.json")
  if old is None:
    return []
  known = read(folder / "fingerprints.json") or {}
  return [
    f"{name}: found {_shown(before)}, given {_shown(now)}"
    for name, (before, now) in _changes(old, new).items()
    if not FREE.fullmatch(name)
    and not (name in known and of_file(now) == known[name])
  ]


def claim(folder: epath.Path, config: ConfigDict, *, step: int = 0) -> Changes:
  """Writes the config, and what changed since the previous start.

  Called when the run is about to take its first step, so that after an error
  before that the same folder can be used. Returns the changes, in process 0.
  """
  if jax.process_index() != 0:
    return {}
  new = as_json(config)
  old = read(folder / "config.json")
  changes = {} if old is None else _changes(old, new)
  if changes:
    line = json.dumps({"step": step, "changes": changes})
    history = folder / "history.jsonl"
    with disk.named(history), history.open("a") as file:
      file.write(f"{line}\n")
  # The config last: until it is there, what was there counts.
  for name, value in (("fingerprints", fingerprints(new)), ("config", new)):
    disk.write(folder / f"{name}.json", f"{json.dumps(value, indent=2)}\n")
  return changes


def fingerprints(config: dict[str, Any]) -> dict[str, str]:
  """The fingerprints of the files that a config, as JSON, names, by name."""
  files = {n: x for n, x in tree.flatten(config).items() if FILES.fullmatch(n)}
  found = {name: of_file(path) for name, path in files.items()}
  return {name: x for name, x in found.items() if x is not None}


def of_file(path: epath.PathLike) -> str | None:
  """The fingerprint of a file or checkpoint; None if it cannot be read."""
  try:
    if not epath.Path(path).is_file():
      path = formats.open(path).path
    return fingerprint.of(path)
  except (OSError, TypeError, ValueError):
    return None


def describe(changes: Changes) -> str:
  """A line on what `claim` returned."""
  shown = (
    f"{name}: {_shown(before)} -> {_shown(now)}"
    for name, (before, now) in changes.items()
  )
  return f"resumed with changes: {'; '.join(shown)}"


def read(file: epath.Path) -> dict[str, Any] | None:
  """The object in a JSON file of the folder, None if there is no file.

  Raises:
    ValueError: it is damaged; names file and line.
  """
  if not file.exists():
    return None
  try:
    found = json.loads(disk.path(file).read_bytes())
  except (RecursionError, ValueError) as error:
    reason = getattr(error, "msg", None) or str(error) or type(error).__name__
    raise ValueError(
      f"{file}:{getattr(error, 'lineno', 1)}: damaged, "
      f"{messages.shown(reason)}; put back what the run wrote there, or use "
      "another --workdir"
    ) from None
  if not isinstance(found, dict):
    raise ValueError(f"{file}:1: holds no object; use another --workdir")
  return found


def _changes(old, new):
  """{name: [before, now]} of values that differ, None where there is none."""
  old, new = values_by_name(old), values_by_name(new)
  return {
    name: [old.get(name), new.get(name)]
    for name in sorted(old.keys() | new.keys())
    if old.get(name) != new.get(name)
  }


def values_by_name(config: dict[str, Any]) -> dict[str, Any]:
  """The values of a config of `as_json` by name.

  A key that the config of an older run lacks has its default. All ops of a
  source are one list.

  Raises:
    ValueError: it is no config of a run.
  """
  try:
    filled = ConfigDict(config)
    common.fill(filled)
    values = tree.flatten(as_json(filled))
    shared = [*values.pop("train/augment", ()), *values.pop("train/ops", ())]
    own = [name for name in values if _OPS_OF_SOURCE.fullmatch(name)]
    ops = {name: [*values.pop(name), *shared] for name in own}
  except (KeyError, TypeError, ValueError) as error:
    raise ValueError(f"no config of a run: {error}") from None
  first, *others = ops.values() or [shared]
  alike = all(other == first for other in others)
  return values | ({"train/ops": first} if alike else ops)


def _shown(value):
  return "nothing" if value is None else f"{json.dumps(value):.200}"
