"""Tensors of other programs as parts of our parameters, by a table of names.

A row says under which names another program keeps one of our modules, and in
which order it has the axes of parameters.py. Axes in brackets are one there:

    ("attn/q_einsum", "(N H) D", "self_attn.q_proj")
    ("mlp/gating_einsum", "F D", "mlp.gate_proj", "mlp.up_proj")

Several names are the parts of ours. A layer is "*". A bias has the axis of the
outputs alone.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

import einops
import ml_dtypes
import numpy as np

from paligemma import parameters, tree
from paligemma.checkpoints.leaves import Leaf, Piece, Tensor, common_dtype

Row = tuple[str, ...]  # module, axes, names
FLOATS = tuple(
  map(np.dtype, (np.float32, np.float16, np.float64, ml_dtypes.bfloat16))
)


@dataclasses.dataclass(frozen=True)
class Entry:
  """A tensor of another program as a part of a leaf of ours.

  Attributes:
    key: Its name there, "text.layers.3.mlp.up_proj.weight".
    leaf: The leaf here, in scan layout, "llm/layers/mlp/gating_einsum".
    at: Its place in the leaf, the layer first: (3, 1).
    theirs: Axes of the tensor there, "F D".
    ours: Axes of leaf[at], "D F".
    sizes: Size of every axis.
  """

  key: str
  leaf: str
  at: tuple[int, ...]
  theirs: str
  ours: str
  sizes: Mapping[str, int]

  @property
  def their_shape(self) -> tuple[int, ...]:
    return tuple(
      math.prod(self.sizes[axis] for axis in re.findall(r"[A-Za-z]", group))
      for group in _groups(self.theirs)
    )

  @property
  def our_shape(self) -> tuple[int, ...]:
    return tuple(self.sizes[axis] for axis in self.ours.split())

  def to_ours(self, tensor: np.ndarray) -> np.ndarray:
    """Turns a tensor of the other program into leaf[at]: a view."""
    return self._rearrange(tensor, self.theirs, self.ours)

  def to_theirs(self, part: np.ndarray) -> np.ndarray:
    """Turns leaf[at] into the tensor of the other program."""
    return self._rearrange(part, self.ours, self.theirs)

  def _rearrange(self, array, source, target):
    sizes = {axis: self.sizes[axis] for axis in self.ours.split()}
    return einops.rearrange(array, f"{source} -> {target}", **sizes)


def under(ours: str, theirs: str, table: Iterable[Row]) -> tuple[Row, ...]:
  """The rows of a table with something in front of the names of both sides."""
  return tuple(
    (f"{ours}{module}", axes, *(f"{theirs}{name}" for name in names))
    for module, axes, *names in table
  )


def letters(tower: str, fields: Mapping[str, Any]) -> dict[str, int]:
  """Axis -> size, of the fields of a tower: "img", "txt" or "llm"."""
  sizes = {x: fields[field] for field, x in parameters.SIZES[tower].items()}
  if tower != "llm":
    sizes |= {"H": sizes["D"] // sizes["N"], "E": fields.get("num_classes")}
  if tower == "img":
    sizes |= {"M": sizes["D"], "w": sizes["h"], "C": 3}
    sizes |= {"Z": 3 * sizes["h"] ** 2}
    sizes |= dict.fromkeys("yx", fields.get("grid"))
  return sizes


def rows(
  table: Iterable[Row], when: Collection[str] = ()
) -> Iterator[tuple[parameters.Parameter, str, list[str]]]:
  """Yields the parameters that a table names, their axes and names there.

  Args:
    when: What the model is, see parameters.Parameter.when.
  """
  known = parameters.ROWS | (parameters.NAFLEX if "naflex" in when else {})
  for module, axes, *names in table:
    for row in known.values():
      is_named = module in (row.name, row.name.rpartition("/")[0])
      if is_named and row.when in ("", *when):
        yield row, axes, names


def entries(
  table: Iterable[Row],
  sizes: Mapping[str, int],
  spell: Callable[[str, int | None, bool], str],
  *,
  when: Collection[str] = (),
  output_axis: int = 0,
) -> Iterator[Entry]:
  """Yields the tensors of a tower.

  Args:
    sizes: Size of every axis, see `letters`.
    spell: (name in the table, layer or None, whether it is a bias) -> key.
    when: As of `rows`, without "fused" and "grouped".
    output_axis: Which of their axes a bias has: 0, or -1.
  """
  when = {*when, "fused" if sizes.get("N") == sizes.get("K") else "grouped"}
  for row, axes, names in rows(table, when):
    is_bias = row.kind == parameters.BIAS
    theirs = _groups(axes)[output_axis] if is_bias else axes
    in_layers = row.axes[0] == "L"
    for layer in range(sizes["L"]) if in_layers else [None]:
      for part, name in enumerate(names):
        at = () if layer is None else (layer,)
        at += (part,) * (row.num_parts is not None)
        # Behind the parts, axes of size 1.
        at += (0,) * (sum(map(str.isdigit, row.axes)) - 1)
        yield Entry(
          spell(name, layer, is_bias),
          row.name,
          at,
          theirs,
          " ".join(row.part_axes),
          sizes,
        )


def _groups(axes: str) -> list[str]:
  """ "(N H) D" -> ["(N H)", "D"]."""
  return re.findall(r"\([^)]*\)|\S+", axes)


def leaf_shapes(entries: Iterable[Entry]) -> dict[str, tuple[int, ...]]:
  """Returns name -> shape of the leaves, in scan layout, of which these are."""
  shapes = {}
  for entry in entries:  # the last place has the greatest indices
    shapes[entry.leaf] = (*(i + 1 for i in entry.at), *entry.our_shape)
  return shapes


def differences(
  entries: Iterable[Entry], tensors: Mapping[str, Tensor]
) -> list[str]:
  """Lists how tensors, by their key, differ from what there is to be."""
  shapes = {entry.key: entry.their_shape for entry in entries}
  return tree.compare(shapes, tensors) + [
    f"{key}: dtype {tensor.dtype}, expected a float"
    for key, tensor in tensors.items()
    if tensor.dtype not in FLOATS
  ]


def leaves(
  entries: Iterable[Entry], tensors: Mapping[str, Tensor]
) -> dict[str, Leaf]:
  """Puts leaves together of the tensors of another program, by their key."""
  pieces = {}
  for x in entries:
    arrange = None if x.theirs == x.ours else x.to_ours
    piece = Piece(x.at, tensors[x.key], arrange)
    pieces.setdefault(x.leaf, []).append(piece)
  found = {}
  for name, shape in leaf_shapes(entries).items():
    dtype = common_dtype(piece.tensor for piece in pieces[name])
    found[name] = Leaf(shape, dtype, tuple(pieces[name]))
  return found
