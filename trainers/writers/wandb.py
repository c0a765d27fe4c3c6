"""Weights & Biases: one run, which every start of ours continues.

WANDB_PROJECT, WANDB_ENTITY, WANDB_MODE=offline and its other variables count.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from paligemma import disk, messages
from paligemma.evals.annotated import Sample

_ID = "wandb.id"


class Wandb:
  """Logs `step` as a value, as W&B refuses steps before the last one.

  A run that was killed writes those since its last checkpoint again.
  """

  def __init__(
    self, folder: epath.Path, first_step: int, about: Mapping[str, Any]
  ):
    import wandb

    del first_step
    self._wandb = wandb
    mode = os.environ.get("WANDB_MODE", "online")
    reason = ""
    if mode == "online":
      try:
        if not wandb.login(prompt=False):
          reason = "no API key"
      except wandb.Error as error:
        reason = messages.one_line(error)
    mode = "offline" if reason else mode
    path = folder / _ID
    # By default W&B sends the command as it is, with whatever secret it has;
    # the bundle in `about` has it without.
    settings = wandb.Settings(x_disable_meta=True, silent=True)
    self._run = wandb.init(
      project=os.environ.get("WANDB_PROJECT", "paligemma"),
      id=path.read_text().strip() if path.exists() else None,
      name=folder.name,
      dir=os.fspath(folder),
      config=dict(about),
      mode=mode,
      resume="allow" if mode == "online" else None,
      settings=settings,
    )
    name = self._run.id
    disk.write(path, f"{name}\n")
    self._run.define_metric("*", step_metric="step")
    self.where = f"run {name} is {mode}"
    if mode == "online":
      self.where += f" at {self._run.url}"
    elif mode == "offline":
      at = os.path.dirname(self._run.dir)
      self.where += f"; to send it: wandb sync {at}"
      self.where += f" ({reason})" if reason else ""

  def scalars(self, step: int, values: Mapping[str, float]) -> None:
    self._run.log({"step": step, **values})

  def samples(self, step: int, name: str, found: Sequence[Sample]) -> None:
    pictures = {
      f"{name}/{sample.index}": self._wandb.Image(
        sample.picture, caption=sample.text
      )
      for sample in found
    }
    self._run.log({"step": step, **pictures})

  def close(self) -> None:
    self._run.finish()
