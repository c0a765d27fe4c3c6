"""Device memory of a compiled program, and the devices it fits."""

import math
import re
from typing import Any, NamedTuple

from paligemma.planning.chips import CHIPS

GIB = 2**30


class Memory(NamedTuple):
  """Bytes on one device while a program runs.

  Attributes:
    arguments: Parameters, optimizer state, batch.
    temporaries: Activations, gradients.
    outputs: Results that are not written over an argument.
    program: Its instructions, which neither `peak` nor the compiler's own limit
      counts.
  """

  arguments: int
  temporaries: int
  outputs: int = 0
  program: int = 0

  @property
  def peak(self) -> int:
    """All three, as the temporaries are allocated in one block.

    The compiler's `peak_memory_in_bytes` is not used: for TPUs it counts memory
    that is not HBM (54 MB for a program that needs 12), for large programs it
    is 0.1% below this.
    """
    return self.arguments + self.temporaries + self.outputs


def bytes_per_device(leaf: Any) -> int:
  """Returns the bytes on one device of a leaf with dtype and sharding."""
  shape = leaf.sharding.shard_shape(leaf.shape)
  return math.prod(shape) * leaf.dtype.itemsize


def of(compiled: Any) -> Memory:
  """Returns the memory of a compiled function, as its compiler states it."""
  found = compiled.memory_analysis()
  return Memory(
    arguments=found.argument_size_in_bytes,
    temporaries=found.temp_size_in_bytes,
    outputs=found.output_size_in_bytes - found.alias_size_in_bytes,
    program=found.generated_code_size_in_bytes,
  )


def wanted(error: Exception) -> float | None:
  """Returns the bytes that a program needs which the compiler refused.

  Arguments included; None if the error has another reason.
  """
  message = str(error)
  if "RESOURCE_EXHAUSTED" not in message:
    return None
  for pattern in (
    r"required for HLO temporaries \(([\d.]+)([KMGT])\)",
    r"Used ([\d.]+)([KMGT]) of [\d.]+[KMGT] hbm",
  ):
    if found := re.search(pattern, message):
      return float(found[1]) * 2 ** (10 * " KMGT".index(found[2]))
  return None


def fits(peak: float) -> dict[str, bool]:
  """Returns for each chip of CHIPS whether so many bytes fit."""
  return {n: peak <= chip.usable_gib * GIB for n, chip in CHIPS.items()}
