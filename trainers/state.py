"""The arrays of a run: trainable and frozen parameters, optimizer state.

Parameters are flat here, "llm/layers/attn/q_einsum/w" -> array, so that what
trains and what is frozen are two dicts.
"""

import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from paligemma import init, io, parameters, quantization, registry, tree
from paligemma.checkpoints import fit, formats, leaves, quantized_leaves
from paligemma.lora import apply as lora
from paligemma.training import sharding
from trainers import progress

Shapes = dict[str, jax.ShapeDtypeStruct]


@flax.struct.dataclass
class TrainState:
  """What a step changes."""

  step: jax.Array  # int32[], batches done
  trainable: dict[str, jax.Array]  # in float32
  opt_state: Any
  ema: dict[str, jax.Array] | None  # moving averages of `trainable`


def abstract_params(
  model: io.Model,
  config: ConfigDict,
  mesh: jax.sharding.Mesh,
  *,
  trainable: Sequence[str] | None = None,
  frozen_sharding: str = "shard",
) -> tuple[Shapes, Shapes]:
  """Shapes, dtypes and shardings of what trains and of what is frozen.

  A frozen_dtype of quantization.KINDS leaves in float32 what is not quantized.
  `trainable` overrides the config's. With `frozen_sharding` "replicate"
  FSDP does not split what is frozen; tensor parallelism does.

  Raises:
    ValueError: a regex matches no parameter, or an unknown frozen_dtype.
  """
  frozen_dtype = config.frozen_dtype
  trainable = config.trainable if trainable is None else trainable
  registry.lookup(quantized_leaves.HELD_IN, frozen_dtype, "frozen_dtype")
  shapes = init.shapes(model, config.res)
  trained, frozen = tree.partition(shapes, tree.match_any(trainable, shapes))
  kind = frozen_dtype if frozen_dtype in quantization.KINDS else None
  dtypes = quantized_leaves.storage_dtypes(
    frozen, "float32" if kind else frozen_dtype
  )
  stored = quantized_leaves.storage(frozen, dtypes, kind)
  in_float32 = dict.fromkeys(trained, jnp.float32)
  stored |= quantized_leaves.storage(trained, in_float32, None)
  shardings = sharding.infer(stored, mesh, config.sharding)
  if frozen_sharding == "replicate":
    rules = [
      (regex, "tensor_parallel" if strategy == "fsdp" else strategy)
      for regex, strategy in config.sharding
    ]
    whole = sharding.infer(stored, mesh, rules)
    shardings |= {name: x for name, x in whole.items() if name not in trained}
  sharded = {
    name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=shardings[name])
    for name, leaf in sorted(stored.items())
  }
  return tree.partition(sharded, {name: name in trained for name in sharded})


def abstract_state(
  optimizer: optax.GradientTransformation,
  trainable: Shapes,
  *,
  mesh: jax.sharding.Mesh,
  ema: bool,
) -> TrainState:
  """A TrainState of shapes, dtypes and shardings.

  What the optimizer keeps per parameter is sharded like the parameter. With
  `ema`, a moving average of what trains is kept.
  """
  state = jax.eval_shape(lambda t: _new_state(optimizer, t, ema), trainable)
  shardings = {name: leaf.sharding for name, leaf in trainable.items()}
  return jax.tree.map(
    lambda leaf, s: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=s),
    state,
    sharding.infer_state(state, trainable, shardings, mesh),
  )


def create_state(
  optimizer: optax.GradientTransformation,
  trainable: dict[str, jax.Array],
  abstract: TrainState,
) -> TrainState:
  """A TrainState at step 0, sharded as in `abstract`; donates `trainable`."""
  create = jax.jit(
    lambda t: _new_state(optimizer, t, abstract.ema is not None),
    donate_argnums=0,
    out_shardings=jax.tree.map(lambda leaf: leaf.sharding, abstract),
  )
  return create(trainable)


def load_params(
  path: str | Mapping[str, str], abstract: Shapes, names: Iterable[str]
) -> dict[str, jax.Array]:
  """Reads parameters from a checkpoint, one at a time, cast and sharded.

  Args:
    path: see formats.open.
    abstract: all parameters, with shardings. A position embedding of another
      resolution is resampled, and a matrix is quantized while it is read.
    names: those to read; a resumed run has the others in its checkpoint.

  Returns:
    Arrays by name, without adapters and heads of losses if the checkpoint has
    none, and of one tower alone if `path` names one.

  Raises:
    ValueError: the file is unreadable, or holds other names or shapes than the
      model; all that differ are listed.
  """
  found = fit_params(path, abstract)
  wanted = {(quantization.split(name) or (name,))[0] for name in names}
  wanted = {name: leaf for name, leaf in found.items() if name in wanted}
  placed = {
    name: abstract[name]
    for name in names
    if (quantization.split(name) or (name,))[0] in wanted
  }
  with progress.copying("reading the weights") as show:
    return quantized_leaves.place_all(wanted, placed, progress=show)


def fit_params(
  path: str | Mapping[str, str], abstract: Shapes
) -> dict[str, leaves.Leaf | quantized_leaves.Pair]:
  """What `load_params` reads, by name, before it is read; raises as it does."""
  if isinstance(path, Mapping) and len(path) == 1:
    (prefix,) = (f"{tower}/" for tower in path)
    abstract = {n: x for n, x in abstract.items() if n.startswith(prefix)}
  shapes = {name: leaf.shape for name, leaf in abstract.items()}
  expected = quantized_leaves.full_shapes(shapes)
  heads = loss_heads(expected)
  checkpoint = formats.open(path, keep=heads)
  for head in heads - loss_heads(checkpoint.leaves):
    expected = {n: x for n, x in expected.items() if loss_heads([n]) != {head}}
  is_adapter = lora.is_adapter(expected)
  if any(lora.is_adapter(checkpoint.leaves).values()):
    _check_adapters(checkpoint, expected)
  else:
    expected = {n: x for n, x in expected.items() if not is_adapter[n]}
  return fit.fit(checkpoint, expected)


def _check_adapters(checkpoint, expected):
  """Raises if the adapters of a checkpoint are not those of the model."""
  ours = leaves.layered_like(checkpoint.leaves, expected)
  found = _ranks({name: leaf.shape for name, leaf in ours.items()})
  wanted = _ranks(expected)
  if found != wanted:
    raise ValueError(
      f"{checkpoint.path}: has {_described(found)}, the model of the config "
      f"{_described(wanted)}; give config.model.lora what they were trained "
      "with, or merge them into the weights: python -m scripts.convert "
      f"{shlex.quote(str(checkpoint.path))} merged.npz"
    )


def _ranks(shapes):
  """Returns the name of the first matrix of every adapter -> its rank."""
  return {
    name: shapes[name][-1]
    for name, belongs in lora.is_adapter(shapes).items()
    if belongs and name.endswith("/a")
  }


def _described(ranks):
  if not ranks:
    return "no adapters"
  every = " and ".join(map(str, sorted(set(ranks.values()))))
  return f"{len(ranks)} adapters of rank {every}"


def loss_heads(names: Iterable[str]) -> set[str]:
  """Which of parameters.LOSS_HEADS have some of the parameters."""
  found = {name.partition("/")[0] for name in names}
  return found.intersection(parameters.LOSS_HEADS)


def _new_state(optimizer, trainable, ema):
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    trainable=trainable,
    opt_state=optimizer.init(trainable),
    # A copy: the step donates the state, and no buffer can be given away twice.
    ema={n: jnp.copy(x) for n, x in trainable.items()} if ema else None,
  )
