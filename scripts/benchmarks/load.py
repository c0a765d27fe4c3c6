"""Loading a checkpoint of full size, each time in a process of its own."""

import concurrent.futures
import math
import multiprocessing
import pathlib
import sys
import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from paligemma import init, io
from paligemma.checkpoints import leaves
from paligemma.models import paligemma as paligemma_model
from scripts.benchmarks import contest


class Tiled:
  """A tensor of any size that repeats one block of random numbers."""

  def __init__(self, shape, dtype):
    self.shape, self.dtype = shape, jnp.dtype(dtype)
    block = np.random.default_rng(0).standard_normal(2**20, np.float32) / 64
    self._row = np.resize(block, math.prod(shape[1:])).astype(self.dtype)

  def __getitem__(self, index):
    start, stop, _ = index.indices(self.shape[0])
    rows = np.broadcast_to(self._row, (stop - start, self._row.size))
    return rows.reshape(stop - start, *self.shape[1:])


def _write_random(path, format, *, variant, res, dtype):
  """Writes a checkpoint of full size, a block at a time."""
  model = paligemma_model.make(variant)
  arrays = {
    name: leaves.Leaf.of(Tiled(leaf.shape, dtype))
    for name, leaf in init.shapes(model, res).items()
  }
  io.write(path, arrays, io.model_fields(model), format=format)


def _load_once(path, load_dtype, quantize):
  """Returns what one load took, as measured by the kernel."""
  jnp.zeros(()).block_until_ready()
  epath.Path("/proc/self/clear_refs").write_text("5")  # peak := present
  before = _memory()["VmHWM"]
  start = time.perf_counter()
  _, params = io.load(path, load_dtype, quantize=quantize)
  arrays = jax.block_until_ready(jax.tree.leaves(params))
  seconds = time.perf_counter() - start
  return {
    "seconds": seconds,
    "peak_bytes": _memory()["VmHWM"] - before,
    "array_bytes": sum(array.nbytes for array in arrays),
  }


def measure(
  folder: str,
  *,
  format: str,
  variant: str,
  res: int,
  dtype: str,
  load_dtype: str | None,
  quantize: str | None,
  runs: int,
) -> dict[str, Any]:
  """Median, minimum and maximum of each figure over several processes."""
  suffix = ".npz" if format == "npz" else ""
  path = epath.Path(folder) / f"{variant}-{res}-{format}-{dtype}{suffix}"
  if not path.exists():
    _say(f"writing {path}")
    _write_random(path, format, variant=variant, res=res, dtype=dtype)
  results = []
  spawn = multiprocessing.get_context("spawn")
  for i in range(runs + 1):
    with concurrent.futures.ProcessPoolExecutor(1, spawn) as pool:
      load = pool.submit(_load_once, str(path), load_dtype, quantize)
      results.append(load.result())
    _say(f"run {i}: {_line(results[-1])}")
  array_bytes = results[0]["array_bytes"]
  floors = {
    "seconds": _copy_seconds(array_bytes),
    "peak_bytes": array_bytes,
    "array_bytes": array_bytes,
  }
  summary = {
    key: {
      **contest.spread([r[key] for r in results[1:]]),
      "dtype": quantize or load_dtype or dtype,
      "floor": floor,
    }
    for key, floor in floors.items()
  }
  return {
    "what": "load",
    "format": format,
    "variant": variant,
    "dtype": dtype,
    "load_dtype": quantize or load_dtype or dtype,
    "file_bytes": _bytes_below(path),
    "hardware": contest.hardware(),
    **summary,
  }


def describe(result: Mapping[str, Any]) -> str:
  """One line of what `measure` returned."""
  keys = ("seconds", "peak_bytes", "array_bytes")
  medians = {key: result[key]["median"] for key in keys}
  return (
    f"{result['variant']} {result['format']} {result['dtype']} -> "
    f"{result['load_dtype']}: {_line(medians)}; floor "
    "{floor:.2f} s; seconds from {min:.2f} to {max:.2f}"
  ).format(**result["seconds"])


def _memory():
  """Field -> bytes of what the kernel says about this process."""
  lines = epath.Path("/proc/self/status").read_text().splitlines()
  fields = (line.split() for line in lines if line.endswith(" kB"))
  return {name.rstrip(":"): int(kb) * 1024 for name, kb, _ in fields}


def _copy_seconds(count):
  """Seconds that copying so many bytes into new memory takes."""
  source = np.ones(2**28, np.uint8)
  start = time.perf_counter()
  for _ in range(4):
    source.copy()
  return (time.perf_counter() - start) / 2**30 * count


def _bytes_below(path):
  path = pathlib.Path(path)
  files = (path, *path.rglob("*"))
  return sum(file.stat().st_size for file in files if file.is_file())


def _line(result):
  beyond = result["peak_bytes"] - result["array_bytes"]
  return (
    f"{result['seconds']:.2f} s, arrays {_gib(result['array_bytes'])}, peak "
    f"{_gib(result['peak_bytes'])}, beyond the arrays {_gib(beyond)} "
    f"({beyond / result['array_bytes']:.1%})"
  )


def _gib(count):
  return f"{count / 2**30:.2f} GiB"


def _say(line):
  print(line, file=sys.stderr, flush=True)
