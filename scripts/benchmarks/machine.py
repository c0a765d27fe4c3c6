"""What the machine can do: the rates that a floor is computed from."""

import functools
import os
import platform
from collections.abc import Iterable, Mapping

import jax
import jax.numpy as jnp

from scripts.benchmarks import turns

_SIDE = 2048
_ARRAY_BYTES = 2**29


def hardware() -> str:
  """One line on the devices and their number."""
  device = jax.devices()[0]
  if device.platform != "cpu":
    return f"{jax.device_count()} x {device.device_kind}"
  return f"{os.cpu_count()} x {platform.processor() or 'CPU'}"


def rates(dtype: str) -> dict[str, float]:
  """Measures FLOPs/s of a square matrix product and bytes/s of reading.

  Each is the best of five runs. The product is summed and given in float32, the
  fastest way: a CPU takes twice as long to give bfloat16.
  """
  x = jax.random.normal(jax.random.key(0), (_SIDE, _SIDE), dtype)
  multiply = functools.partial(jnp.matmul, preferred_element_type=jnp.float32)
  flops = 2 * _SIDE**3 / _best(jax.jit(multiply), x, x)
  x = jnp.ones(_ARRAY_BYTES // 4, jnp.float32)
  return {
    "flops_per_s": flops,
    "bytes_per_s": _ARRAY_BYTES / _best(jax.jit(jnp.sum), x),
  }


def floor(
  phases: Iterable[tuple[float, float]], rates: Mapping[str, float]
) -> float:
  """Seconds that phases of (FLOPs, bytes), one after the other, must take."""
  return sum(
    max(flops / rates["flops_per_s"], size / rates["bytes_per_s"])
    for flops, size in phases
  )


def _best(function, *arguments):
  def work():
    jax.block_until_ready(function(*arguments))

  return min(turns.seconds({"": work}, 5)[""])
