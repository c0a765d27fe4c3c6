"""Reads optimized programs of XLA, `compiled.as_text()`."""

import math
import re
from typing import NamedTuple


class Array(NamedTuple):
  """An array within a shape.

  Attributes:
    dtype: As XLA writes it: "bf16".
    sizes: Of the axes.
    space: Memory space: 0 is the main memory, 1 on a TPU its vector memory.
  """

  dtype: str
  sizes: tuple[int, ...]
  space: int

  @property
  def size(self) -> int:
    return math.prod(self.sizes)

  @property
  def bits(self) -> int:
    """Bits of an element."""
    return 8 if self.dtype == "pred" else int(re.search(r"\d+", self.dtype)[0])

  @property
  def num_bytes(self) -> int:
    return self.size * self.bits // 8


class Instruction(NamedTuple):
  """One line of a program: `%name = shape opcode(operands), attributes`."""

  name: str
  is_root: bool
  shape: str
  opcode: str
  operands: str
  attributes: str

  @property
  def arrays(self) -> list[Array]:
    """All arrays of the result, one or a tuple."""
    return [
      Array(
        dtype,
        tuple(map(int, filter(None, sizes.split(",")))),
        int("".join(re.findall(r"S\((\d+)\)", layout)) or 0),
      )
      for dtype, sizes, layout in re.findall(
        r"\b([a-z]+\d*\w*)\[([\d,]*)\](\{[^}]*\})?", self.shape
      )
      if dtype not in ("token", "opaque")
    ]

  @property
  def inputs(self) -> list[str]:
    """Names of the operands."""
    return names(self.operands)

  @property
  def op_name(self) -> str:
    """The path through the Python program that JAX has noted."""
    found = re.search(r'op_name="([^"]*)"', self.attributes)
    return found[1] if found else ""

  def attribute(self, key: str) -> str:
    """Returns the name that an attribute such as `body` holds."""
    return re.search(rf"\b{key}=%([\w.-]+)", self.attributes)[1]


Computation = dict[str, Instruction]


class Program(NamedTuple):
  """The computations of a program by name, and the name of the first."""

  computations: dict[str, Computation]
  entry: str

  def called(self, instruction: Instruction) -> list[str]:
    """Returns the computations an instruction runs, reductions among them."""
    attributes = instruction.attributes.partition("metadata=")[0]
    return [name for name in names(attributes) if name in self.computations]

  def trip_count(
    self, loop: Instruction, computation: Computation
  ) -> int | None:
    """Returns the length of a loop of a computation, None if not known.

    It is the one that XLA has noted, or that of a counter which the condition
    compares with a constant: for a loop that may end earlier the bound.
    """
    noted = re.search(r'known_trip_count":\{"n":"(\d+)"\}', loop.attributes)
    if noted:
      return int(noted[1])
    condition = self._condition(loop)
    body = self.computations[loop.attribute("body")]
    for compare in condition.values():
      if compare.opcode != "compare" or "=LT" not in compare.attributes:
        continue
      counter, bound = (condition[name] for name in compare.inputs)
      ahead = None  # what is added to the counter before it is compared
      if counter.opcode == "add":
        counter, ahead = (condition[name] for name in counter.inputs)
      constants = [each for each in (bound, ahead) if each is not None]
      if counter.opcode == "get-tuple-element" and all(
        each.opcode == "constant" for each in constants
      ):
        end, *ahead = (int(each.operands) for each in constants)
        index = int(re.search(r"index=(\d+)", counter.attributes)[1])
        left = end - sum(ahead) - _start(loop, index, computation)
        return max(-(-left // _step(body, index)), 0)
    return None

  def may_end_early(self, loop: Instruction) -> bool:
    """Returns whether a loop asks for more than a counter, as decoding does."""
    return "known_trip_count" not in loop.attributes and any(
      instruction.opcode == "and"
      for instruction in self._condition(loop).values()
    )

  def _condition(self, loop):
    """Returns a loop's condition; what is in fusions of it stands beside."""
    condition = self.computations[loop.attribute("condition")]
    found = {}
    for name, instruction in condition.items():
      found[name] = instruction
      if instruction.opcode == "fusion":
        (fused,) = self.called(instruction)
        for inner, each in self.computations[fused].items():
          if each.opcode == "parameter":
            each = condition[instruction.inputs[int(each.operands)]]
          found[inner] = each
    return found


def parse(text: str) -> Program:
  """Parses the text of an optimized program."""
  computations, entry = {}, ""
  for line in text.splitlines():
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
    instructions[match[2]] = Instruction(
      name=match[2],
      is_root=bool(match[1]),
      shape=rest[:cut],
      opcode=rest[cut:opens].strip(),
      operands=rest[opens + 1 : closes - 1],
      attributes=rest[closes:],
    )
  return Program(computations, entry)


def names(text: str) -> list[str]:
  """Returns the names in a text: what stands behind a percent sign."""
  return re.findall(r"%([\w.-]+)", text)


def _start(loop, index, computation):
  """Returns the first value of a loop's counter, 0 if that is not constant."""
  initial = computation[loop.inputs[0]]
  if initial.opcode == "tuple":
    value = computation[initial.inputs[index]]
    while value.opcode in ("copy", "bitcast"):
      value = computation[value.inputs[0]]
    if value.opcode == "constant":
      return int(value.operands)
  return 0


def _step(body, index):
  """Returns what a loop adds to its counter, 1 if that is not constant."""
  (root,) = (i for i in body.values() if i.is_root)
  if root.opcode == "tuple":
    value = body[root.inputs[index]]
    if value.opcode == "add":
      for name in value.inputs:
        if body[name].opcode == "constant":
          return int(body[name].operands)
  return 1


def _closing(text, start):
  """Returns the index behind the parenthesis that closes the one at `start`."""
  depth = 0
  for i in range(start, len(text)):
    depth += (text[i] == "(") - (text[i] == ")")
    if not depth:
      return i + 1
  raise AssertionError(f"no end: {text}")
