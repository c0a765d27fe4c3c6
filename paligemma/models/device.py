"""What is compiled for: the devices of a mesh need not be here."""

import re
from typing import Any

import jax

# Triton needs a GPU since Ampere. Older ones are called "Tesla T4" or so.
_SINCE_AMPERE = re.compile(r"NVIDIA (?!TITAN|Quadro|GeForce (GTX|RTX 20))")


def current() -> Any:
  """Returns a device of the mesh of jax.set_mesh; without, of this process.

  It has a `platform` and a `device_kind`.
  """
  described = jax.sharding.get_abstract_mesh().abstract_device
  return described or jax.devices()[0]


def local() -> jax.Device | None:
  """Returns a device of this process of the same kind; None: it has none."""
  kind = current().device_kind
  devices = jax.local_devices()
  return next((x for x in devices if x.device_kind == kind), None)


def is_gpu() -> bool:
  return current().platform in ("gpu", "cuda")


def takes_triton() -> bool:
  """Returns whether it is an NVIDIA GPU since Ampere."""
  return is_gpu() and bool(_SINCE_AMPERE.match(current().device_kind))
