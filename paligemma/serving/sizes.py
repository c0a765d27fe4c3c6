"""Sizes of the batches that prompts and pictures are read in."""

from collections.abc import Sequence
from typing import Any

TOGETHER = 4  # at most; more would keep answers under way waiting


def padded(rows: Sequence[Any]) -> list[Any]:
  """Returns 1 row or TOGETHER, so that programs are few: the first again."""
  return [*rows, *rows[:1] * (TOGETHER - len(rows))] if rows[1:] else [*rows]
