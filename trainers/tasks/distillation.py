"""Self-distillation and masked prediction of the image tower of a SigLIP.

See arXiv:2502.14786, section 2.3, and paligemma/training/distillation.py.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from paligemma.models import vit
from paligemma.models.siglip import Model
from paligemma.training import distillation

MASKED = 0.25  # weight of masked prediction, beside 1 of local views


def make(model: Model) -> Callable[..., dict[str, jax.Array]]:
  """Builds both losses of a batch.

  Args:
    model: with heads.

  Returns:
    Function of the student's parameters, a batch with what distillation.draw
    returns, a key for dropout, `teacher`, parameters likewise, and `is_taught`,
    whether the losses are wanted; else they are 0. It returns sums over the
    real images: "local", the mean loss of local views; "masked", the mean loss
    of hidden patches; and "centers" float32[2, Q], of the teacher's cosines of
    images and of patches.
  """
  image_tower, heads = model.img, model.distill

  def features(params, pixels, **options):
    """Pooled and of patches, for images of any resolution."""
    side = pixels.shape[1] // image_tower.patch_size
    params = vit.with_positions(params["img"], side)
    pooled, out = image_tower.apply({"params": params}, pixels, **options)
    return pooled, out["encoded"]

  def cosines(params, pooled, patches):
    return heads.apply({"params": params["distill"]}, pooled, patches)

  def losses(params, teacher, batch, rng):
    images, is_real = batch["image"], batch["_mask"].astype(jnp.float32)
    res, side = images.shape[1], image_tower.patch_size
    res -= res % side

    def view(at, size):
      names = "box", "flip", "colour"
      return distillation.crop(
        images, *(batch[name][:, at] for name in names), size
      )

    whole = view(slice(1), res)
    local = view(slice(1, None), distillation.local_size(res, side))
    t_pooled, t_patches = jax.lax.stop_gradient(
      cosines(teacher, *features(teacher, whole))
    )
    options = {"train": True, "rngs": {"dropout": rng}}
    pooled, _ = features(params, local, **options)
    masked = batch["hidden"], params["distill"]["mask_token"]
    _, patches = features(params, whole, masked=masked, **options)
    pooled, patches = cosines(params, pooled, patches)
    centers = teacher["distill"]["centers"]
    views = distillation.LOCAL_VIEWS
    of_local = jax.vmap(distillation.consistency, (1, None, None))(
      pooled.reshape(-1, views, pooled.shape[1]), t_pooled, centers[0]
    ).mean(axis=0)
    of_patches = distillation.consistency(patches, t_patches, centers[1])
    hidden = batch["hidden"].astype(jnp.float32)
    count = jnp.maximum(hidden.sum(axis=1), 1)
    of_masked = (of_patches * hidden).sum(axis=1) / count
    means = jnp.stack([t_pooled, t_patches.mean(axis=1)])
    return {
      "local": (of_local * is_real).sum(),
      "masked": (of_masked * is_real).sum(),
      "centers": (means * is_real[None, :, None]).sum(axis=1),
    }

  def distill(
    params: Mapping[str, Any],
    batch: Mapping[str, jax.Array],
    rng: jax.Array,
    *,
    teacher: Mapping[str, Any],
    is_taught: jax.Array,
  ) -> dict[str, jax.Array]:
    def nothing(params, teacher, batch, rng):
      shapes = jax.eval_shape(losses, params, teacher, batch, rng)
      return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

    return jax.lax.cond(is_taught, losses, nothing, params, teacher, batch, rng)

  return distill
