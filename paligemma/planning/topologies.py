"""The devices of a TPU slice that is not there, to compile for."""

import re

import jax
from jax.experimental import topologies

from paligemma.planning import memory

CHIPS = tuple(name for name in memory.USABLE_GIB if name.startswith("v"))


def devices(name: str) -> list[jax.Device]:
  """Describes a slice through libtpu, the compiler of TPUs.

  Programs can be compiled for a mesh of these devices, but not run. Away from a
  TPU, libtpu waits for a metadata server unless the environment has
  TPU_SKIP_MDS_QUERY=1, TPU_WORKER_HOSTNAMES=localhost and some
  TPU_ACCELERATOR_TYPE.

  Args:
    name: A chip of CHIPS and the sides of the slice: "v5e:4x4", "v5p:4x4x4".

  Raises:
    ValueError: No such slice, or libtpu is not installed.
  """
  if not re.fullmatch(rf"({'|'.join(CHIPS)}):\d+x\d+(x\d+)?", name):
    raise ValueError(
      f'unknown topology "{name}", expected a chip ({", ".join(CHIPS)}) and '
      "the sides of the slice, for example v5e:4x4 or v5p:4x4x4"
    )
  try:
    return topologies.get_topology_desc(name, platform="tpu").devices
  except jax.errors.JaxRuntimeError as error:
    raise ValueError(f'topology "{name}": {error}') from None
  except RuntimeError as error:
    raise ValueError(
      f'topology "{name}" needs the TPU compiler: pip install -e ".[plan]" '
      f"({error})"
    ) from None
