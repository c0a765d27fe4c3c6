"""What a task consists of."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
from ml_collections import ConfigDict

from paligemma import io
from paligemma.data import preprocess
from trainers.tasks import datasets

# Parameters as a tree, a batch and a key for dropout -> the sum of the losses
# of its examples, those with `_mask`, and measurements, float32[]. The sum is
# times `_weight`, float32[B], where a batch has it: one value for all.
Loss = Callable[
  [Mapping[str, Any], Mapping[str, jax.Array], jax.Array],
  tuple[jax.Array, dict[str, jax.Array]],
]


class Task(Protocol):
  """A task; all methods get a complete config.

  Attributes:
    dataset: class of the sources with their preprocessing.
    evaluators: kind -> class of the evaluators that fit.
    is_additive: whether loss and measurements of a batch are the sums of those
      of its parts, so that step.py may split it into microbatches. If not, the
      loss itself does as config.accumulate_steps says.
  """

  dataset: type[datasets.Dataset]
  evaluators: Mapping[str, type]
  is_additive: bool

  def make_model(self, config: ConfigDict) -> io.Model:
    """Returns the model that config.model describes."""

  def make_tokenizer(self, config: ConfigDict, model: io.Model) -> Any:
    """Opens the tokenizer and checks that the model has a row for every id.

    Raises:
      ValueError: the file is unusable, or names more ids than the model has.
    """

  def make_preprocess(
    self, config: ConfigDict, tok: Any, *, train: bool, **own: Any
  ) -> preprocess.Preprocess:
    """Returns what makes the arrays of an example.

    Args:
      config, tok: of the run.
      train: whether they are those that the loss reads.
      **own: fields in the place of the config's; `ops` among them.
    """

  def batch_shapes(
    self, config: ConfigDict, *, decodes: bool = False
  ) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns all that the loss reads of a batch, or decode.generate.

    Raises:
      ValueError: nothing can be learned from batches of this size, or nothing
        is decoded.
    """

  def make_loss(self, config: ConfigDict, model: io.Model) -> Loss:
    """Returns the loss of a batch, a pure function."""

  def teach_from(self, config: ConfigDict, total_steps: int) -> int | None:
    """Returns `teach_from` of step.make_step for a run of so many steps."""

  def count_flops(
    self,
    config: ConfigDict,
    model: io.Model,
    shapes: Mapping[str, Any],
    trainable: Mapping[str, Any],
    supervised: float | None = None,
  ) -> int:
    """Returns the FLOPs of a step, see paligemma/planning/flops.py.

    Args:
      config, model: of the run.
      shapes: of all parameters by name.
      trainable: has the names of those that train.
      supervised: tokens, where some may not be; None: all of the text.
    """
