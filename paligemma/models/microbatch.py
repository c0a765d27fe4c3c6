"""A batch in microbatches, one after the other, to save memory.

Batch: the first axis of arrays, split over the devices of mesh axis "data".
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jax.typing import ArrayLike
from jaxtyping import Array, PyTree

from paligemma.models import cpu, device

_SCATTERED_AT_ONCE = 8


def local_batch(batch: int) -> int:
  """Returns how many of `batch` examples a device has, by jax.set_mesh.

  All of them, if the devices cannot share them equally.
  """
  shards = _shards()
  return batch if batch % shards else batch // shards


def on_each_device(
  function: Callable[[Any, Any], tuple[Any, Any]],
  shared: PyTree[ArrayLike],
  arrays: PyTree[ArrayLike],
  sums: PyTree[jax.ShapeDtypeStruct] = (),
) -> tuple[PyTree[Array], PyTree[Array]]:
  """Applies a function on each device to the examples there.

  So parameters that are split over the same devices (FSDP) are gathered before
  it, and the sums of their gradients are split again. Otherwise XLA may as well
  split the features of intermediates, with far more traffic.

  Args:
    function: Of (shared, arrays), returns (sums, arrays).
    shared: Replicated on every device.
    arrays: Split over the devices, [B, ...].
    sums: Shapes and dtypes of what the function sums over its examples. It may
      return them in fewer bits; devices add them in these dtypes.

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

  def add(x, like):
    x, axis = x.astype(like.dtype), split_axis(x)
    if axis is None:
      return jax.lax.psum(x, "data")
    return _psum_scatter(x, axis)

  def run(shared, arrays):
    of_device, arrays = function(shared, arrays)
    return _add_over_devices(add, of_device, sums), arrays

  return jax.shard_map(
    run,
    in_specs=(PartitionSpec(), PartitionSpec("data")),
    out_specs=(jax.tree.map(spec, sums), PartitionSpec("data")),
    axis_names={"data"},
    check_vma=False,
  )(shared, arrays)


def _add_over_devices(add, sums, like):
  """Adds the sums of all devices; on TPUs, the largest after all others.

  Gradients of a single microbatch have 16 bits until they are added. libtpu
  0.0.51 would hold both largest in float32 at once: 0.2 GiB more for PaliGemma
  2 10B, 0.3 GiB for 28B.
  """
  leaves, structure = jax.tree.flatten(sums)
  like, added = jax.tree.leaves(like), [None] * len(leaves)
  order = sorted(range(len(leaves)), key=lambda i: leaves[i].size)
  for position, i in enumerate(order):
    x, before = leaves[i], order[position - 1]
    if i == order[-1] != before and device.current().platform == "tpu":
      x, added[before] = jax.lax.optimization_barrier((x, added[before]))
    added[i] = add(x, like[i])
  return structure.unflatten(added)


def _psum_scatter(x, axis):
  """Sums over mesh axis "data" and splits an axis over it, on TPUs in turns.

  If all of more than 8 devices take part at once, the compiler of TPUs (libtpu
  0.0.51) makes it an all-reduce, of which each device keeps a part.
  """
  shards = jax.lax.axis_size("data")
  if device.current().platform != "tpu" or shards <= _SCATTERED_AT_ONCE:
    return cpu.psum_scatter(x, "data", axis)
  width = max(n for n in range(1, math.isqrt(shards) + 1) if shards % n == 0)
  lines = np.arange(shards).reshape(width, -1)
  for groups in (lines.T, lines)[width == 1 :]:
    x = jax.lax.psum_scatter(
      x,
      "data",
      scatter_dimension=axis,
      axis_index_groups=groups.tolist(),
      tiled=True,
    )
  return x


def split_batch(x: Array) -> Array:
  """Says that the first axis is split over the devices, if they share it.

  XLA may otherwise give every device all examples, to split features instead:
  of parameters that are split themselves.
  """
  if local_batch(len(x)) == len(x):
    return x
  return jax.lax.with_sharding_constraint(x, PartitionSpec("data"))


def replicate(x: Array) -> Array:
  """Says that every device has the whole of a parameter, however it is kept.

  XLA may otherwise split what it computes from a small parameter and one that
  is not split, and gather all of that.
  """
  if _shards() == 1:
    return x
  return jax.lax.with_sharding_constraint(x, PartitionSpec())


def find_number(batch: int, at_once: int) -> int:
  """Returns into how many microbatches each device splits its examples.

  It is the smallest divisor such that a microbatch has at most `at_once`
  examples, or one. `batch` counts the examples of all devices.
  """
  local = local_batch(batch)
  return next(
    n
    for n in range(1, local + 1)
    if not local % n and local <= n * max(at_once, 1)
  )


def scan_microbatches(
  function: Callable[[Any, Any], tuple[Any, Any]],
  carry: PyTree[ArrayLike],
  arrays: tuple[PyTree[ArrayLike], ...],
  num_microbatches: int,
) -> tuple[PyTree[Array], PyTree[Array]]:
  """Applies `function` to a batch, one microbatch after the other.

  Args:
    function: Of (carry, (index of the microbatch, *arrays)), returns the new
      carry and arrays [b, ...].
    carry: The first value.
    arrays: [B, ...].
    num_microbatches: Divides B.

  Returns:
    The last carry, and the arrays of the whole batch.
  """
  first = jnp.int32(0)
  if _is_on_each_device():
    first = jax.lax.axis_index("data") * num_microbatches
  if num_microbatches == 1:
    return function(carry, (first, *arrays))
  numbers = first + jnp.arange(num_microbatches, dtype=jnp.int32)
  arrays = jax.tree.map(
    lambda x: x.reshape(num_microbatches, -1, *x.shape[1:]), arrays
  )
  carry, out = jax.lax.scan(function, carry, (numbers, *arrays))
  return carry, jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), out)


def _is_on_each_device():
  return "data" in jax.sharding.get_abstract_mesh().manual_axes


def _shards():
  if _is_on_each_device():
    return 1
  return jax.sharding.get_abstract_mesh().shape.get("data", 1)
