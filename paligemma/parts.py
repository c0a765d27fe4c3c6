"""The rows of a batch in parts, one after the other, to save memory.

Rows: the first axis, of which every device of the mesh axis "data" holds a run.
"""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec


def local_rows(rows):
  """How many of `rows` one device has, by the mesh of jax.set_mesh."""
  shards = jax.sharding.get_abstract_mesh().shape.get("data", 1)
  return rows if rows % shards else rows // shards


def spread(x):
  """Keeps the rows of an array on the devices that they belong to.

  Parameters and batch are split over the same devices, and XLA may as well
  split the features of what is computed, with far more traffic: a few such
  marks make it gather the parameters instead.
  """
  if local_rows(x.shape[0]) == x.shape[0]:
    return x
  return jax.lax.with_sharding_constraint(x, PartitionSpec("data"))


def gather(params):
  """Brings parameters that are split over "data" to all devices (FSDP).

  Said where they are used, else XLA may exchange activations instead. Under
  tensor parallelism it is left to choose.
  """
  sizes = jax.sharding.get_abstract_mesh().shape
  if sizes.get("data", 1) == 1 or sizes.get("model", 1) > 1:
    return params
  return jax.lax.with_sharding_constraint(params, PartitionSpec())


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
  if num_parts == 1:
    return function(carry, (jnp.int32(0), *arrays))
  arrays = jax.tree.map(lambda x: _split(x, num_parts), arrays)
  carry, out = jax.lax.scan(
    function, carry, (jnp.arange(num_parts, dtype=jnp.int32), *arrays)
  )
  return carry, jax.tree.map(_join, out)


def _split(x, num_parts):
  # A part has an equal share of the run of each device, so that no row moves.
  shards = x.shape[0] // local_rows(x.shape[0])
  x = x.reshape(shards, num_parts, -1, *x.shape[1:])
  x = jnp.swapaxes(x, 0, 1)
  return x.reshape(num_parts, -1, *x.shape[3:])


def _join(x):
  num_parts, rows = x.shape[:2]
  shards = rows * num_parts // local_rows(rows * num_parts)
  x = x.reshape(num_parts, shards, -1, *x.shape[2:])
  x = jnp.swapaxes(x, 0, 1)
  return x.reshape(num_parts * rows, *x.shape[3:])
