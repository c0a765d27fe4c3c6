"""Shapes of a model's parameters, and their random initialization."""

from collections.abc import Mapping

import flax.linen as nn
import jax

from paligemma import quantization, tree


def shapes(
  model: nn.Module, res: int | None = None
) -> dict[str, jax.ShapeDtypeStruct]:
  """Returns the shape of every parameter by name, without allocating any.

  Args:
    model: A Model of models/paligemma.py or models/siglip.py.
    res: Side of the images in pixels, from which the number of position
      embeddings follows. Default: one patch.
  """
  init = _init(model, res)
  return jax.eval_shape(lambda: init(jax.random.key(0)))


def random_params(
  model: nn.Module,
  res: int | None,
  abstract: Mapping[str, jax.ShapeDtypeStruct],
  *,
  seed: int,
) -> dict[str, jax.Array]:
  """Draws parameters; each device draws only its own shards.

  Args:
    model, res: As in `shapes`.
    abstract: By name, shape, dtype and sharding of the wanted parameters;
      quantized ones under the names of their arrays.
    seed: Of the draws.
  """
  init = _init(model, res)

  def draw(key):
    params = init(key)
    return {n: stored(n, params).astype(x.dtype) for n, x in abstract.items()}

  def stored(name, params):
    if name in params:
      return params[name]
    matrix, array = quantization.split(name)
    (kind,) = (k for k in quantization.KINDS if f"{matrix}/{k}" in abstract)
    return quantization.quantize(matrix, params[matrix], kind)[array]

  shardings = {name: leaf.sharding for name, leaf in abstract.items()}
  return jax.jit(draw, out_shardings=shardings)(jax.random.key(seed))


def _init(model, res):
  def init(key):
    return tree.flatten(model.init(key, *model.init_inputs(res))["params"])

  return init
