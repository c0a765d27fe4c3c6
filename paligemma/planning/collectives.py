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
    kind: one of KINDS.
    sizes: numbers of elements of the arrays it works on, before a
      reduce-scatter and after an all-gather: the larger side.
    num_bytes: their bytes on one device, together.
    times: how often the loops around it run it.
  """

  kind: str
  sizes: tuple[int, ...]
  num_bytes: int
  times: int


class _Instruction(NamedTuple):
  name: str
  is_root: bool
  shape: str
  opcode: str
  operands: str
  attributes: str


def find(hlo: str) -> list[Collective]:
  """Finds the collectives of an optimized program.

  A loop counts with its length: the one that XLA has noted, or else that of a
  counter which the condition compares with a constant. A loop that may end
  earlier (decoding) counts with that bound, and one without bound once; of a
  conditional, all branches count. The two halves of an asynchronous operation
  are one, and so are the copies of it that the TPU compiler puts into the
  fusions it overlaps with.

  Args:
    hlo: `compiled.as_text()`.

  Returns:
    List of Collective.
  """
  computations, entry = _parse(hlo)
  found, seen = [], set()

  def visit(name, times):
    shapes = {i.name: i.shape for i in computations[name]}
    for instruction in computations[name]:
      kind = instruction.opcode.removesuffix("-start")
      if kind in KINDS:
        part = _part_of_chain(instruction)
        if part is None or part not in seen:
          seen.add(part)
          found.append(_collective(instruction, kind, name, shapes, times))
      inside = times
      if instruction.opcode == "while":
        inside *= _trip_count(instruction, shapes, computations, name)
      for called in _called(instruction, computations):
        visit(called, inside)

  visit(entry, 1)
  return found


def bytes_by_kind(found: Iterable[Collective]) -> dict[str, int]:
  """Bytes on one device per step, of every kind in KINDS."""
  total = dict.fromkeys(KINDS, 0)
  for collective in found:
    total[collective.kind] += collective.num_bytes * collective.times
  return total


def parameter_bytes(
  found: Iterable[Collective], params: Mapping[str, jax.ShapeDtypeStruct]
) -> int:
  """Bytes of the all-gathers that put parameters together, as FSDP does.

  Args:
    found: of `find`.
    params: name -> leaf with a sharding, of all parameters. An all-gather of as
      many elements as one, or one layer of one, has on mesh axis "model" is
      taken to be of it.

  Returns:
    int, bytes on one device per step.
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


def _collective(instruction, kind, computation, shapes, times):
  arrays = _arrays(instruction.shape)
  operands = [
    array
    for name in re.findall(r"%([\w.-]+)", instruction.operands)
    for array in _arrays(shapes[name])
  ]
  if kind == "all-gather":
    # The start of an asynchronous one returns its operands too, in front.
    is_start = instruction.opcode.endswith("-start")
    whole = arrays[len(operands) :] if is_start else arrays
  else:
    whole = operands
  if kind == "all-reduce" and computation.startswith("all-reduce-scatter"):
    kind = "reduce-scatter"  # how the TPU compiler writes it
  return Collective(
    kind,
    tuple(elements for elements, _ in whole),
    sum(elements * bits // 8 for elements, bits in whole),
    times,
  )


def _part_of_chain(instruction):
  """Names the asynchronous operation it is a part of, if it is one."""
  chain = re.search(r'chain_id="?(\d+)', instruction.attributes)
  channel = re.search(r"channel_id=(\d+)", instruction.attributes)
  return (chain[1], channel and channel[1]) if chain else None


def _arrays(shape):
  """(elements, bits of each) of all arrays in a shape, which may be a tuple."""
  return [
    (math.prod(map(int, filter(None, sizes.split(",")))), _bits(dtype))
    for dtype, sizes in re.findall(r"\b([a-z]+\d*\w*)\[([\d,]*)\]", shape)
    if dtype not in ("token", "opaque")
  ]


def _bits(dtype):
  return 8 if dtype == "pred" else int(re.search(r"\d+", dtype)[0])


def _trip_count(loop, shapes, computations, computation):
  noted = re.search(r'known_trip_count":\{"n":"(\d+)"\}', loop.attributes)
  if noted:
    return int(noted[1])
  condition = computations[_attribute(loop, "condition")]
  body = {i.name: i for i in computations[_attribute(loop, "body")]}
  conditions = {i.name: i for i in condition}
  for compare in condition:
    if compare.opcode != "compare" or "direction=LT" not in compare.attributes:
      continue
    counter, bound = (
      conditions[name] for name in re.findall(r"%([\w.-]+)", compare.operands)
    )
    if counter.opcode == "get-tuple-element" and bound.opcode == "constant":
      index = int(re.search(r"index=(\d+)", counter.attributes)[1])
      start = _start(loop, index, computations[computation])
      step = _step(body, index)
      return max(-((start - int(bound.operands)) // step), 0)
  return 1


def _start(loop, index, instructions):
  """What the counter of a loop starts with: 0 unless it is seen to differ."""
  known = {i.name: i for i in instructions}
  initial = known[re.search(r"%([\w.-]+)", loop.operands)[1]]
  if initial.opcode == "tuple":
    value = known[re.findall(r"%([\w.-]+)", initial.operands)[index]]
    while value.opcode in ("copy", "bitcast"):
      value = known[re.search(r"%([\w.-]+)", value.operands)[1]]
    if value.opcode == "constant":
      return int(value.operands)
  return 0


def _step(body, index):
  """What the body of a loop adds to its counter: 1 unless seen to differ."""
  (root,) = (i for i in body.values() if i.is_root)
  if root.opcode == "tuple":
    value = body[re.findall(r"%([\w.-]+)", root.operands)[index]]
    if value.opcode == "add":
      for name in re.findall(r"%([\w.-]+)", value.operands):
        if body[name].opcode == "constant":
          return int(body[name].operands)
  return 1


def _attribute(instruction, key):
  return re.search(rf"\b{key}=%([\w.-]+)", instruction.attributes)[1]


def _called(instruction, computations):
  """The computations an instruction runs; reductions have no collectives."""
  if instruction.opcode == "while":
    return [_attribute(instruction, key) for key in ("condition", "body")]
  if instruction.opcode in ("async-update", "async-done"):
    return []  # their async-start calls it
  attributes = instruction.attributes.partition("metadata=")[0]
  return [
    name
    for name in re.findall(r"%([\w.-]+)", attributes)
    if name in computations
  ]


def _parse(hlo):
  """Name -> list of instructions of every computation, and the entry's name."""
  computations, entry = {}, None
  for line in hlo.splitlines():
    line = re.sub(r"/\*.*?\*/", "", line)
    header = re.match(r"(ENTRY )?%([\w.-]+) .*\{$", line)
    if header:
      computations[header[2]] = instructions = []
      entry = header[2] if header[1] else entry
      continue
    match = re.match(r"\s+(ROOT )?%([\w.-]+) = ", line)
    if not match:
      continue
    rest = line[match.end() :]
    cut = _closing(rest, 0) if rest.startswith("(") else rest.index(" ")
    opens = rest.index("(", cut)
    closes = _closing(rest, opens)
    instructions.append(
      _Instruction(
        name=match[2],
        is_root=bool(match[1]),
        shape=rest[:cut],
        opcode=rest[cut:opens].strip(),
        operands=rest[opens + 1 : closes - 1],
        attributes=rest[closes:],
      )
    )
  return computations, entry


def _closing(text, start):
  """Index behind the parenthesis that closes the one at `start`."""
  depth = 0
  for i in range(start, len(text)):
    depth += (text[i] == "(") - (text[i] == ")")
    if not depth:
      return i + 1
  raise AssertionError(f"no end: {text}")
