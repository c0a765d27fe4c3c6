"""The collectives of a compiled program: their kinds, bytes and repetitions.

XLA's own cost analysis names no collective and counts the body of a loop once.
"""

import math
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import jax
from jax.sharding import NamedSharding, PartitionSpec

from paligemma.planning import hlo as hlo_lib

KINDS = (
  *("all-gather", "all-reduce", "reduce-scatter", "all-to-all"),
  "collective-permute",
)


class Collective(NamedTuple):
  """One collective operation of a program.

  Attributes:
    kind: One of KINDS.
    sizes: Numbers of elements of the arrays it works on, before a
      reduce-scatter and after an all-gather: the larger side.
    num_bytes: The bytes of all of these on one device.
    times: How often the loops around it run it.
    is_synchronous: Whether nothing is computed meanwhile.
    is_scatter: Whether it is an all-reduce in the place of a reduce-scatter:
      every device receives all of the sum, and keeps its part.
  """

  kind: str
  sizes: tuple[int, ...]
  num_bytes: int
  times: int
  is_synchronous: bool = False
  is_scatter: bool = False


def find(hlo: str) -> list[Collective]:
  """Finds the collectives of an optimized program, `compiled.as_text()`.

  A loop counts with its length: the one that XLA has noted, or else that of a
  counter which the condition compares with a constant. A loop that may end
  earlier (decoding) counts with that bound, and one without bound once; of a
  conditional, all branches count. The two halves of an asynchronous operation
  count once, and so do the copies of it that the TPU compiler puts into the
  fusions it overlaps with.
  """
  program = hlo_lib.parse(hlo)
  found, seen = [], set()

  def visit(name, times, is_started):
    computation = program.computations[name]
    for instruction in computation.values():
      kind = instruction.opcode.removesuffix("-start")
      if kind in KINDS:
        chain = _chain(instruction)
        if chain is None or chain not in seen:
          seen.add(chain)
          each = _collective(instruction, kind, name, program, times)
          waits = chain is None and not is_started and _waits(instruction)
          found.append(each._replace(is_synchronous=waits))
      inside = times
      if instruction.opcode == "while":
        inside *= program.trip_count(instruction, computation) or 1
      if instruction.opcode not in ("async-update", "async-done"):
        for called in program.called(instruction):  # once: at the async-start
          starts = is_started or instruction.opcode == "async-start"
          visit(called, inside, starts)

  visit(program.entry, 1, False)
  return found


def bytes_by_kind(found: Iterable[Collective]) -> dict[str, int]:
  """Returns the bytes on one device per step, of every kind in KINDS."""
  total = dict.fromkeys(KINDS, 0)
  for collective in found:
    total[collective.kind] += collective.num_bytes * collective.times
  return total


def synchronous_gathers(found: Iterable[Collective]) -> int:
  """Returns how many all-gathers a step waits for."""
  return sum(
    collective.times
    for collective in found
    if collective.kind == "all-gather" and collective.is_synchronous
  )


def scatters_as_all_reduce(found: Iterable[Collective]) -> int:
  """Returns the bytes per step of all-reduces in the place of scatters."""
  return sum(
    collective.num_bytes * collective.times
    for collective in found
    if collective.is_scatter
  )


def parameter_bytes(
  found: Iterable[Collective], params: Mapping[str, jax.ShapeDtypeStruct]
) -> int:
  """Returns the bytes on one device per step that gather parameters (FSDP).

  An all-gather is taken to be of a parameter, or of one layer of it, if it has
  as many elements as that has on mesh axis "model". `params` are the names and
  leaves, with shardings, of all parameters.
  """
  sizes = set()
  for leaf in params.values():
    spec, mesh = leaf.sharding.spec, leaf.sharding.mesh
    kept = [axis if axis == "model" else None for axis in spec]
    on_model = NamedSharding(mesh, PartitionSpec(*kept))
    shape = on_model.shard_shape(leaf.shape)
    sizes |= {math.prod(shape), math.prod(shape[1:])}
  return sum(
    collective.num_bytes * collective.times
    for collective in found
    if collective.kind == "all-gather" and sizes.issuperset(collective.sizes)
  )


def _collective(instruction, kind, name, program, times):
  computation, arrays = program.computations[name], instruction.arrays
  operands = [
    array
    for operand in instruction.inputs
    for array in computation[operand].arrays
  ]
  if kind != "all-gather":
    arrays = operands
  elif instruction.opcode.endswith("-start"):
    arrays = arrays[len(operands) :]  # its operands are in front of its results
  if kind == "all-reduce" and name.startswith("all-reduce-scatter"):
    kind = "reduce-scatter"  # how the TPU compiler writes it
  is_scatter = kind == "all-reduce" and any(
    each.op_name == "reduce_scatter"
    for reduction in program.called(instruction)
    for each in program.computations[reduction].values()
  )
  return Collective(
    kind,
    sizes=tuple(array.size for array in arrays),
    num_bytes=sum(array.num_bytes for array in arrays),
    times=times,
    is_scatter=is_scatter,
  )


def _waits(instruction):
  """Returns whether a collective that nothing starts is not asynchronous."""
  is_sync = '"is_sync":true' in instruction.attributes
  return is_sync or not instruction.opcode.endswith("-start")


def _chain(instruction):
  """Returns an id of the asynchronous operation it belongs to, if any."""
  chain = re.search(r'chain_id="?(\d+)', instruction.attributes)
  channel = re.search(r"channel_id=(\d+)", instruction.attributes)
  return (chain[1], channel and channel[1]) if chain else None
