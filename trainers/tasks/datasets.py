"""A source with its preprocessing, as checks and pages of data read it."""

import abc
import dataclasses
import time
from typing import Any, NamedTuple

import numpy as np

from paligemma import metrics
from paligemma.data import example_fields, packing, preprocess, sources
from paligemma.data.example_fields import Example

NUM_WITH_IMAGE = 2  # of a sample, however slow that is


class TokenCounts(NamedTuple):
  """Tokens of an example: prompt with bos and newline, answer with eos."""

  prompt: int | None  # None of a caption, which is the answer here
  answer: int | None  # None if the example has no text under answer_key
  supervised: int | None  # None without mask_loss
  cut: bool  # the answer has more tokens than fit or are decoded


@dataclasses.dataclass
class Findings:
  """What was found in a dataset.

  Attributes:
    counts: of the good examples, by index.
    errors: why examples cannot be used, by index.
    notes: what is odd.
    is_complete: whether all examples were read, or only a sample.
    lengths: positions that the text of each takes, if all were read.
  """

  counts: dict[int, TokenCounts] = dataclasses.field(default_factory=dict)
  errors: dict[int, str] = dataclasses.field(default_factory=dict)
  notes: list[str] = dataclasses.field(default_factory=list)
  is_complete: bool = False
  lengths: np.ndarray | None = None


class Token(NamedTuple):
  """A position of a text that is not padding."""

  text: str  # what it writes, or the name of a special token
  kind: str  # "prompt", "supervised", "unsupervised", "caption" or "start"


class Texts(NamedTuple):
  """The texts of an example, to be shown.

  Attributes:
    labelled: each with what it is.
    tokens: of the sequence that the model reads.
    padding: number of further positions.
  """

  labelled: list[tuple[str, str]]
  tokens: list[Token]
  padding: int


@dataclasses.dataclass(frozen=True)
class Dataset(abc.ABC):
  """A source and what its examples go through; each task has its own class.

  Attributes:
    name: "train.main" or "evals.val".
    trains: whether ops see the index of an example, as in batches.train.
    skips: whether a bad example is skipped; else it would end the run.
    limit: only the first so many examples count; None for all.
    decodes: whether the model is to answer, and may not see the answer.
    answer_key: field with the answer or answers, after the ops.
    max_answer: most tokens that are decoded; None if none are.
    metric: reads the examples once all are decoded; None for none.
    note: on what was chosen for it, "" for nothing.
    rows: in which its texts lie side by side; None if each has its own.
  """

  name: str
  source: sources.Source
  preprocess: preprocess.Preprocess
  trains: bool = False
  skips: bool = False
  limit: int | None = None
  decodes: bool = False
  answer_key: str = "suffix"
  max_answer: int | None = None
  metric: metrics.Metric | None = None
  note: str = ""
  rows: packing.Rows | None = None

  @abc.abstractmethod
  def read(self, tok: Any) -> Findings:
    """Reads all examples without their images.

    They are complete unless the source cannot give its texts alone (then
    empty), or ops need the image.
    """

  @abc.abstractmethod
  def count(self, tok: Any, prepared: Example) -> TokenCounts:
    """Returns the counts of an example after the ops, as training cuts it.

    Raises:
      ValueError: a text cannot be used.
    """

  def check(
    self, tok: Any, index: int, example: Example, prepared: Example
  ) -> None:
    """Raises a ValueError if what is learned of an example would be wrong."""
    del tok, index, example, prepared

  def odd(self, example: Example, index: int) -> list[str]:
    """Returns notes on what is odd in an example."""
    del example, index
    return []

  def located(self) -> list[int]:
    """Returns examples that a sample must begin with."""
    return []

  @abc.abstractmethod
  def show(self, tok: Any, prepared: Example, row: dict[str, Any]) -> Texts:
    """Returns what a page shows of an example after the ops, and of its row."""

  @property
  @abc.abstractmethod
  def rooms(self) -> tuple[tuple[str, int | None], ...]:
    """What `measure` counts, and the most that fits of each."""

  @abc.abstractmethod
  def measure(self, tok: Any, prepared: Example) -> tuple[int, ...]:
    """Returns how many tokens an example has, whether they fit or not.

    Raises:
      ValueError: it lacks a text.
    """

  def describe_image(self) -> str:
    """Returns how the images of an example are resized; "" without any."""
    through = self.preprocess
    if through.res is None:
      return ""
    frames = f"{through.frames} frames of " if through.frames else ""
    return f"{frames}{through.res}x{through.res}, resize {through.resize}"

  def images(self, row: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Returns the images of a row, float[H, W, 3] in [-1, 1]."""
    image = row.get("image", np.empty((0, 1, 1, 3)))
    return list(image if image.ndim == 4 else [image])

  def example(self, index: int) -> Example:
    """The raw example of that index, as the ops see it."""
    return self.indexed(self.source[index], index)

  def indexed(self, example: Example, index: int) -> Example:
    """An example of the source with what ops see of its index."""
    return {**example, "_index": index, "_epoch": 0} if self.trains else example

  def prepare(self, example: Example, index: int) -> Example:
    """The example after the ops, the random ones as in batches.evaluation."""
    rng = np.random.default_rng(index)
    return self.preprocess.prepare(example, rng, self.answer_key)

  def draw(self, num: int) -> list[int]:
    """Indices of at most so many random examples, always the same."""
    size = min(len(self.source), self.limit or len(self.source))
    rng = np.random.default_rng(0)
    return rng.choice(size, min(num, size), replace=False).tolist()

  def sample(self, tok: Any, *, num: int, seconds: float) -> Findings:
    """Looks at examples, at least NUM_WITH_IMAGE and these with their image.

    Raises:
      ValueError: as `check`; arrays are not those of padding.
    """
    drawn, first = self.draw(max(num, NUM_WITH_IMAGE)), self.located()
    drawn = first + [index for index in drawn if index not in first]
    num_with_image = len(first) + NUM_WITH_IMAGE
    found, end = Findings(), time.perf_counter() + seconds
    for number, index in enumerate(drawn):
      with_image = number < num_with_image
      if not with_image and time.perf_counter() > end:
        break
      try:
        example = self.example(index)
        prepared = self.prepare(example, index)
        found.counts[index] = self.count(tok, prepared)
        if with_image:
          row = self.preprocess(example, np.random.default_rng(index))
      except ValueError as error:
        found.counts.pop(index, None)
        found.errors[index] = str(error)
        continue
      self.check(tok, index, example, prepared)
      if with_image:
        self._check_arrays(example_fields.where(example), row)
        found.notes = found.notes or self.odd(example, index)
    return found

  def _check_arrays(self, where, row):
    """Raises if the image is not finite, or padding cannot be stacked on it."""
    if not all(np.isfinite(x).all() for x in row.values()):
      raise ValueError(
        f"{self.name}: {where}: the preprocessed image is not finite"
      )
    padding = self.preprocess.padding()
    if _shapes(row) != _shapes(padding):
      raise ValueError(
        f"{self.name}: {where}: the row has {_shapes(row)}, a row of padding "
        f"{_shapes(padding)}; they must be alike to be stacked"
      )
    for key in ("mask_input", "mask_loss"):
      if key in padding and padding[key].any():
        raise ValueError(f"{self.name}: {key} of a row of padding is not all 0")


def _shapes(row):
  shown = (f"{k} {v.dtype}{list(v.shape)}" for k, v in sorted(row.items()))
  return ", ".join(shown)
