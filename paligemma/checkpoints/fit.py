"""Gives the leaves of a checkpoint the layout and resolution of a model."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from paligemma import messages, tree
from paligemma.checkpoints import leaves, quantized_leaves, resample
from paligemma.checkpoints.checkpoint import Checkpoint
from paligemma.parameters import (
  POSITIONS,
  SECOND_TEXT_POSITIONS,
  TEXT_POSITIONS,
)


def fit(
  checkpoint: Checkpoint, expected: Mapping[str, Any]
) -> dict[str, leaves.Leaf | quantized_leaves.Pair]:
  """Stacks layers or takes them apart, and resamples the position embedding.

  Args:
    checkpoint: From formats.open.
    expected: Name -> shape, or object with a `shape`, of every parameter.

  Returns:
    Leaves of exactly the names and shapes of `expected`; Pairs where the
    checkpoint is quantized.

  Raises:
    ValueError: Leaves are missing, left over, of another shape, or no floating
      point numbers; lists those that differ.
  """
  fitted = leaves.layered_like(_one_position_each(checkpoint), expected)
  fitted = quantized_leaves.paired(fitted)
  if POSITIONS in fitted and POSITIONS in expected:
    wanted = expected[POSITIONS]
    rows, count, _ = getattr(wanted, "shape", wanted)
    # NaFlex has a grid, and resizes it for each image.
    if rows == fitted[POSITIONS].shape[0] == 1:
      fitted[POSITIONS] = resample.resample(fitted[POSITIONS], count)
  differences = tree.compare(expected, fitted) or [
    f"{name}: found dtype {leaf.dtype}, expected floating point numbers"
    for name, leaf in fitted.items()
    if not jnp.issubdtype(leaf.dtype, jnp.floating)
  ]
  if differences:
    raise ValueError(
      f"{checkpoint.path}: does not fit the model, {len(differences)} leaves "
      f"differ: {messages.listed(differences, 20)}"
    )
  return dict(sorted(fitted.items()))


def _one_position_each(checkpoint):
  """Adds up both position embeddings that some old text towers have.

  Source: big_vision, models/proj/image_text/text_transformer.py, load.
  """
  found = dict(checkpoint.leaves)
  if (second := found.pop(SECOND_TEXT_POSITIONS, None)) is None:
    return found
  first = found.get(TEXT_POSITIONS)
  if first is None or first.shape != second.shape:
    raise ValueError(
      f"{checkpoint.path}: {SECOND_TEXT_POSITIONS} has shape {second.shape}, "
      f"expected that of {TEXT_POSITIONS}, which it is added to"
    )
  both = leaves.Computed(
    first.shape, first.dtype, lambda at: (first.read() + second.read())[at]
  )
  return found | {TEXT_POSITIONS: leaves.Leaf.of(both)}
