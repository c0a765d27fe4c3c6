"""Where measurements and sample predictions of a run go beside metrics.jsonl.

A writer is made with the folder of the run, the step it starts at, and its
config and bundle as JSON values. It has `scalars`, `samples` and `close`, and
raises what it likes: it is then left out, and the run goes on.
"""

import contextlib
import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from etils import epath

from paligemma import messages, registry
from paligemma.evals.annotated import Sample
from trainers.writers.mlflow import Mlflow
from trainers.writers.tensorboard import TensorBoard
from trainers.writers.wandb import Wandb


class Writer(Protocol):
  """What a run is written to.

  Attributes:
    where: that this is, as a line for the log; "" says nothing.
  """

  where: str

  def scalars(self, step: int, values: Mapping[str, float]) -> None:
    """Writes named numbers of a step."""

  def samples(self, step: int, name: str, found: Sequence[Sample]) -> None:
    """Writes predictions of an evaluator, by its name."""

  def close(self) -> None:
    """Writes what is left; the process may end, or another run begin."""


WRITERS: dict[str, Callable[..., Writer]] = {
  "tensorboard": TensorBoard,
  "wandb": Wandb,
  "mlflow": Mlflow,
}
# Written by trainers/report.py in every run: what resumes one reads it.
JSONL = "jsonl"
_EXTRAS = ("wandb", "mlflow")


def check(names: Sequence[str]) -> None:
  """Checks config.writers.

  Raises:
    ValueError: a writer is unknown, or its package is not installed.
  """
  for name in names:
    registry.lookup({JSONL: None, **WRITERS}, name, "writer of config.writers")
    if name in _EXTRAS and importlib.util.find_spec(name) is None:
      raise ValueError(
        f'config.writers: {name} is not installed: pip install "paligemma'
        f'[{name}]"'
      )


class Writers:
  """The writers of a run; one that fails is left out, with a warning."""

  def __init__(
    self,
    names: Sequence[str],
    folder: epath.Path,
    *,
    first_step: int,
    about: Mapping[str, Any],
    say: Callable[[str], None],
  ):
    """Opens them.

    Args:
      names: as in config.writers.
      folder: of the run.
      first_step: of this start; what follows it may have been written before.
      about: config and bundle of the run, as JSON values.
      say: prints a line.
    """
    self._say = say
    self._open: dict[str, Writer] = {}
    for name in names:
      if name != JSONL:
        with self._left_out_if_it_fails(name):
          writer = WRITERS[name](folder, first_step, about)
          self._open[name] = writer
          if writer.where:
            say(f"{name}: {writer.where}")

  def __bool__(self) -> bool:
    return bool(self._open)

  def scalars(self, step: int, values: Mapping[str, float]) -> None:
    """Writes named numbers of a step."""
    self._each(lambda writer: writer.scalars(step, values))

  def samples(self, step: int, name: str, found: Sequence[Sample]) -> None:
    """Writes predictions of an evaluator, by its name."""
    self._each(lambda writer: writer.samples(step, name, found))

  def close(self) -> None:
    """Closes all."""
    self._each(lambda writer: writer.close())

  def _each(self, action):
    for name, writer in list(self._open.items()):
      with self._left_out_if_it_fails(name):
        action(writer)

  @contextlib.contextmanager
  def _left_out_if_it_fails(self, name) -> Iterator[None]:
    try:
      yield
    except Exception as error:
      if (writer := self._open.pop(name, None)) is not None:
        with contextlib.suppress(Exception):
          writer.close()
      self._say(
        f"warning: writer {name} failed and is left out, metrics.jsonl has all:"
        f" {messages.one_line(error)}"
      )
