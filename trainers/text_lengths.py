"""Lengths that the texts of a batch are padded to: a program is compiled each.

A batch is padded to the smallest of these that holds its longest text. Its
examples, their order and their losses stay as they are; what is saved are the
products of padding.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

# Arrays of a batch with a position more than the model reads.
KEYS = ("text", "mask_ar", "mask_input", "mask_loss")

_MOST = 4  # a program of a 3B model takes minutes to compile
_MULTIPLE = 16  # as accelerators tile
_SAVED = 0.1  # of the text, by which one more has to shorten it
_BATCHES = 1024  # drawn to see their longest texts


def choose(
  lengths: Sequence[np.ndarray | None],
  weights: Sequence[float],
  *,
  batch_size: int,
  text_len: int,
) -> tuple[tuple[int, ...], int]:
  """Returns a few lengths, ascending, and which of them the longest text needs.

  At most four shorten the texts of shuffled batches as far as they can. The
  last is text_len, for what random ops may write. Without the lengths of some
  source they are the quarters of text_len.

  Args:
    lengths: Positions that each text takes, by source; None if not known.
    weights: Of the sources in a batch.
    batch_size: Examples of a batch.
    text_len: Positions that a text can have.
  """
  if any(known is None or not len(known) for known in lengths):
    quarters = [_rounded(text_len * i / 4, text_len) for i in range(1, 5)]
    return tuple(sorted({*quarters})), text_len
  rng = np.random.default_rng(0)
  shares = np.array(weights) / np.sum(weights)
  sources = rng.choice(len(lengths), (_BATCHES, batch_size), p=shares)
  texts = np.empty(sources.shape, int)
  for source, known in enumerate(lengths):
    chosen = sources == source
    texts[chosen] = rng.choice(known, chosen.sum())
  longest = [_rounded(length, text_len) for length in texts.max(axis=1)]
  ever = max(_rounded(max(known), text_len) for known in lengths)
  found = [ever]
  while len(found) < _MOST:
    mean, new = min(
      (np.mean(_padded(longest, [*found, new])), new)
      for new in {*longest, ever}
    )
    if mean > (1 - _SAVED) * np.mean(_padded(longest, found)):
      break
    found.append(new)
  return tuple(sorted({*found, text_len})), ever


def of_batch(mask_input: np.ndarray | None, lengths: Sequence[int]) -> int:
  """Returns the length that the batch of all processes is padded to.

  All processes must call it.

  Args:
    mask_input: bool[B, L+1], of this process; None if it has no batch.
    lengths: To choose from, ascending.
  """
  needed = 0
  if mask_input is not None and mask_input.any():
    needed = int(mask_input.any(axis=0).nonzero()[0][-1])  # that is no input
  if jax.process_count() > 1:
    needed = int(multihost_utils.process_allgather(np.int32(needed)).max())
  return next(length for length in lengths if length >= needed)


def describe(lengths: Sequence[int]) -> str:
  """Returns a line on the lengths, for the table of the data."""
  *shorter, text_len = map(str, lengths)
  several = f"{', '.join(shorter)} or " if shorter else ""
  return (
    f"texts are padded to {several}{text_len} tokens, as the longest of a "
    "batch needs (train.text_buckets)"
  )


class Steps:
  """The step for texts of any of the lengths, compiled when it is needed."""

  def __init__(
    self,
    compile_step: Callable[[int], jax.stages.Compiled],
    longest: int,
    compiled: jax.stages.Compiled,
  ):
    """Takes what compiles, and the step that is compiled, for `longest`."""
    self._compile, self._compiled = compile_step, {longest: compiled}
    self._last = compiled

  def __call__(self, state: Any, frozen: Any, batch: Mapping[str, Any]) -> Any:
    length = batch["text"].shape[1] - 1
    if length not in self._compiled:
      self._compiled[length] = self._compile(length)
    self._last = self._compiled[length]
    return self._last(state, frozen, batch)

  def as_text(self) -> str:
    """Returns the program of the last call."""
    return self._last.as_text()


def _rounded(length, text_len):
  return min(-(-max(int(length), 1) // _MULTIPLE) * _MULTIPLE, text_len)


def _padded(longest, lengths):
  lengths = np.sort(lengths)
  return lengths[np.searchsorted(lengths, longest)]
