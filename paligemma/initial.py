"""The parameters of a model before there is a checkpoint."""

import jax
import jax.numpy as jnp

from paligemma import tree


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
    abstract: name -> jax.ShapeDtypeStruct with sharding, of all parameters.
    seed: int.

  Returns:
    name -> array.
  """
  init = _init(model, res)

  def draw(key):
    params = init(key)
    return {n: params[n].astype(leaf.dtype) for n, leaf in abstract.items()}

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
