"""Several short texts in one row, so that little of a batch is padding.

All texts are measured once, before the first step, and distributed over rows.
What row i holds is then known without the rows before it, so shuffling,
resuming, processes and workers are those of batches.py, and an epoch has a
known number of steps. (The packers of grain 0.2.18 take a stream: their rows
depend on the number of processes and workers.)

The rows hold the same texts in every epoch; their order changes. A model that
keeps the texts apart learns from a row what it learns from them one by one.
"""

import bisect
import dataclasses
import logging
from collections.abc import Sequence

import numpy as np

from paligemma import messages
from paligemma.data import preprocess as preprocess_lib
from paligemma.data import sequence
from paligemma.data import sources as sources_lib
from paligemma.data.example_fields import Example

_log = logging.getLogger(__name__)


def distribute(
  lengths: Sequence[int], size: int, *, seed: int = 0
) -> list[list[int]]:
  """Distributes texts over rows: each goes into the fullest one with room.

  Args:
    lengths: Of the texts, in tokens, from 1 to `size`.
    size: Of a row, in tokens.
    seed: Of the order in which they are taken.

  Returns:
    The indices of the texts of each row.

  Source: best fit (Johnson 1974), whose rows are at most 1.7 times as many as
  needed, in practice a few percent more.
  """
  rows, least = [], min(lengths, default=0)
  open_rows = []  # (room, index), ascending, of those with room for the least
  order = np.random.default_rng(seed).permutation(len(lengths))
  for text in order.tolist():
    at = bisect.bisect_left(open_rows, (lengths[text],))
    if at < len(open_rows):
      room, row = open_rows.pop(at)
    else:
      room, row = size, len(rows)
      rows.append([])
    rows[row].append(text)
    room -= lengths[text]
    if room >= least:
      bisect.insort(open_rows, (room, row))
  return rows


def join(texts: Sequence[sequence.Arrays], size: int) -> sequence.Arrays:
  """Puts the arrays of several texts side by side, without their padding.

  For two texts of `sequence.training`, and size 8:

      text          2  5  6  1  2  7  1  0
      segment_ids   1  1  1  1  2  2  2  0
      mask_ar       1  1  1  1  1  1  1  1   1 where a text begins
      mask_input    1  1  1  1  1  1  1  0
      mask_loss     0  1  1  1  0  1  1  0   never where a text begins

  Args:
    texts: Of `sequence.training`.
    size: Of the row, text_len + 1.

  Returns:
    Arrays of the same names and dtypes, and segment_ids int32[size]; truncated,
    if they have it, is their sum.

  Raises:
    ValueError: The row has no room for them.
  """
  lengths = [int(text["mask_input"].sum()) for text in texts]
  if sum(lengths) > size:
    raise ValueError(
      f"{len(texts)} texts have {sum(lengths)} tokens, a row has room for "
      f"{size}; was the file changed since they were measured?"
    )
  padding = size - sum(lengths)
  fill = {"text": 0, "mask_ar": 1, "mask_input": False, "mask_loss": 0}
  row = {
    key: np.pad(
      np.concatenate(
        [text[key][:n] for text, n in zip(texts, lengths, strict=True)]
      ),
      (0, padding),
      constant_values=value,
    )
    for key, value in fill.items()
  }
  starts = np.cumsum([0, *lengths[:-1]])
  row["mask_ar"][starts] = 1
  row["mask_loss"][starts] = 0
  ids = np.repeat(np.arange(1, len(texts) + 1, dtype=np.int32), lengths)
  row["segment_ids"] = np.pad(ids, (0, padding))
  if "truncated" in texts[0]:
    row["truncated"] = np.sum([x["truncated"] for x in texts], dtype=np.int32)
  return row


class Rows:
  """The rows of a source, as a source.

  An example is {"texts": raw examples}; `Preprocess` makes the arrays.

  Args:
    source: Of texts alone.
    preprocess: Of each text, of the training layout.
    seed: Of the distribution.
    on_bad: Key of batches.ON_BAD; with "skip" unusable texts are in no row.

  Attributes:
    source: What it was made from.

  Raises:
    ValueError: A text cannot be used, none can, or an op draws at random: the
      length of a text would change from epoch to epoch.
  """

  def __init__(
    self,
    source: sources_lib.Source,
    preprocess: preprocess_lib.Preprocess,
    *,
    seed: int,
    on_bad: str,
  ):
    self.source = source
    indices, lengths, rng = [], [], np.random.default_rng(0)
    drawn = rng.bit_generator.state
    for index in range(len(source)):
      try:
        example = source[index]
        arrays = preprocess(example, rng)
      except ValueError as error:
        if on_bad == "stop":
          raise
        _log.warning("left out a bad text: %s", messages.one_line(error))
        continue
      if rng.bit_generator.state != drawn:
        raise ValueError(
          f"{example['_where']}: an op draws at random, so that the length of "
          "a text changes from epoch to epoch; leave it out, or set "
          "train.packing=False"
        )
      indices.append(index)
      lengths.append(int(arrays["mask_input"].sum()))
    if not indices:
      raise ValueError(f"{source}: none of {len(source)} texts can be used")
    self._size, self._num_tokens = preprocess.text_len + 1, sum(lengths)
    rows = distribute(lengths, self._size, seed=seed)
    # Two arrays pickle smaller than lists.
    self._indices = np.array(indices)[np.concatenate(rows)]
    self._ends = np.cumsum([len(row) for row in rows])

  def __len__(self) -> int:
    return len(self._ends)

  def __getitem__(self, index: int) -> Example:
    end = self._ends[index]
    start = self._ends[index - 1] if index else 0
    texts = [self.source[int(i)] for i in self._indices[start:end]]
    return {"texts": texts, "_where": f"{self}: row {index}"}

  def __str__(self) -> str:
    return str(self.source)

  def describe(self) -> str:
    """Returns a line on how full the rows are."""
    used = self._num_tokens / (len(self) * self._size)
    return (
      f"{len(self._indices):,} texts in {len(self):,} rows of {self._size} "
      f"tokens, {used:.1%} full"
    )


@dataclasses.dataclass(frozen=True)
class Preprocess:
  """Turns a row of Rows into arrays.

  Attributes:
    of_text: What makes the arrays of a text.
  """

  of_text: preprocess_lib.Preprocess

  def __call__(
    self, example: Example, rng: np.random.Generator
  ) -> sequence.Arrays:
    """Returns the arrays of `join`."""
    texts = [self.of_text(text, rng) for text in example["texts"]]
    return join(texts, self.of_text.text_len + 1)

  def padding(self) -> sequence.Arrays:
    """Returns zeros with the keys and shapes of every row's arrays."""
    arrays = self.of_text.padding()
    return {**arrays, "segment_ids": np.zeros_like(arrays["text"])}
