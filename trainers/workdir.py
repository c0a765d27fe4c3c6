"""The folder of one run: it belongs to one config, and to no other."""

import json
import re

import jax
from etils import epath

from paligemma import tree

# May change between two starts of a run: what is shown, kept and evaluated, and
# what becomes of a bad example, at which the run may have stopped.
FREE = (
  "log_",
  "checkpoint_",
  "keep_checkpoints",
  "evals",
  "train/num_workers",
  "train/on_bad",
  "train/too_long",
)


def as_json(config):
  """The config as JSON values; a transform becomes its repr."""

  def describe(value):  # a plain function's repr ends in " at 0x7f...>"
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))

  return json.loads(json.dumps(config.to_dict(), default=describe))


def check(path, config):
  """Checks that a folder is free, or was claimed with the same config.

  Args:
    path: folder of the run.
    config: its ConfigDict.

  Returns:
    epath.Path of the folder.

  Raises:
    ValueError: the folder belongs to another config; names what differs.
  """
  folder = epath.Path(path)
  file = folder / "config.json"
  if file.exists():
    old = json.loads(file.read_text())
    if differences := _differences(old, as_json(config)):
      raise ValueError(
        f"{folder}: belongs to another config ({'; '.join(differences)}); "
        "use another --workdir, or restore the values to resume"
      )
  return folder


def claim(folder, config):
  """Writes config.json into a folder that `check` returned.

  Not before the run is about to step, so that a mistake found on the way there
  can be mended without another folder.
  """
  if jax.process_index() == 0:
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / "config.json.tmp"
    temporary.write_text(json.dumps(as_json(config), indent=2) + "\n")
    temporary.replace(folder / "config.json")


def _differences(old, new):
  old, new = tree.flatten(old), tree.flatten(new)
  nothing = object()
  return [
    f"{name}: found {_shown(old, name)}, given {_shown(new, name)}"
    for name in sorted(old.keys() | new.keys())
    if not name.startswith(FREE)
    and old.get(name, nothing) != new.get(name, nothing)
  ]


def _shown(flat, name):
  return json.dumps(flat[name]) if name in flat else "nothing"
