"""Rows of text as aligned columns."""

from collections.abc import Sequence


def align(rows: Sequence[Sequence[str]]) -> list[str]:
  """One line per row, two spaces between columns; rows are of one length."""
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  return [
    "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip()
    for row in rows
  ]
