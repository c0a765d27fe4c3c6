"""The learning-rate range test: some steps at growing rates, and their losses.

Source: Smith, arXiv:1506.01186, section 3.3; smoothing, end and both
suggestions are those of fastai (Learner.lr_find).
"""

import dataclasses
import json
import math
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from configs import common
from paligemma import disk, messages
from paligemma.tree import Flat
from trainers.state import TrainState
from trainers.step import Step

STEPS = 100
LOWEST, HIGHEST = 1e-7, 10.0
FILE = "find_lr.json"  # in the folder of the run

_SMOOTHING = 0.98  # share of the average that a step keeps
_DIVERGED = 4.0  # times the lowest loss
_LAST = 5  # steps before the end that are no suggestion


def growing(config: ConfigDict) -> ConfigDict:
  """A config whose rate grows exponentially in STEPS steps.

  The factors between parameters stay, those of their schedules too; what does
  not train there trains nowhere. The weights do not decay.
  """
  config = config.copy_and_resolve_references()
  config.total_steps = STEPS
  common.unset_others(config, ["total_steps"])
  config.learning_rate = LOWEST
  config.schedule = tuple(
    (
      regex,
      arguments
      and {
        "decay": "exponential",
        "end": HIGHEST / LOWEST,
        "mult": arguments.get("mult", 1.0),
      },
    )
    for regex, arguments in config.schedule
  )
  config.weight_decay = 0.0
  config.ema_decay = None
  if "distill_weight" in config:
    config.distill_weight = 0.0  # which the average would teach
  return config


@dataclasses.dataclass(frozen=True)
class Losses:
  """The losses of the test; a suggestion of None: the loss did not fall.

  Attributes:
    rates, losses: of each step.
    smoothed: moving averages of the losses, corrected for their start.
    steepest: the rate at which the smoothed loss falls fastest per factor.
    tenth: a tenth of the rate at the lowest smoothed loss.
  """

  rates: list[float] = dataclasses.field(default_factory=list)
  losses: list[float] = dataclasses.field(default_factory=list)
  smoothed: list[float] = dataclasses.field(default_factory=list)

  @property
  def has_diverged(self) -> bool:
    return self.smoothed[-1] > _DIVERGED * min(self.smoothed)

  @property
  def steepest(self) -> float | None:
    if not self._falls:
      return None
    slopes = np.gradient(self.smoothed, np.log(self.rates))
    return self.rates[_lowest(slopes)]

  @property
  def tenth(self) -> float | None:
    return self.rates[_lowest(self.smoothed)] / 10 if self._falls else None

  @property
  def _falls(self):
    few = len(self.smoothed) <= _first() + _LAST
    return not few and _lowest(self.smoothed) > _first()

  def add(self, rate: float, loss: float) -> None:
    """Adds a step."""
    self.rates.append(rate)
    self.losses.append(loss)
    weights = _SMOOTHING ** np.arange(len(self.losses))[::-1]
    self.smoothed.append(float(np.average(self.losses, weights=weights)))

  def describe(self) -> str:
    """A table of the losses, and what to set."""
    rows = [("learning rate", "smoothed loss")]
    every = max(len(self.rates) // 20, 1)
    for i in range(0, len(self.rates), every):
      rows.append((f"{self.rates[i]:.2g}", f"{self.smoothed[i]:.4g}"))
    lines = messages.aligned(rows)
    if not self._falls:
      return "\n".join([*lines, "no suggestion: the loss falls at no rate"])
    steepest = f"{self.steepest:.2g}"
    return "\n".join(
      [
        *lines,
        f"the loss falls fastest at {steepest}; a tenth of the rate with the "
        f"lowest loss is {self.tenth:.2g}",
        f"--config.learning_rate={steepest} sets the peak of the schedule",
      ]
    )

  def write(self, folder: epath.PathLike) -> None:
    """Writes find_lr.json into the folder of a run."""
    values = dataclasses.asdict(self) | {
      "steepest": self.steepest,
      "tenth": self.tenth,
    }
    disk.write(epath.Path(folder) / FILE, f"{json.dumps(values)}\n")


def _first():
  """The first step that is a suggestion."""
  return STEPS // 10


def _lowest(values):
  """The step with the lowest value, but for the start and the end."""
  return _first() + int(np.argmin(values[_first() : -_LAST]))


def find_lr(
  step: Step,
  train_state: TrainState,
  frozen: Flat,
  batches: Iterator[tuple[dict[str, jax.Array], Any]],
) -> Losses:
  """Trains until the end of the test, or until the loss diverges.

  Args:
    step: of a config that `growing` has made.
    train_state, frozen: before the first step.
    batches: see inputs.Feed.
  """
  found = Losses()
  for _ in range(STEPS):
    batch, _ = next(batches)
    train_state, measured = step(train_state, frozen, batch)
    if not measured["num_examples"]:  # nor is it a step of the schedule
      continue
    loss = float(measured["loss"])
    if not math.isfinite(loss):
      break
    share = len(found.rates) / STEPS
    found.add(LOWEST * (HIGHEST / LOWEST) ** share, loss)
    if found.has_diverged:
      break
  return found
