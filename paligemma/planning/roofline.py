"""A lower bound on the time of a compiled program, operation by operation.

No operation is faster than its FLOPs at the chip's peak or its bytes at the
chip's bandwidth (Williams, Waterman and Patterson, "Roofline", CACM 2009). The
links between chips are not modelled: communication counts with the bytes that
it reads and writes in memory.
"""

import functools
import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from paligemma.planning import collectives, memory
from paligemma.planning import hlo as hlo_lib
from paligemma.planning.chips import Chip

# What an operation is about, by the path that JAX notes; the first match.
_KINDS = {
  "logits": r"compute_logits|embedder\.decode",
  "mlp": r"/[Mm]lp",
  "projections": r"einsum\b|_project\b|/(query|key|value|out)\b",
  "attention": r"/attn\b|MultiHead",
  "norm": r"[Nn]orm\b",
}
_FREE = (
  *("parameter", "constant", "iota", "tuple", "get-tuple-element", "bitcast"),
  *("bitcast-convert", "after-all", "optimization-barrier"),
  *("partition-id", "replica-id"),
)
# Ends of asynchronous operations: what they cost is at their beginnings.
_ENDS = ("-done", "-update")
# They run beside others, and return what they read beside what they write.
_COPIES = ("copy-start", "async-start", "slice-start")
# They read no more of their first operand than they return.
_SLICES = ("dynamic-slice", "slice", "gather")
# They read of their operand what is read of them.
_ELEMENTWISE = ("bitcast", "convert", "copy", "reshape", "transpose")


class Product(NamedTuple):
  """A matrix product or convolution within an operation.

  Attributes:
    flops: Of one run.
    is_float32: Whether both operands are float32.
    op_name: The path that JAX has noted.
  """

  flops: float
  is_float32: bool
  op_name: str


class Operation(NamedTuple):
  """What a program launches at once: a fusion, a kernel, a copy.

  Attributes:
    name: In the program.
    label: Tower, pass and kind: "decoder backward mlp".
    times: How often it runs.
    products: Within it.
    num_bytes: Read from and written to the main memory in one run.
    seconds: Of one run, at least.
    is_overlapped: Whether others run meanwhile: an asynchronous copy.
    is_per_token: Whether the loop that decodes a token at a time runs it.
  """

  name: str
  label: str
  times: int
  products: tuple[Product, ...]
  num_bytes: float
  seconds: float
  is_overlapped: bool
  is_per_token: bool


class Roofline(NamedTuple):
  """All operations of a program, on one device.

  Attributes:
    operations: In order.
    tokens: How often the loop over tokens runs, 1 without one.
    bandwidth: Of the chip, bytes/s.
  """

  operations: list[Operation]
  tokens: int
  bandwidth: float

  @property
  def flops(self) -> float:
    """FLOPs of all matrix products, with recomputation."""
    return sum(
      product.flops * operation.times
      for operation in self.operations
      for product in operation.products
    )

  @property
  def num_bytes(self) -> float:
    """Bytes read from and written to the main memory."""
    return sum(each.num_bytes * each.times for each in self.operations)

  @property
  def seconds(self) -> float:
    """The bound: the sum over what does not overlap, or all bytes."""
    alone = sum(
      each.seconds * each.times
      for each in self.operations
      if not each.is_overlapped
    )
    return max(alone, self.num_bytes / self.bandwidth)

  @property
  def bytes_per_token(self) -> float:
    """Bytes of one turn of the loop over tokens, for the whole batch."""
    inside = (each for each in self.operations if each.is_per_token)
    return sum(each.num_bytes * each.times for each in inside) / self.tokens

  @property
  def float32_products_backward(self) -> int:
    """Number of products in the backward pass whose operands are float32."""
    return sum(
      product.is_float32 and "transpose(" in product.op_name
      for operation in self.operations
      for product in operation.products
    )

  def by_label(self) -> Mapping[str, tuple[float, float, float]]:
    """Returns (seconds, FLOPs, bytes) of every label, the longest first."""
    found = {}
    for each in self.operations:
      seconds, flops, num_bytes = found.get(each.label, (0.0, 0.0, 0.0))
      found[each.label] = (
        seconds + each.seconds * each.times * (not each.is_overlapped),
        flops + sum(p.flops for p in each.products) * each.times,
        num_bytes + each.num_bytes * each.times,
      )
    return dict(sorted(found.items(), key=lambda item: -item[1][0]))


def needed_per_token(
  model: nn.Module,
  params: Mapping[str, Any],
  *,
  batch_size: int,
  length: int,
) -> int:
  """Returns the bytes that decoding a token must read on one device.

  They are those of the decoder's parameters, as they are stored, and of the
  keys and values of all tokens before it.

  Args:
    model: Of models/paligemma.py.
    params: Name -> leaf with dtype and sharding, of all parameters.
    batch_size: Number of examples on a device.
    length: Number of tokens of an example in the cache.
  """
  weights = sum(
    memory.bytes_per_device(leaf)
    for name, leaf in params.items()
    if name.startswith("llm/")
  )
  llm = model.llm
  cached = 2 * llm.depth * llm.num_kv_heads * llm.head_dim * length
  return weights + batch_size * cached * jnp.dtype(llm.dtype).itemsize


def analyse(text: str, chip: Chip) -> Roofline:
  """Reads the roofline of an optimized program off `compiled.as_text()`.

  Loops count with their length; one that may end earlier (decoding) with its
  bound, one without bound (the supervised tokens of a batch) once. Of a
  conditional all branches count. Elementwise arithmetic counts as bytes alone.
  """
  costs = _Costs(hlo_lib.parse(text), chip)
  costs.visit(costs.program.entry, 1, False)
  return Roofline(costs.operations, costs.tokens, chip.bandwidth)


class _Costs:
  """What the instructions of a program cost."""

  def __init__(self, program, chip):
    self.program, self.chip = program, chip
    self.operations, self.tokens = [], 1

  def visit(self, name, times, is_per_token):
    """Appends the operations of a computation that runs so often."""
    computation = self.program.computations[name]
    for instruction in computation.values():
      opcode = instruction.opcode
      if opcode == "while":
        count = self.program.trip_count(instruction, computation) or 1
        body = instruction.attribute("body")
        per_token = self.program.may_end_early(instruction)
        if per_token:
          self.tokens = count
        self.visit(body, times * count, is_per_token or per_token)
      elif opcode in ("call", "conditional"):
        for called in self.program.called(instruction):
          self.visit(called, times, is_per_token)
      elif opcode not in _FREE and not opcode.endswith(_ENDS):
        self.operations.append(
          self._operation(instruction, computation, times, is_per_token)
        )

  def _operation(self, instruction, computation, times, is_per_token):
    products = tuple(self._products(instruction, computation))
    num_bytes = self._num_bytes(instruction, computation)
    peaks = {True: self.chip.float32_flops, False: self.chip.flops}
    computing = sum(p.flops / peaks[p.is_float32] for p in products)
    heaviest = max(products, key=lambda p: p.flops, default=None)
    return Operation(
      name=instruction.name,
      label=_label(instruction, heaviest and heaviest.op_name, is_per_token),
      times=times,
      products=products,
      num_bytes=num_bytes,
      seconds=max(computing, num_bytes / self.chip.bandwidth),
      is_overlapped=instruction.opcode.endswith("-start")
      and '"is_sync":true' not in instruction.attributes,
      is_per_token=is_per_token,
    )

  def _products(self, instruction, computation):
    """Yields the products that an instruction computes."""
    opcode = instruction.opcode
    if opcode == "fusion" or opcode.endswith("-start"):
      for called in self.program.called(instruction):
        fused = self.program.computations[called]
        paths = [path for each in fused.values() if (path := each.op_name)]
        for inner in fused.values():
          for product in self._products(inner, fused):
            if not product.op_name and paths:  # lost, but not by all
              product = product._replace(op_name=paths[0])
            yield product
      return
    is_matmul = opcode == "dot" or "__cublas" in instruction.attributes
    if is_matmul or "dim_labels=" in instruction.attributes:
      left, right = (
        computation[name].arrays[0] for name in instruction.inputs[:2]
      )
      count = _matmul_flops if is_matmul else _convolution_flops
      flops = count(instruction, left, right)
    elif (stated := _stated_flops(instruction)) is not None:
      left = right = instruction.arrays[0]
      flops = stated
    else:
      return
    is_float32 = left.dtype == right.dtype == "f32"
    yield Product(flops, is_float32, instruction.op_name)

  def _num_bytes(self, instruction, computation):
    """Returns the bytes that an instruction moves to and from the memory."""
    opcode = instruction.opcode
    operands = [computation[name] for name in instruction.inputs]
    if opcode in _COPIES:  # of (a part of) one array; a TPU's is in its VMEM
      moved = min(array.num_bytes for array in instruction.arrays[:2])
      return 2 * moved if self.chip.gpu else moved
    if opcode.endswith("-start"):  # its results stand beside its operands
      return 2 * self._in_memory(operands)
    if opcode in _SLICES:
      return self._in_memory(operands[:1]) and 2 * self._written(instruction)
    if opcode == "dynamic-update-slice":
      return (
        self._in_memory([instruction]) and 2 * operands[1].arrays[0].num_bytes
      )
    if opcode == "fusion":
      (called,) = self.program.called(instruction)[:1]
      reads, writes = self._fused(called)
    else:
      reads, writes = {}, None
    total = 0
    for index, operand in enumerate(operands):
      whole = self._in_memory([operand])
      total += min(reads.get(index, whole), whole)
    written = self._written(instruction)
    return total + (written if writes is None else min(writes, written))

  def _written(self, instruction):
    arrays = instruction.arrays
    if "__cu" in instruction.attributes and len(arrays) > 1:
      arrays = arrays[:1]  # the others are the workspace of NVIDIA's library
    return sum(array.num_bytes for array in arrays if self._is_in_memory(array))

  def _in_memory(self, instructions):
    return sum(
      array.num_bytes
      for instruction in instructions
      for array in instruction.arrays
      if self._is_in_memory(array)
    )

  def _is_in_memory(self, array):
    """Whether it is in the main memory; GPUs number other spaces otherwise."""
    return not array.space or self.chip.gpu is not None

  @functools.cache  # noqa: B019 - as long as one program is read
  def _fused(self, name):
    """Returns the bytes that a fusion reads of each operand, and writes."""
    computation = self.program.computations[name]
    users = {}
    for instruction in computation.values():
      for operand in instruction.inputs:
        users.setdefault(operand, []).append(instruction)

    def elements_read(value):
      if value.is_root:
        return value.arrays[0].size
      total = 0
      for user in users.get(value.name, ()):
        first = user.inputs[0] == value.name
        if user.opcode in _ELEMENTWISE or (user.opcode in _SLICES and first):
          total += elements_read(user)
        elif user.opcode == "dynamic-update-slice" and first:
          total += 0 if is_written(user) else value.arrays[0].size
        elif user.opcode == "fusion":
          (called,) = self.program.called(user)[:1]
          reads, _ = self._fused(called)
          bits = value.arrays[0].bits
          total += sum(
            reads[index] * 8 // bits
            for index, operand in enumerate(user.inputs)
            if operand == value.name
          )
        else:
          return value.arrays[0].size
      return min(total, value.arrays[0].size)

    def is_written(value):
      """Whether the result is this value, which may be updated in place."""
      return value.is_root or all(
        user.opcode in ("bitcast", "tuple") and is_written(user)
        for user in users.get(value.name, ())
      )

    def bytes_written(value):
      if value.opcode == "dynamic-update-slice":
        return computation[value.inputs[1]].arrays[0].num_bytes
      if value.opcode in ("bitcast", "tuple"):
        return sum(bytes_written(computation[each]) for each in value.inputs)
      if value.opcode == "fusion":
        return self._fused(self.program.called(value)[0])[1]
      return sum(array.num_bytes for array in value.arrays)

    reads = {
      int(each.operands): elements_read(each) * each.arrays[0].bits // 8
      for each in computation.values()
      if each.opcode == "parameter" and each.arrays
    }
    (root,) = (each for each in computation.values() if each.is_root)
    return reads, bytes_written(root)


def _matmul_flops(instruction, left, right):
  """Returns the FLOPs of a dot, or of a call of cuBLAS."""
  attributes = instruction.attributes
  axes = re.search(r"lhs_contracting_dim\w*\W+([\d,\" ]*)[\]}]", attributes)[1]
  summed = (left.sizes[int(axis)] for axis in re.findall(r"\d+", axes))
  return 2 * instruction.arrays[0].size * math.prod(summed)


def _convolution_flops(instruction, left, right):
  """Returns the FLOPs of a convolution, without those on padding.

  TPUs compute every product as one: a batch axis is a spatial one there, with a
  window of which only one position meets data.
  """
  labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes)
  window = re.search(r"window=\{([^}]*)\}", instruction.attributes)
  window = dict(x.split("=") for x in window[1].split()) if window else {}
  result = instruction.arrays[0]
  flops = 2 * result.size * right.sizes[labels[2].index("i")]
  for axis in sorted(filter(str.isdigit, labels[1])):

    def setting(key, default, axis=int(axis)):
      return window[key].split("x")[axis] if key in window else default

    size, kernel, out = (
      array.sizes[names.index(axis)]
      for array, names in zip(
        (left, right, result), labels.groups(), strict=True
      )
    )
    stride, dilation = int(setting("stride", 1)), int(setting("lhs_dilate", 1))
    spread = int(setting("rhs_dilate", 1))
    low = int(setting("pad", "0_0").split("_")[0])
    if stride == dilation == spread == 1 and out * kernel > 10**6:
      flops *= kernel  # too many positions to look at for the edges
      continue
    met = sum(
      0 <= place < (size - 1) * dilation + 1 and place % dilation == 0
      for start in range(-low, out * stride - low, stride)
      for place in range(start, start + kernel * spread, spread)
    )
    flops = flops * met // out
  return flops


def _stated_flops(instruction):
  """Returns the FLOPs that a kernel's author states, None for another."""
  # \22 is a quotation mark within those of an attribute.
  attributes = instruction.attributes.replace(r"\22", '"')
  found = re.search(
    r'(?:cost_estimate"|serialized_metadata\W+):?\{"flops": ?"?(\d+)',
    attributes,
  )
  return int(found[1]) if found else None


def _label(instruction, op_name, is_per_token):
  opcode = instruction.opcode.removesuffix("-start")
  if opcode in collectives.KINDS:
    return opcode
  path = op_name or instruction.op_name
  if "/img" in path:
    tower = "image"
  elif "/txt" in path:
    tower = "text"
  else:
    tower = "decoder" if "/llm" in path or "embedder" in path else "other"
  _, backward, inner = path.partition("transpose(")
  if is_per_token:
    direction = "per token"
  elif not backward:
    direction = "forward"
  else:
    again = re.search(r"/jvp\(|rematted", inner)
    direction = "recomputed" if again else "backward"
  if not path and opcode == "copy":
    return "copies"
  kinds = (kind for kind, regex in _KINDS.items() if re.search(regex, path))
  return f"{tower} {direction} {next(kinds, 'rest')}"
