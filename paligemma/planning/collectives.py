"""The collectives of a compiled program: their kinds, bytes and repetitions.

XLA's own cost analysis names no collective and counts the body of a loop once.
"""

import math
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import jax
from jax.sharding import NamedSharding, PartitionSpec

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
  """

  kind: str
  sizes: tuple[int, ...]
  num_bytes: int
  times: int


class _Instruction(NamedTuple):
  is_root: bool
  shape: str
  opcode: str
  operands: str
  attributes: str


def find(hlo: str) -> list[Collective]:
  """Finds the collectives of an optimized program, `compiled.as_text()`.

  A loop counts with its length: the one that XLA has noted, or else that of a
  counter which the condition compares with a constant. A loop that may end
  earlier (decoding) counts with that bound, and one without bound once; of a
  conditional, all branches count. The two halves of an asynchronous operation
  count once, and so do the copies of it that the TPU compiler puts into the
  fusions it overlaps with.
  """
  computations, entry = _parse(hlo)
  found, seen = [], set()

  def visit(name, times):
    computation = computations[name]
    for instruction in computation.values():
      kind = instruction.opcode.removesuffix("-start")
      if kind in KINDS:
        chain = _chain(instruction)
        if chain is None or chain not in seen:
          seen.add(chain)
          found.append(_collective(instruction, kind, name, computation, times))
      inside = times
      if instruction.opcode == "while":
        inside *= _trip_count(instruction, computation, computations)
      for called in _called(instruction, computations):
        visit(called, inside)

  visit(entry, 1)
  return found


def bytes_by_kind(found: Iterable[Collective]) -> dict[str, int]:
  """Returns the bytes on one device per step, of every kind in KINDS."""
  total = dict.fromkeys(KINDS, 0)
  for collective in found:
    total[collective.kind] += collective.num_bytes * collective.times
  return total


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


def _collective(instruction, kind, name, computation, times):
  arrays = _arrays(instruction.shape)
  operands = [
    array
    for operand in _names(instruction.operands)
    for array in _arrays(computation[operand].shape)
  ]
  if kind != "all-gather":
    arrays = operands
  elif instruction.opcode.endswith("-start"):
    arrays = arrays[len(operands) :]  # its operands are in front of its results
  if kind == "all-reduce" and name.startswith("all-reduce-scatter"):
    kind = "reduce-scatter"  # how the TPU compiler writes it
  num_bytes = sum(size * bits // 8 for size, bits in arrays)
  return Collective(kind, tuple(size for size, _ in arrays), num_bytes, times)


def _chain(instruction):
  """Returns an id of the asynchronous operation it belongs to, if any."""
  chain = re.search(r'chain_id="?(\d+)', instruction.attributes)
  channel = re.search(r"channel_id=(\d+)", instruction.attributes)
  return (chain[1], channel and channel[1]) if chain else None


def _names(text):
  return re.findall(r"%([\w.-]+)", text)


def _arrays(shape):
  """Returns (elements, bits of each) of all arrays in a shape or tuple."""
  return [
    (
      math.prod(map(int, filter(None, sizes.split(",")))),
      8 if dtype == "pred" else int(re.search(r"\d+", dtype)[0]),
    )
    for dtype, sizes in re.findall(r"\b([a-z]+\d*\w*)\[([\d,]*)\]", shape)
    if dtype not in ("token", "opaque")
  ]


def _trip_count(loop, computation, computations):
  noted = re.search(r'known_trip_count":\{"n":"(\d+)"\}', loop.attributes)
  if noted:
    return int(noted[1])
  condition = computations[_attribute(loop, "condition")]
  body = computations[_attribute(loop, "body")]
  for compare in condition.values():
    if compare.opcode != "compare" or "direction=LT" not in compare.attributes:
      continue
    counter, bound = (condition[name] for name in _names(compare.operands))
    if counter.opcode == "get-tuple-element" and bound.opcode == "constant":
      index = int(re.search(r"index=(\d+)", counter.attributes)[1])
      start = _start(loop, index, computation)
      return max(-((start - int(bound.operands)) // _step(body, index)), 0)
  return 1


def _start(loop, index, computation):
  """Returns the first value of a loop's counter, 0 if that is not constant."""
  initial = computation[_names(loop.operands)[0]]
  if initial.opcode == "tuple":
    value = computation[_names(initial.operands)[index]]
    while value.opcode in ("copy", "bitcast"):
      value = computation[_names(value.operands)[0]]
    if value.opcode == "constant":
      return int(value.operands)
  return 0


def _step(body, index):
  """Returns what a loop adds to its counter, 1 if that is not constant."""
  (root,) = (i for i in body.values() if i.is_root)
  if root.opcode == "tuple":
    value = body[_names(root.operands)[index]]
    if value.opcode == "add":
      for name in _names(value.operands):
        if body[name].opcode == "constant":
          return int(body[name].operands)
  return 1


def _attribute(instruction, key):
  return re.search(rf"\b{key}=%([\w.-]+)", instruction.attributes)[1]


def _called(instruction, computations):
  """Returns the computations an instruction runs, except reductions."""
  if instruction.opcode == "while":
    return [_attribute(instruction, key) for key in ("condition", "body")]
  if instruction.opcode in ("async-update", "async-done"):
    return []  # their async-start calls it
  attributes = instruction.attributes.partition("metadata=")[0]
  return [name for name in _names(attributes) if name in computations]


def _parse(hlo):
  """Returns computation -> name -> instruction, and the entry's name."""
  computations, entry = {}, None
  for line in hlo.splitlines():
    line = re.sub(r"/\*.*?\*/", "", line)
    header = re.match(r"(ENTRY )?%([\w.-]+) .*\{$", line)
    if header:
      computations[header[2]] = instructions = {}
      entry = header[2] if header[1] else entry
      continue
    match = re.match(r"\s+(ROOT )?%([\w.-]+) = ", line)
    if not match:
      continue
    rest = line[match.end() :]
    cut = _closing(rest, 0) if rest.startswith("(") else rest.index(" ")
    opens = rest.index("(", cut)
    closes = _closing(rest, opens)
    instructions[match[2]] = _Instruction(
      is_root=bool(match[1]),
      shape=rest[:cut],
      opcode=rest[cut:opens].strip(),
      operands=rest[opens + 1 : closes - 1],
      attributes=rest[closes:],
    )
  return computations, entry


def _closing(text, start):
  """Returns the index behind the parenthesis that closes the one at `start`."""
  depth = 0
  for i in range(start, len(text)):
    depth += (text[i] == "(") - (text[i] == ")")
    if not depth:
      return i + 1
  raise AssertionError(f"no end: {text}")
