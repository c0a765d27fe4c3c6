"""The parameters of a model before there is a checkpoint."""

import jax
import jax.numpy as jnp

from paligemma import quantization, tree


def shapes(model, res=None):
  """Names and shapes of all parameters; allocates nothing.

  Args:
    model: paligemma Model.
    res: int, side of the images in pixels, which tells the number of positions.
      Default: one patch.

  Returns:
    name -> jax.ShapeDtypeStruct.
  """
  return jax.eval_shape(_init(model, res), jax.random.key(0))


def random_params(model, res, abstract, *, seed):
  """Draws every parameter, each device only its own part.

  Args:
    model: paligemma Model.
    res: int, side of the images in pixels.
    abstract: name -> jax.ShapeDtypeStruct with sharding, of those that are
      wanted; quantized ones under the names of their arrays.
    seed: int.

  Returns:
    name -> array.
  """
  init = _init(model, res)

  def draw(key):
    params = init(key)
    return {n: _stored(n, params).astype(x.dtype) for n, x in abstract.items()}

  def _stored(name, params):
    if name in params:
      return params[name]
    matrix, part = quantization.split(name)
    (kind,) = (k for k in quantization.KINDS if f"{matrix}/{k}" in abstract)
    return quantization.quantize(matrix, params[matrix], kind)[part]

  places = {name: leaf.sharding for name, leaf in abstract.items()}
  return jax.jit(draw, out_shardings=places)(jax.random.key(seed))


def _init(model, res):
  def init(key):
    image = None
    if model.img is not None:
      side = res or model.img.patch_size
      image = jnp.zeros((1, side, side, 3), jnp.float32)
    text = jnp.zeros((1, 1), jnp.int32)
    return tree.flatten(model.init(key, image, text, text)["params"])

  return init
