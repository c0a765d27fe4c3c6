"""The rows of a batch in parts, one after the other, to save memory.

Rows: the first axis, of which every device of the mesh axis "data" holds a run.
"""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec


def local_rows(rows):
  """How many of `rows` one device has, by the mesh of jax.set_mesh."""
  shards = _shards()
  return rows if rows % shards else rows // shards


def on_each_device(function, shared, rows, sums=()):
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
    return _sum_split(x, axis)

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


def count(rows, at_once):
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


def map_rows(function, arrays, num_parts):
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


def scan_rows(function, carry, arrays, num_parts):
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


def _sum_split(x, axis):
  """The sum over the devices, of which each one keeps its part of an axis."""
  if jax.default_backend() != "cpu" or jax.process_count() == 1:
    return jax.lax.psum_scatter(x, "data", scatter_dimension=axis, tiled=True)
  # The reduce-scatter between CPU processes (Gloo in jaxlib 0.10.2) overwrites
  # what it is still sending, github.com/jax-ml/jax/issues/40830: the end of a
  # gradient was wrong on process 0 in 33 of 120 steps of the tiny model.
  size = x.shape[axis] // jax.lax.axis_size("data")
  first = jax.lax.axis_index("data") * size
  return jax.lax.dynamic_slice_in_dim(
    jax.lax.psum(x, "data"), first, size, axis
  )


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
