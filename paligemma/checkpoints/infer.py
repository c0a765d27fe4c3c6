"""Sizes and layout of towers, from the shapes of their arrays."""

import math
from collections.abc import Mapping
from typing import Any

from paligemma import parameters, registry
from paligemma.checkpoints import layouts, quantized_leaves


def sizes(flat: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
  """Infers the sizes of a PaliGemma or a SigLIP from the shapes of its arrays.

  Args:
    flat: Name -> shape, or object with a `shape`; layers stacked or apart,
      attention as `q_einsum` and `kv_einsum` or as one `qkv_einsum`.

  Returns:
    {"img": width, depth, mlp_dim, num_heads, patch_size, res (pixels; None
    without a learned position embedding), scan (True: layers are stacked),
    "llm": width, depth, mlp_dim, num_heads, num_kv_heads, head_dim, vocab_size,
    post_norms (True in Gemma 2), scan, "txt": width, depth, mlp_dim, num_heads,
    vocab_size, text_len, scan}, without a tower that has no arrays. Beside
    "txt" both towers have num_classes and, where arrays tell it, pool_type. An
    image tower of NaFlex has "grid", and no res.

  Raises:
    ValueError: Arrays that tell the sizes are missing (lists them), malformed
      or contradictory; or a patch or the grid of positions is not square.
  """
  shapes = {name: tuple(getattr(x, "shape", x)) for name, x in flat.items()}
  towers = {name.partition("/")[0] for name in shapes}
  apart = {n.partition("/")[0] for n in shapes if layouts.split_layer(n)}
  shapes = layouts.stack(shapes, layouts.stack_shapes)
  shapes = quantized_leaves.full_shapes(shapes)
  found = {
    tower: {**_tower(shapes, tower), "scan": tower not in apart}
    for tower in parameters.SIZES
    if tower in towers
  }
  for tower in ("img", "txt") if "txt" in found else ():
    if tower in found:
      found[tower] |= _pooling(shapes, tower)
  if not found:
    raise ValueError(
      'no parameters under "img/", "txt/" or "llm/", found: '
      f"{', '.join(sorted(towers)) or 'nothing'}"
    )
  return found


def _pooling(shapes, tower):
  """What a tower of SigLIP returns: fields of vit.Model or text_tower.Model."""
  _, features = shapes.get(f"{tower}/head/kernel", (None, None))
  found = {"num_classes": features}
  if f"{tower}/MAPHead_0/probe" in shapes:
    found["pool_type"] = "map"
  elif tower == "img":
    found["pool_type"] = "tok" if "img/cls" in shapes else "gap"
  return found


def _tower(shapes, tower):
  is_naflex = len(shapes.get(parameters.PATCH_KERNEL, ())) == 2
  known = parameters.ROWS | (parameters.NAFLEX if is_naflex else {})
  rows = [
    row
    for name, row in known.items()
    if row.tower == tower and name in shapes and row.kind != parameters.ADAPTER
  ]
  sizes = _axis_sizes(shapes, rows)
  models = {row.when for row in rows}
  if "fused" in models:
    sizes["K"] = sizes["N"]
  fields = parameters.SIZES[tower]
  if "Z" in sizes:
    sizes["h"] = math.isqrt(sizes["Z"] // 3)
  unknown = [axis for axis in fields.values() if axis not in sizes]
  if unknown:
    _raise_missing(shapes, tower, unknown)
  found = {field: sizes[axis] for field, axis in fields.items()}
  if tower == "llm":
    return {**found, "post_norms": "post_norms" in models}
  if tower == "txt":
    return found
  if is_naflex:
    return {**found, "grid": _grid(shapes, sizes)}
  if sizes["h"] != sizes["w"]:
    name = parameters.PATCH_KERNEL
    raise ValueError(f"{name}: shape {shapes[name]}, expected a square patch")
  return {**found, "res": _resolution(sizes.get("P"), sizes["h"])}


def _grid(shapes, sizes):
  for name, is_square in (
    (parameters.PATCH_KERNEL, 3 * sizes["h"] ** 2 == sizes["Z"]),
    (parameters.POSITIONS, sizes.get("y") == sizes.get("x") is not None),
  ):
    if not is_square:
      found = f"shape {shapes[name]}" if name in shapes else "missing"
      raise ValueError(f"{name}: {found}, expected a square")
  return sizes["y"]


def _axis_sizes(shapes, rows) -> dict[str, int]:
  """Size of each axis, on which all arrays must agree."""
  found = {}
  for row in rows:
    shape = shapes[row.name]
    if len(shape) != len(row.axes):
      raise ValueError(
        f"{row.name}: shape {shape}, expected ({', '.join(row.axes)})"
      )
    if not all(0 < size < 2**31 for size in shape):
      raise ValueError(
        f"{row.name}: shape {shape}, expected sizes from 1 to 2**31 - 1"
      )
    for axis, size in zip(row.axes, shape, strict=True):
      known, where = found.setdefault(axis, (size, row.name))
      if size != known and not axis.isdigit():
        raise ValueError(
          f"{row.name}: shape {shape}, expected {axis} = {known} in "
          f"({', '.join(row.axes)}) as of {where}"
        )
  return {axis: size for axis, (size, _) in found.items()}


def _raise_missing(shapes, tower, axes):
  """Lists the smallest arrays that would tell the sizes of all these axes."""
  rows = [
    row
    for row in parameters.has(tower, when=["grouped"]).values()
    if row.name not in shapes
  ]
  missing = dict.fromkeys(
    min((r for r in rows if axis in r.axes), key=_is_no_matrix_and_rank).name
    for axis in axes
  )
  raise ValueError(
    f"cannot tell the sizes of the model, missing: {', '.join(missing)}."
    + registry.did_you_mean(next(iter(missing)), shapes)
  )


def _is_no_matrix_and_rank(row):
  return not row.summed, len(row.axes)


def _resolution(positions, patch_size):
  if positions is None:
    return None
  side = math.isqrt(positions)
  if side**2 != positions:
    raise ValueError(
      f"{parameters.POSITIONS}: {positions} positions, expected a square grid"
    )
  return side * patch_size
