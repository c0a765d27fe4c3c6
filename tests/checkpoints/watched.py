"""A tensor of a file that tells what was read of it."""

import dataclasses

import numpy as np


@dataclasses.dataclass
class Watched:
  """A tensor that keeps how many of its rows were read at a time."""

  array: np.ndarray
  read: list[int] = dataclasses.field(default_factory=list)

  @property
  def shape(self):
    return self.array.shape

  @property
  def dtype(self):
    return self.array.dtype

  def __getitem__(self, index):
    rows = self.array[index]
    self.read.append(len(rows))
    return rows
