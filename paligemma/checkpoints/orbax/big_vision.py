"""Parameters in the training checkpoints of big_vision, before its npz export.

workdir/
  checkpoint.bv-LAST              the step of the last one
  checkpoint.bv-000000300/        one zarr array per leaf, "/" written as "~"
    params~llm~final_norm~scale/
    opt~...  chrono~...           ignored
"""

import re

from etils import epath

from paligemma import tree
from paligemma.checkpoints.checkpoint import Checkpoint
from paligemma.checkpoints.leaves import Leaf
from paligemma.checkpoints.orbax import folder as orbax
from paligemma.checkpoints.orbax import zarr

_STEM = "checkpoint.bv-"
_STEP = re.compile(r"checkpoint\.bv-\d+(-tmp)?")


def find(path: epath.PathLike) -> epath.Path | None:
  """The folder of a checkpoint, None if there is none.

  Args:
    path: That folder, or the workdir, where checkpoint.bv-LAST names it.
  """
  path = epath.Path(path)
  pointer = path / f"{_STEM}LAST"
  if pointer.exists():
    step = pointer.read_bytes().decode(errors="replace").strip()
    path = path / f"{_STEM}{step}"
  return path if _STEP.fullmatch(path.name) and path.is_dir() else None


def open(path: epath.PathLike) -> Checkpoint:
  """Opens a checkpoint; reads only the metadata of its arrays.

  Args:
    path: See `find`.

  Raises:
    ValueError: No such checkpoint, unreadable, or other names in it.

  Source: big_vision/utils.py, save_checkpoint_ts and tsload.
  """
  folder = find(path)
  if folder is None:
    raise ValueError(
      f"{path}: holds no big_vision checkpoint, expected a workdir with "
      f"{_STEM}LAST, which names a folder in it, or such a folder"
    )
  found = {x.name: x for x in sorted(folder.iterdir()) if x.is_dir()}
  specs = {
    name.replace("~", "/"): {
      "driver": "zarr",
      "kvstore": zarr.kvstore(child),
      "fill_missing_data_reads": False,
    }
    for name, child in tree.under("params~", found).items()
  }
  arrays = zarr.open_all(str(folder), specs)
  orbax.check_names(folder, arrays)
  return Checkpoint(
    path=str(folder),
    format="big_vision workdir",
    leaves={name: Leaf.of(array) for name, array in arrays.items()},
    ignored=tuple(n for n in found if not n.startswith("params~")),
  )
