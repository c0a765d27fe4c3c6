"""A batch in microbatches, one after the other, to save memory.

Batch: the first axis of arrays, split over the devices of mesh axis "data".
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, PyTree

from paligemma.models import cpu


def local_batch(batch: int) -> int:
  """How many of `batch` examples one device has, by the mesh of jax.set_mesh.

  All of them, if the devices cannot share them equally.
  """
  shards = _shards()
  return batch if batch % shards else batch // shards


def on_each_device(
  function: Callable[[Any, Any], tuple[Any, Any]],
  shared: PyTree[Array],
  arrays: PyTree[Array],
  sums: PyTree[jax.ShapeDtypeStruct] = (),
) -> tuple[PyTree[Array], PyTree[Array]]:
  """Applies a function on each device to the examples there.

  So parameters that are split over the same devices (FSDP) are gathered where
  they are handed over, and the sums of their gradients come back split. Left to
  itself XLA may as well split the features of what is computed, with far more
  traffic.

  Args:
    function: of (shared, arrays), returns (sums, arrays).
    shared: what every device gets whole.
    arrays: what is split over the devices, [B, ...].
    sums: what the function sums over its examples.

  Returns:
    What the function returns: the sums over all examples, and the arrays.
  """
  (batch,) = {x.shape[0] for x in jax.tree.leaves(arrays)}
  if local_batch(batch) == batch:
    return function(shared, arrays)
  shards = _shards()

  def split_axis(x):
    free = [i for i, size in enumerate(x.shape) if size % shards == 0]
    return max(free, key=lambda i: x.shape[i], default=None)

  def spec(x):
    axis = split_axis(x)
    axes = () if axis is None else (*axis * (None,), "data")
    return PartitionSpec(*axes)

  def add(x):
    axis = split_axis(x)
    if axis is None:
      return jax.lax.psum(x, "data")
    return cpu.psum_scatter(x, "data", axis)

  def run(shared, arrays):
    sums, arrays = function(shared, arrays)
    return jax.tree.map(add, sums), arrays

  return jax.shard_map(
    run,
    in_specs=(PartitionSpec(), PartitionSpec("data")),
    out_specs=(jax.tree.map(spec, sums), PartitionSpec("data")),
    axis_names={"data"},
    check_vma=False,
  )(shared, arrays)


def find_number(batch: int, at_once: int) -> int:
  """The smallest number of microbatches of at most `at_once` examples a device.

  Args:
    batch: examples of all devices.
    at_once: at least one example is taken.

  Returns:
    A divisor of the examples of a device.
  """
  local = local_batch(batch)
  return next(
    n
    for n in range(1, local + 1)
    if not local % n and local <= n * max(at_once, 1)
  )


def map_microbatches(
  function: Callable[[Any], Any],
  arrays: tuple[PyTree[Array], ...],
  num_microbatches: int,
) -> PyTree[Array]:
  """Applies `function` to a batch, microbatch by microbatch.

  Args:
    function: of (number of the microbatch, *arrays), returns arrays [b, ...].
    arrays: of the batch, [B, ...].
    num_microbatches: divides B.

  Returns:
    What the function returns, of the whole batch.
  """
  _, out = scan_microbatches(
    lambda _, some: (None, function(some)), None, arrays, num_microbatches
  )
  return out


def scan_microbatches(
  function: Callable[[Any, Any], tuple[Any, Any]],
  carry: PyTree[Array],
  arrays: tuple[PyTree[Array], ...],
  num_microbatches: int,
) -> tuple[PyTree[Array], PyTree[Array]]:
  """Like `map_microbatches`, with a value that goes from one to the next.

  Args:
    function: of (carry, (number of the microbatch, *arrays)), returns the new
      carry and arrays [b, ...].
    carry: the first value.
    arrays, num_microbatches: as in `map_microbatches`.

  Returns:
    The last carry, and the arrays of the whole batch.
  """
  first = jnp.int32(0)
  if _is_on_each_device():
    first = jax.lax.axis_index("data") * num_microbatches
  if num_microbatches == 1:
    return function(carry, (first, *arrays))
  numbers = first + jnp.arange(num_microbatches, dtype=jnp.int32)
  arrays = jax.tree.map(lambda x: _split(x, num_microbatches), arrays)
  carry, out = jax.lax.scan(function, carry, (numbers, *arrays))
  return carry, jax.tree.map(_join, out)


def _is_on_each_device():
  return "data" in jax.sharding.get_abstract_mesh().manual_axes


def _shards():
  if _is_on_each_device():
    return 1
  return jax.sharding.get_abstract_mesh().shape.get("data", 1)


def _split(x, num_microbatches):
  return x.reshape(num_microbatches, -1, *x.shape[1:])


def _join(x):
  return x.reshape(-1, *x.shape[2:])
