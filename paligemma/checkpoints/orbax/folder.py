"""Parameters in an Orbax checkpoint, with big_vision's names.

path/
  params/                 what Orbax calls a PyTree or Standard checkpoint
    _METADATA             the names
    llm.final_norm.scale/ one folder per array, see zarr.py
  model/metadata          JSON: what array shapes cannot tell about the model

Orbax restores either item: StandardCheckpointer().restore(path / "params").
"""

import json
import os
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import ml_dtypes
import numpy as np
import tensorstore as ts
from etils import epath
from jax.experimental import multihost_utils

from paligemma import disk, parameters, quantization, tree
from paligemma.checkpoints import stated_fields
from paligemma.checkpoints.checkpoint import Checkpoint
from paligemma.checkpoints.leaves import Leaf
from paligemma.checkpoints.orbax import zarr

# Names that Orbax's checkpointers and managers give to a single item.
_ITEMS = ("params", "default", "pytree", "state")

_SHOWN = 10  # names in an error
_DICT = 2  # Orbax's number for a key of a dict


def find(path: epath.PathLike) -> epath.Path | None:
  """The folder that holds the arrays, None if there is none.

  Args:
    path: That folder; a checkpoint with it as "params", "default", "pytree" or
      "state"; or a CheckpointManager's folder, whose last step is taken.
  """
  path = epath.Path(path)
  if not path.is_dir():
    return None
  for folder in (path, *(path / name for name in _ITEMS)):
    if _is_item(folder):
      return folder
  step = last_step(path)
  return None if step is None else find(path / str(step))


def last_step(path: epath.PathLike) -> int | None:
  """The last step in a folder of steps, None if there is none.

  A step that Orbax is still writing, or was stopped at, has another name.
  """
  return max(steps(path), default=None)


def steps(path: epath.PathLike) -> list[int]:
  """All steps in a folder of steps, in order, likewise."""
  names = (child.name for child in epath.Path(path).iterdir())
  return sorted(int(name) for name in names if name.isdecimal())


def tensors(folder: epath.PathLike) -> dict[str, zarr.Array]:
  """Opens all arrays of an Orbax PyTree or Standard checkpoint.

  Args:
    folder: From `find`: arrays in a database (OCDBT) or in a folder each, zarr
      2 or 3. Without _METADATA, as in old checkpoints, all that are found.

  Returns:
    Name -> array. A name is the keys that lead to the array, joined by "/".
    None, empty containers and strings are left out.

  Raises:
    ValueError: Missing, corrupt or cut short.
  """
  folder = epath.Path(folder)
  if not (folder / "_METADATA").exists():
    return zarr.open_all(str(folder), _found_specs(folder))
  with zarr.one_line(f"{folder}/_METADATA"):
    metadata = json.loads(disk.path(folder / "_METADATA").read_text())
    specs = {}
    for entry in metadata["tree_metadata"].values():
      keys = [str(key["key"]) for key in entry["key_metadata"]]
      value = entry["value_metadata"]
      if value["skip_deserialize"] or value["value_type"] == "string":
        continue
      name = "/".join(keys)
      if name in specs:
        raise ValueError(f'"{name}" stands there twice')
      specs[name] = _spec(
        folder,
        ".".join(keys),
        ocdbt=metadata.get("use_ocdbt", _has_database(folder)),
        zarr3=metadata.get("use_zarr3", False),
        # Older versions of Orbax do not write chunks of zeros.
        sparse=not metadata.get("store_array_data_equal_to_fill_value", False),
      )
  return zarr.open_all(str(folder), specs)


def open(path: epath.PathLike) -> Checkpoint:
  """Opens what `save` wrote, or parameters that a user saved with Orbax.

  Args:
    path: See `find`. The tree is {"img": ..., "llm": ...} or that of a SigLIP,
      or that is "params" in a training state, the rest of which is ignored.

  Raises:
    ValueError: No checkpoint, unreadable, or other names in it.
  """
  path = epath.Path(path)
  folder = find(path)
  if folder is None:
    raise ValueError(
      f"{path}: holds no Orbax checkpoint, expected a folder with _METADATA, "
      f"or with one of {', '.join(_ITEMS)} or steps in it"
    )
  arrays = tensors(folder)
  ignored = ()
  while params := tree.under("params/", arrays):
    ignored += tuple(n for n in arrays if not n.startswith("params/"))
    arrays = params
  check_names(folder, arrays)
  file, stated = folder.parent / "model" / "metadata", {}
  if file.exists():
    with zarr.one_line(str(file)):
      stated = stated_fields.parse(disk.path(file).read_text())
  return Checkpoint(
    path=str(path),
    format="Orbax",
    leaves={name: Leaf.of(array) for name, array in sorted(arrays.items())},
    ignored=ignored,
    **stated,
  )


def check_names(where: epath.PathLike, arrays: Mapping[str, Any]) -> None:
  """Raises a ValueError unless all are parameters of floating point numbers.

  Quantized matrices are checked in quantized_leaves.
  """
  towers = {*parameters.SIZES, *parameters.LOSS_HEADS}
  towers |= {parameters.TEMPERATURE, parameters.LOGIT_BIAS}
  foreign = [n for n in arrays if n.partition("/")[0] not in towers]
  if foreign or not arrays:
    raise ValueError(
      f'{where}: expected parameters under "img/", "llm/" or "txt/", found '
      f"{listed(foreign) if foreign else 'none'}"
    )
  for name, array in arrays.items():
    if quantization.split(name):
      continue
    if array.dtype.kind != "f" and array.dtype != ml_dtypes.bfloat16:
      raise ValueError(
        f"{where}: {name}: dtype {array.dtype}, expected float32, bfloat16 or "
        "float16"
      )


def listed(names: Iterable[str]) -> str:
  """The first names, and how many there are if there are more."""
  names = sorted(names)
  more = f" ... ({len(names)} in all)" if len(names) > _SHOWN else ""
  return ", ".join(names[:_SHOWN]) + more


def save(
  path: epath.PathLike,
  arrays: Mapping[str, Any] | Iterable[tuple[str, Any]],
  *,
  dtype: Any = None,
  **stated: Any,
) -> None:
  """Writes a checkpoint that `open` and Orbax read, one array at a time.

  It appears at `path` only when it is complete. All processes call it, with
  the same names; each writes the shards on its own devices. Orbax itself writes
  only a tree that is wholly in memory.

  Args:
    path: Folder to make.
    arrays, dtype, **stated: As in npz.save.

  Raises:
    ValueError: `path` exists, a name is given twice, or an array has a dtype
      that zarr cannot hold.
  """
  path = epath.Path(path)
  stated = stated_fields.dump(**stated)
  if path.exists():
    raise ValueError(f"{path}: exists; remove it, or give another path")
  process = multihost_utils.broadcast_one_to_all(np.int32(os.getpid()))
  first = jax.process_index() == 0
  temporary = disk.beside(path, f"shared.{process}")
  try:
    if first:
      disk.clear(path)
      (temporary / "params").mkdir(parents=True)
    multihost_utils.sync_global_devices(f"{temporary} made")
    names = []
    pairs = arrays.items() if isinstance(arrays, Mapping) else arrays
    for name, array in pairs:
      if name in names:
        raise ValueError(f'{path}: "{name}" stands there twice')
      names.append(name)
      folder = temporary / "params" / name.replace("/", ".")
      cast_to = None if quantization.split(name) else dtype
      zarr.write(folder, name, array, cast_to)
    multihost_utils.sync_global_devices(f"{temporary} written")
    tree.unflatten(dict.fromkeys(names))  # no name may be part of another
    if first:
      metadata = json.dumps(_metadata(names))
      (temporary / "params" / "_METADATA").write_text(metadata)
      (temporary / "model").mkdir()
      (temporary / "model" / "metadata").write_text(stated)
      disk.publish(temporary, path)
    multihost_utils.sync_global_devices(f"{path} complete")
  finally:
    if first and temporary.exists():
      temporary.rmtree()


def _metadata(names):
  """The _METADATA of arrays that Orbax restores as NumPy arrays.

  It would restore a jax.Array only on the devices where it was saved.
  """
  tree_metadata = {}
  for name in names:
    keys = tuple(name.split("/"))
    tree_metadata[str(keys)] = {
      "key_metadata": [{"key": key, "key_type": _DICT} for key in keys],
      "value_metadata": {"value_type": "np.ndarray", "skip_deserialize": False},
    }
  return {
    "tree_metadata": tree_metadata,
    "use_ocdbt": False,
    "use_zarr3": True,
    "store_array_data_equal_to_fill_value": True,
    "custom_metadata": None,
  }


def _is_item(folder):
  return (
    (folder / "_METADATA").exists()
    or _has_database(folder)
    or any(folder.glob("*/.zarray"))
    or any(folder.glob("*/zarr.json"))
  )


def _has_database(folder):
  return (folder / "manifest.ocdbt").exists()


def _found_specs(folder):
  ocdbt = _has_database(folder)
  with zarr.one_line(str(folder)):
    store = ts.KvStore.open(_kvstore(folder, "", ocdbt=ocdbt)).result()
    files = [key.decode() for key in store.list().result()]
  specs = {}
  for file in files:
    stored, _, kind = file.rpartition("/")
    if kind in (".zarray", "zarr.json"):
      specs[stored.replace(".", "/")] = _spec(
        folder, stored, ocdbt=ocdbt, zarr3=kind == "zarr.json", sparse=True
      )
  return specs


def _spec(folder, stored, *, ocdbt, zarr3, sparse):
  return {
    "driver": "zarr3" if zarr3 else "zarr",
    "kvstore": _kvstore(folder, stored, ocdbt=ocdbt),
    "fill_missing_data_reads": sparse,
  }


def _kvstore(folder, stored, *, ocdbt):
  if not ocdbt:
    return zarr.kvstore(folder / stored if stored else folder)
  path = f"{stored}/" if stored else ""
  return {"driver": "ocdbt", "base": zarr.kvstore(folder), "path": path}
