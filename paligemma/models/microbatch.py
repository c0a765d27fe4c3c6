"""The rows of a batch in parts, one after the other, to save memory.

Rows: the first axis, of which every device of the mesh axis "data" holds a run.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, PyTree


def local_rows(rows: int) -> int:
  """How many of `rows` one device has, by the mesh of jax.set_mesh."""
  shards = _shards()
  return rows if rows % shards else rows // shards


def on_each_device(
  function: Callable[[Any, Any], tuple[Any, Any]],
  shared: PyTree[Array],
  rows: PyTree[Array],
  sums: PyTree[jax.ShapeDtypeStruct] = (),
) -> tuple[PyTree[Array], PyTree[Array]]:
  """Applies a function to the rows of each device, there.

  So parameters that are split over the same devices (FSDP) are gathered where
  they are handed over, and the sums of their gradients come back split. Left to
  itself XLA may as well split the features of what is computed, with far more
  traffic.

  Args:
    function: of (shared, rows), returns (sums, rows).
    shared: tree of arrays that every device gets whole.
    rows: tree of arrays with the same rows.
    sums: tree of jax.ShapeDtypeStruct, what the function sums over its rows.

  Returns:
    What the function returns: the sums over all rows, and the rows.
  """
  (total,) = {x.shape[0] for x in jax.tree.leaves(rows)}
  if local_rows(total) == total:
    return function(shared, rows)
  shards = _shards()

  def split_axis(x):
    free = [i for i, size in enumerate(x.shape) if size % shards == 0]
    return max(free, key=lambda i: x.shape[i], default=None)

  def place(x):
    axis = split_axis(x)
    axes = () if axis is None else (*axis * (None,), "data")
    return PartitionSpec(*axes)

  def add(x):
    axis = split_axis(x)
    if axis is None:
      return jax.lax.psum(x, "data")
    return jax.lax.psum_scatter(x, "data", scatter_dimension=axis, tiled=True)

  def run(shared, rows):
    sums, rows = function(shared, rows)
    return jax.tree.map(add, sums), rows

  return jax.shard_map(
    run,
    in_specs=(PartitionSpec(), PartitionSpec("data")),
    out_specs=(jax.tree.map(place, sums), PartitionSpec("data")),
    axis_names={"data"},
    check_vma=False,
  )(shared, rows)


def count(rows: int, at_once: int) -> int:
  """The smallest number of parts of at most `at_once` rows of each device.

  Args:
    rows: int, of all devices.
    at_once: int; at least one row is taken.

  Returns:
    int that divides the rows of a device.
  """
  local = local_rows(rows)
  return next(
    n
    for n in range(1, local + 1)
    if not local % n and local <= n * max(at_once, 1)
  )


def map_rows(
  function: Callable[[Any], Any],
  arrays: tuple[PyTree[Array], ...],
  num_parts: int,
) -> PyTree[Array]:
  """Applies `function` to the rows of `arrays`, part by part.

  Args:
    function: of (number of the part, *arrays), returns an array of rows.
    arrays: tuple of trees of arrays with the same rows.
    num_parts: int.

  Returns:
    What the function returns, of all rows.
  """
  _, out = scan_rows(
    lambda _, part: (None, function(part)), None, arrays, num_parts
  )
  return out


def scan_rows(
  function: Callable[[Any, Any], tuple[Any, Any]],
  carry: PyTree[Array],
  arrays: tuple[PyTree[Array], ...],
  num_parts: int,
) -> tuple[PyTree[Array], PyTree[Array]]:
  """Like `map_rows`, with a value that is handed from part to part.

  Args:
    function: of (carry, (number of the part, *arrays)), returns the new carry
      and an array of rows.
    carry: tree of arrays.
    arrays, num_parts: as in `map_rows`.

  Returns:
    The last carry, and the array of all rows.
  """
  first = jnp.int32(0)
  if _is_on_each_device():
    first = jax.lax.axis_index("data") * num_parts
  if num_parts == 1:
    return function(carry, (first, *arrays))
  numbers = first + jnp.arange(num_parts, dtype=jnp.int32)
  arrays = jax.tree.map(lambda x: _split(x, num_parts), arrays)
  carry, out = jax.lax.scan(function, carry, (numbers, *arrays))
  return carry, jax.tree.map(_join, out)


def _is_on_each_device():
  return "data" in jax.sharding.get_abstract_mesh().manual_axes


def _shards():
  if _is_on_each_device():
    return 1
  return jax.sharding.get_abstract_mesh().shape.get("data", 1)


def _split(x, num_parts):
  return x.reshape(num_parts, -1, *x.shape[1:])


def _join(x):
  return x.reshape(-1, *x.shape[2:])
