"""The memory of a GPU: what JAX has to be told before it first looks for one.

XLA_PYTHON_CLIENT_MEM_FRACTION is the share that it takes at its start, and
within which it works. Its default, 0.75, leaves 3.7 of the 14.7 GiB of a T4
unused; FRACTION leaves 0.4 for CUDA itself.

Nothing else is set. Memory is taken at once (XLA_PYTHON_CLIENT_PREALLOCATE), as
pieces that come and go leave gaps which a large one may not fit. Two programs
on one GPU have to share it: give each a fraction of its own.
"""

import os

FRACTION = "0.97"


def configure() -> None:
  """Lets JAX use nearly all memory of a GPU, unless the user says how much."""
  os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", FRACTION)
