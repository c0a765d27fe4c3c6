"""Shardings of parameters, optimizer state and batches over a mesh.

Mesh axis "data" splits the batch, and under FSDP the parameters too: a device
stores a part and gathers the rest of a layer when it runs. Mesh axis "model"
splits heads, hidden units and the vocabulary: tensor parallelism.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from paligemma import parameters, quantization, registry, tree

# Tensor parallelism splits the first of these axes that a parameter has (N
# heads, K kv heads, F hidden units, V vocabulary), see parameters.py.
TENSOR_PARALLEL = ("N", "K", "F", "V")

# Leaves of fewer elements (64 KiB in float32) are not split over "data": the
# memory is not worth the time to gather them.
MIN_FSDP_SIZE = 2**14


def make_mesh(
  data: int = -1,
  model: int = 1,
  devices: Sequence[jax.Device] | None = None,
) -> Mesh:
  """Arranges devices in a mesh with the axes "data" and "model".

  Args:
    data: Number of parts of the batch; -1: all devices / model.
    model: Number of parts of each layer; 1: no tensor parallelism.
    devices: Default: all devices of all processes.

  Returns:
    A mesh whose shardings XLA propagates (AxisType.Auto).

  Raises:
    ValueError: data * model is not the number of devices, or one part of the
      batch would belong to several processes.
  """
  devices = list(jax.devices() if devices is None else devices)
  count = len(devices)
  if model < 1 or (data < 1 and data != -1):
    raise ValueError(
      f"mesh data={data}, model={model}: expected sizes of 1 or more, "
      "or data=-1 for all the devices that are left"
    )
  if data == -1:
    if count % model:
      raise ValueError(
        f"mesh model={model} does not divide the {count} devices; "
        f"use one of {_divisors(count)}"
      )
    data = count // model
  if data * model != count:
    raise ValueError(
      f"mesh data={data} x model={model} needs {data * model} devices, found "
      f"{count}; use data=-1 for all the devices that are left"
    )
  mesh = jax.make_mesh(
    (data, model),
    ("data", "model"),
    axis_types=(AxisType.Auto, AxisType.Auto),
    devices=devices,
  )
  for group in mesh.devices:
    if len({device.process_index for device in group}) > 1:
      local = count // _process_count(mesh)
      raise ValueError(
        f"mesh model={model} spans several processes of {local} devices, which "
        f"would share one part of the batch; use one of {_divisors(local)}"
      )
  return mesh


def infer(
  shapes: Mapping[str, Any],
  mesh: Mesh,
  rules: Sequence[tuple[str, str]] = ((".*", "fsdp"),),
) -> dict[str, NamedSharding]:
  """Chooses for every leaf of a flat tree how it is split over the mesh.

  With mesh data=4, model=2, for PaliGemma 3B:

      llm/embedder/input_embedding  (257152, 2048)       model, data
      llm/layers/attn/q_einsum/w    (18, 8, 2048, 256)   -, model, data, -
      llm/layers/attn/kv_einsum/w   (18, 2, 1, 2048, 256)  -, -, -, data, -
      img/head/bias                 (2048,)              replicated

  Args:
    shapes: Name -> anything with a `shape`.
    mesh: Of `make_mesh`.
    rules: (regex, strategy) pairs, the first that matches a whole name counts.
      "replicate": every device has all of it. "fsdp": the axis of
      TENSOR_PARALLEL over "model" where it divides, then the largest remaining
      axis that divides over "data", unless the leaf is below MIN_FSDP_SIZE.
      "tensor_parallel": the former alone.

  Raises:
    ValueError: An unknown strategy, a regex without any match, or a name
      without a regex.

  Source: the FSDP rule is that of big_vision/sharding.py, which does not split
  below 4 MiB, and has no table for tensor parallelism.
  """
  shardings = {}
  for name, strategy in tree.match_first(rules, shapes).items():
    choose = registry.lookup(STRATEGIES, strategy, "sharding strategy")
    spec = choose(name, tuple(shapes[name].shape), mesh)
    shardings[name] = NamedSharding(mesh, spec)
  return shardings


def infer_state(
  state: Any,
  shapes: Mapping[str, Any],
  shardings: Mapping[str, NamedSharding],
  mesh: Mesh,
) -> Any:
  """Shards the state of an optimizer like the parameters it belongs to.

  A leaf with the name and the shape of a parameter (a moment) has its sharding,
  any other (counts, factored moments) is replicated.

  Args:
    state: Tree of leaves with a `shape`, such as jax.eval_shape(tx.init,
      params), with flat dicts of leaves by parameter name somewhere inside.
    shapes, shardings: Of the parameters, given to and by `infer`.
    mesh: Of both.
  """

  def choose(path, leaf):
    name = getattr(path[-1], "key", None) if path else None
    if name in shardings and shapes[name].shape == leaf.shape:
      return shardings[name]
    return replicated(mesh)

  return jax.tree_util.tree_map_with_path(choose, state)


def _fsdp(name, shape, mesh, data=None):
  axes = [None] * len(shape)
  split = _tensor_parallel_axis(name, shape, mesh.shape["model"])
  if split is not None:
    axes[split] = "model"
  data = data or mesh.shape["data"]
  free = [i for i, axis in enumerate(axes) if not axis and shape[i] % data == 0]
  if data > 1 and free and math.prod(shape) >= MIN_FSDP_SIZE:
    axes[max(free, key=lambda i: shape[i])] = "data"
  while axes and axes[-1] is None:  # P() rather than P(None, None)
    axes.pop()
  return PartitionSpec(*axes)


def _tensor_parallel_axis(name, shape, model):
  matrix, _ = quantization.split(name) or (name, None)
  row = parameters.find(matrix)
  if model == 1 or row is None:
    return None
  for letter in TENSOR_PARALLEL:
    if letter in row.axes:
      axis = row.axis(letter)
      return axis if shape[axis] % model == 0 else None
  return None


STRATEGIES = {
  "fsdp": _fsdp,
  "tensor_parallel": functools.partial(_fsdp, data=1),
  "replicate": lambda name, shape, mesh: PartitionSpec(),
}


def describe(sharding: NamedSharding) -> str:
  """Returns which array axis each mesh axis splits: "data:1 model:0".

  "replicated" if there is none.
  """
  splits = []
  for i, names in enumerate(sharding.spec):
    for name in (names,) if isinstance(names, str) else names or ():
      splits.append(f"{name}:{i}")
  return " ".join(sorted(splits)) or "replicated"


def replicated(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of an array that every device has all of."""
  return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of an array whose first axis is the batch."""
  return NamedSharding(mesh, PartitionSpec("data"))


def check_batch_size(batch_size: int, mesh: Mesh) -> None:
  """Raises a ValueError if a global batch cannot be split over the mesh."""
  data = mesh.shape["data"]
  if batch_size % data:
    raise ValueError(
      f"batch_size {batch_size} is not divisible by the {data} devices of mesh "
      f'axis "data"; use a multiple of {data}'
    )


def put_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, Any]:
  """Makes global arrays of the examples that each process has loaded.

  All processes have as many. The arrays are split over mesh axis "data".

  Raises:
    ValueError: The global batch is not divisible by the size of that axis.
  """
  sharding = batch_sharding(mesh)

  def put(local):
    shape = (len(local) * _process_count(mesh), *local.shape[1:])
    check_batch_size(shape[0], mesh)
    return jax.make_array_from_process_local_data(sharding, local, shape)

  return {name: put(local) for name, local in batch.items()}


def fetch(arrays: Any) -> Any:
  """Copies global arrays to every host as np.ndarray.

  All processes must call it, with the same tree.
  """

  def get(array):
    if array.is_fully_addressable or array.is_fully_replicated:
      return np.asarray(array)
    return multihost_utils.process_allgather(array, tiled=True)

  return jax.tree.map(get, arrays)


def _process_count(mesh):
  return len({device.process_index for device in mesh.devices.flat})


def _divisors(count):
  return ", ".join(str(i) for i in range(1, count + 1) if count % i == 0)
