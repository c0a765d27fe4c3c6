"""The best weights of a run, by a score of its evaluations.

best.npz, or best.safetensors of adapters   the weights
best.json                                   their score, its value and the step
"""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from paligemma import disk, registry
from paligemma.evals import gather
from trainers import inputs

# Behind the name of an evaluator, where it evaluates the moving averages.
EMA = "/ema"


class Best:
  """Which evaluation was the best so far, and how many have followed it.

  Of equal scores the first is the best, and one that is not a number is the
  worst. All processes follow the score that process 0 has computed.

  Attributes:
    name: config.keep_best; None: nothing is kept.
    step: that of the best evaluation, None before the first.
  """

  def __init__(
    self, config: ConfigDict, evaluators: Sequence[inputs.Scheduled]
  ):
    """Finds the evaluator whose score is named, and which scores are better.

    Raises:
      ValueError: there is no such score; names those there are. Or early_stop
        is below 1, or set without keep_best.
    """
    self.name = config.keep_best or None  # "" of a command line is none
    self._is_higher_better = True
    self._early_stop = config.early_stop
    self._scores: dict[int, float] = {}  # by step
    if self._early_stop is not None:
      if self.name is None:
        raise ValueError(
          "config.early_stop needs config.keep_best, the score that has to "
          'improve, such as "val/exact_match"'
        )
      if self._early_stop < 1:
        raise ValueError(
          f"config.early_stop is {self._early_stop}, expected at least 1 "
          "evaluation"
        )
    if self.name is not None:
      made = [evaluator for evaluator, _ in evaluators]
      known = known_scores(made, config.ema_decay is not None, self.name)
      if not known:
        raise ValueError("config.keep_best needs an evaluator in config.evals")
      self._evaluator, self._is_higher_better = registry.lookup(
        known, self.name, "score of config.keep_best"
      )

  @property
  def step(self) -> int | None:
    return self._best_of(self._scores)

  @property
  def has_stopped_improving(self) -> bool:
    """Whether the best is early_stop evaluations ago."""
    since = sum(step > self.step for step in self._scores)
    return self._early_stop is not None and since >= self._early_stop

  def find(self, evaluator: str, scores: Mapping[str, float]) -> float | None:
    """The named one of an evaluator's scores; None if it is another's.

    Raises:
      ValueError: the first evaluation of the run lacks it; names what it has.
    """
    if self.name is None or evaluator != self._evaluator:
      return None
    if not self._scores:
      registry.lookup(scores, self.name, "score of config.keep_best")
    return gather.gather(scores.get(self.name, math.nan))[0]

  def is_improved_by(self, step: int, score: float) -> bool:
    """Whether a score would be the best."""
    return self._best_of({**self._scores, step: score}) == step

  def add(self, step: int, score: float) -> None:
    """Takes a score into account; that of the same step is replaced."""
    self._scores[step] = score

  def write(self, folder: epath.Path, step: int, score: float) -> None:
    """Writes best.json, after the weights of a step."""
    found = {"score": self.name, "value": score, "step": step}
    disk.write(folder / "best.json", f"{json.dumps(found)}\n")

  def state(self) -> dict[str, Any]:
    """What a checkpoint holds of it."""
    return {"name": self.name, "scores": list(self._scores.items())}

  def restore(self, state: Mapping[str, Any]) -> None:
    """Goes on from a `state`, unless that is of another score."""
    if state.get("name") == self.name:
      self._scores = dict(map(tuple, state.get("scores", ())))

  def describe_rule(self) -> str:
    """A line on what is kept, and on when the run stops."""
    which = "highest" if self._is_higher_better else "lowest"
    line = f"keeps the weights with the {which} {self.name}"
    if self._early_stop is None:
      return line
    return (
      f"{line}, and stops after {self._early_stop} evaluations without a "
      "better one"
    )

  def describe(self) -> str:
    """A line on the best score."""
    score = self._scores[self.step]
    return f"best {self.name}: {score:.5g}, at step {self.step}"

  def _best_of(self, scores):
    best = first_best(scores, self._is_higher_better)
    return min(scores, default=None) if best is None else best


def first_best(
  values: Mapping[int, float], higher_is_better: bool
) -> int | None:
  """The first step of the best value, None if no value is a number."""
  steps = [step for step, value in values.items() if not math.isnan(value)]
  sign = -1 if higher_is_better else 1
  return min(steps, key=lambda step: (sign * values[step], step), default=None)


def known_scores(
  evaluators: Sequence[inputs.Evaluator], has_ema: bool, wanted: str
) -> dict[str, tuple[str, bool]]:
  """{"val/AP50": (name of the evaluator, whether higher is better)}.

  Args:
    evaluators: of a run.
    has_ema: whether moving averages are evaluated too.
    wanted: taken for a score, higher is better, where its evaluator does not
      say which it has.
  """
  known = {}
  for evaluator in evaluators:
    for name in [evaluator.name] + [evaluator.name + EMA] * has_ema:
      scores = evaluator.higher_is_better
      # A function does not say what it returns; the first evaluation shows it.
      if not scores and wanted.startswith(f"{name}/"):
        scores = {wanted.removeprefix(f"{name}/"): True}
      known |= {f"{name}/{x}": (name, higher) for x, higher in scores.items()}
  return known
