"""Checkpoints of a running training, written in the background by Orbax.

directory/
  300/                          appears whole, or not at all
    state/                      trainable, opt_state and ema, by name
    data/process_0-of-2.json    state of each process's data iterator
    info/                       metadata, and how many processes there were
"""

import contextlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

import grain.checkpoint
import jax
import orbax.checkpoint as ocp
from etils import epath

from paligemma import disk, tree

# How tensorstore ends a message on a call of the operating system.
_OS_ERROR = re.compile(r"\[os_error_code='(\d+)'\]")


class StepCheckpoints(contextlib.AbstractContextManager):
  """The checkpoints of one training run, by step.

  Frozen weights are not written: `metadata` names their source. All processes
  of a run make the same calls. Use it as a context manager, or close it.
  """

  def __init__(
    self,
    directory: epath.PathLike,
    *,
    max_to_keep: int | None = None,
    keep_period: int | None = None,
    asynchronous: bool = True,
  ):
    """Opens a directory and removes what an earlier run left half-written.

    Args:
      directory: Holds nothing but checkpoints; made if absent.
      max_to_keep: How many of the last ones are kept, default all.
      keep_period: Steps divisible by it are kept as well.
      asynchronous: Write in the background. `save` then returns once the
        arrays are copied to the host, and their buffers may be donated.
    """
    self._directory = epath.Path(directory).resolve()
    self._manager = ocp.CheckpointManager(
      self._directory,
      options=ocp.CheckpointManagerOptions(
        max_to_keep=max_to_keep,
        keep_period=keep_period,
        cleanup_tmp_directories=True,
        enable_async_checkpointing=asynchronous,
      ),
      item_handlers={
        "state": ocp.StandardCheckpointHandler(),
        "data": grain.checkpoint.CheckpointHandler(),
        "info": ocp.JsonCheckpointHandler(),
      },
    )

  def save(
    self,
    step: int,
    trainable: Mapping[str, jax.Array],
    opt_state: Any,
    *,
    ema: Mapping[str, jax.Array] | None = None,
    data_iterator: Any = None,
    metadata: Mapping[str, Any] | None = None,
  ) -> None:
    """Writes the state after `step` steps; a step already saved is left as is.

    Args:
      step: How many steps are done.
      trainable, opt_state, ema: Arrays, sharded in any way; `ema` is optional.
      data_iterator: Iterator of grain, whose state is saved: what it has
        yielded is not yielded again.
      metadata: What JSON holds: the config, source and fingerprint of the
        frozen weights.

    Raises:
      OSError: The disk is full, or cannot be written; also while the step
        before this one was written in the background.
    """
    if step in self._manager.all_steps():
      return
    info = {"process_count": jax.process_count(), "metadata": metadata or {}}
    items = {
      "state": ocp.args.StandardSave(_by_name(trainable, opt_state, ema)),
      "info": ocp.args.JsonSave(info),
    }
    if data_iterator is not None:
      items["data"] = grain.checkpoint.CheckpointSave(data_iterator)
    with self._disk():
      # force: which steps are worth saving is the caller's decision.
      self._manager.save(step, args=ocp.args.Composite(**items), force=True)

  def restore(
    self,
    step: int,
    trainable: Mapping[str, Any],
    opt_state: Any,
    *,
    ema: Mapping[str, Any] | None = None,
    data_iterator: Any = None,
  ) -> tuple[tree.Flat, Any, tree.Flat | None]:
    """Reads the state after `step` steps.

    Args:
      step: One of the saved steps.
      trainable, opt_state, ema: jax.ShapeDtypeStruct with the sharding that
        each array is to have, which may differ from the saved one, or arrays.
      data_iterator: Continues where the saved one stopped. Where all processes
        stopped at the same point, another number of them may continue.

    Returns:
      (trainable, opt_state, ema).

    Raises:
      ValueError: No such step, or arrays that differ from the saved ones (lists
        them); or other processes stopped at different points in the data.
    """
    abstract = (trainable, opt_state, ema)
    wanted = {
      name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
      for name, x in _by_name(*abstract).items()
    }
    self._check_state(step, wanted)
    items = {"state": ocp.args.StandardRestore(wanted)}
    if data_iterator is not None:
      self._restore_data(step, data_iterator)
    restored = self._manager.restore(step, args=ocp.args.Composite(**items))
    leaves = [restored["state"][name] for name in wanted]
    return jax.tree.unflatten(jax.tree.structure(abstract), leaves)

  def metadata(self, step: int) -> dict[str, Any]:
    """Returns the metadata saved with a step; a ValueError if there is none."""
    return self._info(step)["metadata"]

  def latest_step(self) -> int | None:
    """Returns the last step, once it is written; None if there is none."""
    self.wait()
    return self._manager.latest_step()

  def wait(self) -> None:
    """Waits until all is written; raises what failed in the background."""
    with self._disk():
      self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits, and ends the background threads."""
    with self._disk():
      self._manager.close()

  def __exit__(self, *_) -> None:
    self.close()

  @contextlib.contextmanager
  def _disk(self) -> Iterator[None]:
    """Turns errors of the disk into an OSError that names the directory."""
    try:
      with disk.named(self._directory):
        yield
    except ValueError as e:
      if not (found := _OS_ERROR.search(str(e))):
        raise
      number = int(found[1])
      raise OSError(number, os.strerror(number), str(self._directory)) from None

  def _info(self, step: int) -> dict[str, Any]:
    self._check_step(step)
    args = ocp.args.Composite(info=ocp.args.JsonRestore())
    return self._manager.restore(step, args=args)["info"]

  def _check_step(self, step: int) -> None:
    self.wait()
    if step not in (steps := list(self._manager.all_steps())):
      raise ValueError(
        f"{self._directory}: no checkpoint of step {step}, found steps {steps}"
      )

  def _check_state(self, step: int, wanted: tree.Flat) -> None:
    self._check_step(step)
    found = self._manager.item_metadata(step)["state"].tree
    lines = tree.compare(wanted, found) or [
      f"{name}: found dtype {found[name].dtype}, expected {leaf.dtype}"
      for name, leaf in wanted.items()
      if found[name].dtype != leaf.dtype
    ]
    if lines:
      raise ValueError(
        f"{self._directory / str(step)}: the checkpoint differs from this run "
        f"in {len(lines)} of {len(wanted)} leaves: {'; '.join(lines)}"
      )

  def _restore_data(self, step: int, iterator: Any) -> None:
    count = self._info(step)["process_count"]
    folder = self._directory / str(step) / "data"
    files = [folder / f"process_{i}-of-{count}.json" for i in range(count)]
    if count == jax.process_count():
      state = _state(files[jax.process_index()])
    else:
      state, *others = map(_state, files)
      if any(other != state for other in others):
        raise ValueError(
          f"{folder.parent}: {count} processes stood at different places in "
          f"the data, this run has {jax.process_count()}; resume with {count}"
        )
    iterator.set_state(state)
    iterator.start_prefetch()


def _state(file: epath.Path) -> Any:
  try:
    return json.loads(file.read_text())
  except (OSError, RecursionError, ValueError) as e:
    reason = str(e) or type(e).__name__
    raise ValueError(f"{file}: missing or damaged ({reason})") from None


def _by_name(trainable: Any, opt_state: Any, ema: Any) -> tree.Flat:
  """The leaves of all three by name, in the order of jax.tree.leaves."""
  named = {}
  for what, subtree in zip(
    ("trainable", "opt_state", "ema"), (trainable, opt_state, ema), strict=True
  ):
    for path, leaf in jax.tree_util.tree_leaves_with_path(subtree):
      name = jax.tree_util.keystr(path, simple=True, separator="/")
      named[f"{what}/{name}"] = leaf
  return named
