"""Device memory of a compiled program, and the devices it fits."""

import math
import re
from typing import Any, NamedTuple

GIB = 2**30

# GiB that a program may take on one device. TPUs: the limit that their compiler
# names when a program exceeds it (libtpu 0.0.51); v4 counts per core. GPUs:
# 0.5 GiB less than CUDA reports (14.7, 39.4, 79.1, 79.1 and 139.8 GiB); of a
# T4's 16 GB, error correction takes some.
USABLE_GIB = {
  "v4": 15.25,
  "v5e": 15.75,
  "v5p": 95.73,
  "v6e": 31.24,
  "T4": 14.2,
  "A100": 38.9,  # 40 GB
  "A100-80GB": 78.6,
  "H100": 78.6,
  "H200": 139.3,
}


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
  """Returns for each device of USABLE_GIB whether so many bytes fit."""
  return {name: peak <= usable * GIB for name, usable in USABLE_GIB.items()}
