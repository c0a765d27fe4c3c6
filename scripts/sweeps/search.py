"""Combinations that optuna suggests, in the light of those that have run.

sweep.db of the folder holds them: another start goes on where one has stopped.
"""

import math
import re
from collections.abc import Sequence
from typing import Any

from etils import epath

from scripts.sweeps import combinations, results
from scripts.sweeps.combinations import Values
from trainers import best

FILE = "sweep.db"

_RANGE = re.compile(r"([^:,()]+):([^:,()]+?)(:log)?")


def parse(texts: Sequence[str]) -> dict[str, Any]:
  """Reads ["learning_rate=0.001:0.1:log", "tune=attention,lora"].

  Returns {name: optuna distribution}. Between two integers are integers.

  Raises:
    ValueError: a range without numbers, empty, or of the logarithm of 0.
  """
  import optuna

  found = {}
  for name, text in combinations.parse(texts).items():
    match = _RANGE.fullmatch(text)
    if not match:
      listed = combinations.choices(text)
      found[name] = optuna.distributions.CategoricalDistribution(listed)
      continue
    low, high, log = match.groups()
    try:
      try:
        kind, ends = optuna.distributions.IntDistribution, (int(low), int(high))
      except ValueError:
        kind = optuna.distributions.FloatDistribution
        ends = float(low), float(high)
      if not -math.inf < ends[0] < ends[1] < math.inf:
        raise ValueError
      found[name] = kind(*ends, log=bool(log))
    except ValueError:
      raise ValueError(
        f'"{name}={text}": expected LOW:HIGH or LOW:HIGH:log, such as '
        "learning_rate=0.001:0.1:log, with LOW above 0 for log"
      ) from None
  return found


class Search:
  """A source of combinations, see runner.Source.

  A trial whose run has stopped or failed is asked for again by the next start.
  """

  def __init__(
    self,
    folder: epath.Path,
    space: dict[str, Any],
    *,
    trials: int,
    metric: str,
    higher_is_better: bool,
  ):
    """Opens the study.

    Args:
      folder: of the sweep.
      space: see `parse`.
      trials: to finish, with those of earlier starts.
      metric, higher_is_better: of which the best is looked for.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    folder.mkdir(parents=True, exist_ok=True)
    self._states = optuna.trial.TrialState
    self._space, self._metric = space, metric
    self._higher = higher_is_better
    self._study = optuna.create_study(
      storage=f"sqlite:///{folder / FILE}",
      study_name=metric,
      direction="maximize" if higher_is_better else "minimize",
      load_if_exists=True,
    )
    before = self._study.trials
    # A seed of its own for each start, or it would draw the same again.
    self._study.sampler = optuna.samplers.TPESampler(seed=len(before))
    self._pending: dict[str, list[int]] = {}  # name -> numbers of trials
    done = [t for t in before if t.state == self._states.COMPLETE]
    self._left = trials - len(done)
    begun = {str(sorted(t.params.items())) for t in done}
    for trial in before:
      if trial.state == self._states.RUNNING:
        self._study.tell(trial.number, state=self._states.FAIL)
      key = str(sorted(trial.params.items()))
      if trial.params and key not in begun:
        begun.add(key)
        self._study.enqueue_trial(trial.params)

  def ask(self) -> Values | None:
    while self._left > 0:
      self._left -= 1
      trial = self._study.ask(self._space)
      values = {name: _text(x) for name, x in trial.params.items()}
      name = combinations.folder_name(values)
      self._pending.setdefault(name, []).append(trial.number)
      if len(self._pending[name]) == 1:
        return values  # others wait for the run that goes on
    return None

  def tell(self, values: Values, folder: epath.Path, status: str) -> None:
    found = results.scores(folder, self._metric)
    step = best.first_best(found, self._higher)
    numbers = self._pending.pop(combinations.folder_name(values))
    for number in numbers:
      if status == "finished" and step is not None:
        self._study.tell(number, found[step])
      else:
        self._study.tell(number, state=self._states.FAIL)


def _text(value):
  return f"{value:.4g}" if isinstance(value, float) else str(value)
