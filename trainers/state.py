"""What a training run holds: trainable, frozen and optimizer state, in place.

Parameters are flat here, "llm/layers/attn/q_einsum/w" -> array, so that what
trains is simply another dict than what is frozen.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from paligemma import init, quantization, registry, tree
from paligemma.checkpoints import fit, formats, quantized_leaves
from paligemma.lora import apply as lora
from paligemma.models.paligemma import Model
from paligemma.training import sharding

_FROZEN_DTYPES = dict.fromkeys(
  ("float32", "bfloat16", "float16", *quantization.KINDS)
)

Shapes = dict[str, jax.ShapeDtypeStruct]


@flax.struct.dataclass
class TrainState:
  """What a step changes.

  Attributes:
    step: int32[], batches done.
    trainable: name -> float32 parameter.
    opt_state: state of the optimizer.
    ema: name -> float32 moving average of the parameter, or None.
  """

  step: jax.Array
  trainable: dict[str, jax.Array]
  opt_state: Any
  ema: dict[str, jax.Array] | None


def abstract_params(
  model: Model,
  *,
  res: int,
  trainable: Sequence[str],
  frozen_dtype: str,
  mesh: jax.sharding.Mesh,
  sharding_rules: Sequence[tuple[str, str]],
) -> tuple[Shapes, Shapes]:
  """Shapes, storage dtypes and places of all parameters; allocates nothing.

  Args:
    model: paligemma Model.
    res: int, side of the images in pixels.
    trainable: regexes of the names that train.
    frozen_dtype: dtype of what is frozen, see parameters.stays_float32, or one
      of quantization.KINDS, which leaves in float32 what is not quantized.
    mesh: mesh of sharding.make_mesh.
    sharding_rules: see sharding.infer.

  Returns:
    Two flat dicts of jax.ShapeDtypeStruct with shardings: trainable, frozen.

  Raises:
    ValueError: a regex matches no parameter, or an unknown frozen_dtype.
  """
  registry.lookup(_FROZEN_DTYPES, frozen_dtype, "frozen_dtype")
  shapes = init.shapes(model, res)
  trained, frozen = tree.partition(shapes, tree.match_any(trainable, shapes))
  kind = frozen_dtype if frozen_dtype in quantization.KINDS else None
  dtypes = quantized_leaves.storage_dtypes(
    frozen, "float32" if kind else frozen_dtype
  )
  stored = quantized_leaves.storage(frozen, dtypes, kind)
  in_float32 = dict.fromkeys(trained, jnp.float32)
  stored |= quantized_leaves.storage(trained, in_float32, None)
  places = sharding.infer(stored, mesh, sharding_rules)
  placed = {
    name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=places[name])
    for name, leaf in sorted(stored.items())
  }
  return tree.partition(placed, {name: name in trained for name in placed})


def abstract_state(
  optimizer: optax.GradientTransformation,
  trainable: Shapes,
  *,
  mesh: jax.sharding.Mesh,
  ema: bool,
) -> TrainState:
  """Shapes and places of the whole TrainState; allocates nothing.

  What the optimizer keeps per parameter lies where the parameter lies.

  Args:
    optimizer: optax transformation.
    trainable: name -> jax.ShapeDtypeStruct with sharding.
    mesh: the mesh.
    ema: bool, whether a moving average is kept.

  Returns:
    TrainState of jax.ShapeDtypeStruct.
  """
  state = jax.eval_shape(lambda t: _new_state(optimizer, t, ema), trainable)
  places = sharding.infer_state(
    state,
    trainable,
    {name: leaf.sharding for name, leaf in trainable.items()},
    mesh,
  )
  return jax.tree.map(
    lambda leaf, where: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=where
    ),
    state,
    places,
  )


def create_state(
  optimizer: optax.GradientTransformation,
  trainable: dict[str, jax.Array],
  abstract: TrainState,
) -> TrainState:
  """Starts a TrainState at step 0 from loaded parameters.

  Args:
    optimizer: optax transformation.
    trainable: name -> float32 array; their buffers are reused.
    abstract: what `abstract_state` returned.

  Returns:
    TrainState of arrays, placed as in `abstract`.
  """
  ema = abstract.ema is not None
  places = jax.tree.map(lambda leaf: leaf.sharding, abstract)
  create = jax.jit(
    lambda t: _new_state(optimizer, t, ema),
    donate_argnums=0,
    out_shardings=places,
  )
  return create(trainable)


def load_params(
  path: str, abstract: Shapes, names: Iterable[str]
) -> dict[str, jax.Array]:
  """Reads parameters from a checkpoint, one at a time, cast and placed.

  Args:
    path: see formats.open.
    abstract: name -> jax.ShapeDtypeStruct with sharding, of all parameters. A
      position embedding of another resolution is resampled; a matrix that is to
      be quantized is, while it is read.
    names: those to place; a resumed run has the others in its checkpoint.

  Returns:
    name -> array. Adapters are missing if the checkpoint has none at all.

  Raises:
    ValueError: the file is unreadable, or holds other names or shapes than the
      model; all that differ are listed.
  """
  checkpoint = formats.open(path)
  shapes = {name: leaf.shape for name, leaf in abstract.items()}
  expected = quantized_leaves.full_shapes(shapes)
  if not any(lora.is_adapter(checkpoint.leaves).values()):
    is_adapter = lora.is_adapter(expected)
    expected = {n: x for n, x in expected.items() if not is_adapter[n]}
  found = fit.fit(checkpoint, expected)
  wanted = {(quantization.split(name) or (name,))[0] for name in names}
  return quantized_leaves.place_all(
    {name: leaf for name, leaf in found.items() if name in wanted},
    {name: abstract[name] for name in names},
  )


def place(array: Any, like: jax.ShapeDtypeStruct) -> jax.Array:
  """Casts a host array and gives every device its part of it."""
  array = np.asarray(array).astype(like.dtype, copy=False)
  return jax.make_array_from_callback(
    like.shape, like.sharding, lambda index: array[index]
  )


def _new_state(optimizer, trainable, ema):
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    trainable=trainable,
    opt_state=optimizer.init(trainable),
    # A copy: the step donates the state, and no buffer can be given away twice.
    ema={n: jnp.copy(x) for n, x in trainable.items()} if ema else None,
  )
