"""What a config can have a model learn: `config.task` names one of TASKS.

A task says which model it trains, what a batch holds, the loss with its
measurements, and which evaluators fit. All else knows no task by name.
"""

from ml_collections import ConfigDict

from configs import common
from paligemma import registry
from trainers.tasks import contrastive, next_token
from trainers.tasks.task import Task

TASKS: dict[str, Task] = {
  "next_token": next_token.NextToken(),
  "contrastive": contrastive.Contrastive(),
}


def of(config: ConfigDict) -> Task:
  """Returns the task of a config; an unknown one raises, with the nearest."""
  return registry.lookup(TASKS, common.complete(config).task, "task")


def evaluator(config: ConfigDict, name: str) -> type:
  """Returns the class of the evaluator that config.evals has under a name.

  Raises:
    ValueError: its kind is unknown, or that of another task.
  """
  fitting, kind = of(config).evaluators, config.evals[name].kind
  for task, other in TASKS.items():
    if kind in other.evaluators and kind not in fitting:
      raise ValueError(
        f'evals.{name}: kind "{kind}" is of task "{task}", but config.task is '
        f'"{config.task}", expected one of: {", ".join(sorted(fitting))}'
      )
  return registry.lookup(fitting, kind, f"kind of evals.{name}")
