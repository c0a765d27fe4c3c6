"""Contestants in turns, and the floor: what the machine allows at best."""

import functools
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

_SIDE = 2048
_ARRAY_BYTES = 2**29

Contestants = Mapping[Any, Callable[[], Any]]  # each waits for its work's end
Spread = dict[str, float]  # median, min and max


def seconds(
  contestants: Contestants,
  runs: int,
  *,
  clock: Callable[[], float] = time.perf_counter,
) -> dict[Any, list[float]]:
  """Times every contestant `runs` times, in turns, after one run to warm up.

  So what slows the machine slows all alike.
  """
  for work in contestants.values():
    work()
  taken = {name: [] for name in contestants}
  for _ in range(runs):
    for name, work in contestants.items():
      start = clock()
      work()
      taken[name].append(clock() - start)
  return taken


def rates(
  contestants: Contestants, amount: float, runs: int, **options: Any
) -> dict[str, Spread]:
  """Name -> how much of an amount it does a second; options as of `seconds`."""
  taken = seconds(contestants, runs, **options)
  return {n: spread([amount / s for s in each]) for n, each in taken.items()}


def spread(values: Sequence[float]) -> Spread:
  """The median, min and max of some values."""
  median = statistics.median(values)
  return {"median": median, "min": min(values), "max": max(values)}


def compete(
  what: str,
  figure: str,
  contestants: Contestants,
  *,
  runs: int,
  amount: float,
  phases: Sequence[tuple[float, float]],
  dtype: str,
  repeats: int = 1,
  version: str | None = None,
) -> dict[str, Any]:
  """The part of a result that training and decoding have in common.

  Args:
    what, figure: names of the benchmark and of its rate.
    contestants: "ours", and those of the peer by dtype.
    runs: of each; one repeats its phases, (FLOPs, bytes), so many times.
    amount: examples or tokens of the phases.
    dtype: of our products.
    version: of the peer.
  """
  rate = rates(contestants, amount * repeats, runs)
  machine = machine_rates(dtype)
  ours = rate.pop("ours") | {"dtype": dtype}
  ours["floor"] = amount / floor(phases, machine)
  flops, size = map(sum, zip(*phases, strict=True))
  result = {"what": what, "hardware": hardware(), figure: ours}
  result |= {"flops": flops, "bytes": size, **machine}
  if rate:
    best = max(each["median"] for each in rate.values())
    ratios = {"ratio_to_best": ours["median"] / best}
    ratios |= {"floor_to_best": ours["floor"] / best}
    result["peer"] = {"version": version, figure: rate, **ratios}
  return result


def hardware() -> str:
  """One line on the devices and their number."""
  device = jax.devices()[0]
  if device.platform != "cpu":
    return f"{jax.device_count()} x {device.device_kind}"
  return f"{os.cpu_count()} x {platform.processor() or 'CPU'}"


def machine_rates(dtype: str) -> dict[str, float]:
  """Measures FLOPs/s of a square matrix product and bytes/s of reading.

  Each is the best of five runs. The product is summed and given in float32, the
  fastest way: a CPU takes twice as long to give bfloat16.
  """
  x = jax.random.normal(jax.random.key(0), (_SIDE, _SIDE), dtype)
  multiply = functools.partial(jnp.matmul, preferred_element_type=jnp.float32)
  flops = 2 * _SIDE**3 / _best(jax.jit(multiply), x, x)
  x = jnp.ones(_ARRAY_BYTES // 4, jnp.float32)
  reading = _ARRAY_BYTES / _best(jax.jit(jnp.sum), x)
  return {"flops_per_s": flops, "bytes_per_s": reading}


def floor(
  phases: Iterable[tuple[float, float]], rates: Mapping[str, float]
) -> float:
  """Seconds that phases of (FLOPs, bytes), one after the other, must take."""
  return sum(
    max(flops / rates["flops_per_s"], size / rates["bytes_per_s"])
    for flops, size in phases
  )


def _best(function, *arguments):
  work = functools.partial(function, *arguments)
  taken = seconds({"": lambda: jax.block_until_ready(work())}, 5)
  return min(taken[""])
