"""The layers of a tower, stacked or apart: names of both layouts.

    scan   llm/layers/attn/w     one leaf with a leading axis for all layers
    loop   llm/layers/3/attn/w   one leaf per layer

The image tower writes Transformer/encoderblock/... and encoderblock_3/...
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

from paligemma import parameters, tree

# What stands before a layer's index in loop layout, and what joins the two;
# also in a tower alone.
_STEMS = [
  (stem.removeprefix(f"{tower}/"), joint)
  for tower, (stem, joint) in parameters.LAYERS.items()
]


def split_layer(name: str) -> tuple[str, str, int, str] | None:
  """'llm/layers/3/attn/w' -> ('llm/layers', '/', 3, 'attn/w'), else None."""
  for stem, joint in _STEMS:
    if m := re.fullmatch(rf"((?:.*/)?{stem}){joint}(\d+)/(.+)", name):
      return m[1], joint, int(m[2]), m[3]
  return None


def layer_name(name: str, i: int) -> str | None:
  """'llm/layers/attn/w', 3 -> 'llm/layers/3/attn/w'; None: not stacked."""
  for stem, joint in _STEMS:
    m = re.fullmatch(rf"((?:.*/)?{stem})/(.+)", name)
    if m and not split_layer(name):
      return f"{m[1]}{joint}{i}/{m[2]}"
  return None


def stack(
  flat: Mapping[str, Any], combine: Callable[[str, list[Any]], Any]
) -> tree.Flat:
  """Loop layout to scan layout; names that are no layer's pass through.

  Args:
    combine: Makes the leaf of a name from those of its layers, in order.

  Raises:
    ValueError: A layer lacks a leaf that another one has, or a leaf stands
      there stacked and apart.
  """
  stacked = {}
  layers = {}  # prefix, joint -> rest -> index -> leaf
  for name, leaf in flat.items():
    if parts := split_layer(name):
      *tower, index, rest = parts
      of_tower = layers.setdefault(tuple(tower), {})
      of_tower.setdefault(rest, {})[index] = leaf
    else:
      stacked[name] = leaf
  for (prefix, joint), tower in layers.items():
    depth = 1 + max(max(by_index) for by_index in tower.values())
    for rest, by_index in tower.items():
      # Not range(depth) whole: a corrupt index may be any number.
      gap = next((i for i in range(depth) if i not in by_index), None)
      if gap is not None:
        raise ValueError(
          f"{prefix}{joint}{gap}/{rest}: missing, there are {depth} layers"
        )
      name = f"{prefix}/{rest}"
      if name in stacked:
        raise ValueError(f"{name}: layers are stacked, and apart as well")
      stacked[name] = combine(name, [by_index[i] for i in range(depth)])
  return dict(sorted(stacked.items()))


def stack_shapes(name: str, shapes: list[tuple[int, ...]]) -> tuple[int, ...]:
  """The shape of a stacked leaf; a `combine` for `stack`.

  Raises:
    ValueError: The layers differ in shape.
  """
  if len(set(shapes)) > 1:
    raise ValueError(
      f"{name}: layers differ in shape: {sorted(set(shapes))}, expected one"
    )
  return len(shapes), *shapes[0]


def unstack(
  flat: Mapping[str, Any], pick: Callable[[Any, int], Any]
) -> tree.Flat:
  """Scan layout to loop layout, the inverse of `stack`.

  Args:
    pick: Makes the leaf of one layer from the stacked one and its index.
  """
  loop = {}
  for name, leaf in flat.items():
    if layer_name(name, 0) is None:
      loop[name] = leaf
      continue
    for i in range(leaf.shape[0]):
      loop[layer_name(name, i)] = pick(leaf, i)
  return dict(sorted(loop.items()))
