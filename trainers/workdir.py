"""The folder of one run: it belongs to one config, and to no other."""

import json

import jax
from etils import epath

from paligemma import tree

# May change between two starts of a run: what is shown, kept and evaluated.
FREE = ("log_", "checkpoint_", "keep_checkpoints", "evals", "train/num_workers")


def as_json(config):
  """The config as JSON values; a transform becomes its repr."""
  return json.loads(json.dumps(config.to_dict(), default=repr))


def claim(path, config):
  """Makes the folder and writes config.json, or checks the one there.

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
  new = as_json(config)
  if file.exists():
    differences = _differences(json.loads(file.read_text()), new)
    if differences:
      raise ValueError(
        f"{folder}: belongs to another config ({'; '.join(differences)}); "
        "use another --workdir, or restore the values to resume"
      )
  elif jax.process_index() == 0:
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / "config.json.tmp"
    temporary.write_text(json.dumps(new, indent=2) + "\n")
    temporary.replace(file)
  return folder


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
