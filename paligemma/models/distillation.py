"""Heads of self-distillation: features of views of an image to prototypes.

A student that sees a part of an image learns what a teacher, the moving average
of the student, finds in the whole of it, see training/distillation.py.

Sources: arXiv:2502.14786 section 2.3 (SigLIP 2), arXiv:2310.13355 (SILC),
arXiv:2410.16512 (TIPS); the shape of a head is that of DINO (arXiv:2104.14294).

Axes: B images, L patches, D width, E width of the pooled features, F hidden
units, Q prototypes.
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float


class Head(nn.Module):
  """An MLP to features of norm 1, which are compared with prototypes."""

  config: nn.Module

  @nn.compact
  def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B Q"]:
    config = self.config

    def matrix(name, outputs):
      shape = x.shape[-1], outputs
      return self.param(name, nn.initializers.lecun_normal(), shape)

    for i in range(2):
      x = nn.gelu(x @ matrix(f"hidden_{i}", config.hidden))
    x = _unit(x @ matrix("features", config.features), -1)
    return x @ _unit(matrix("prototypes", config.prototypes), 0)


class Heads(nn.Module):
  """One head for pooled features, one for those of patches.

  Attributes:
    hidden: F, of both layers of the MLP.
    features: Which are compared with the prototypes.
    prototypes: Q.
  """

  hidden: int = 2048
  features: int = 256
  prototypes: int = 8192

  @nn.compact
  def __call__(
    self, pooled: Float[Array, "B E"], patches: Float[Array, "C L D"]
  ) -> tuple[Float[Array, "B Q"], Float[Array, "C L Q"]]:
    """Returns cosines to the prototypes, in float32.

    Parameters beside the heads are "mask_token", which stands for a hidden
    patch, and "centers", whose moving average is that of the teacher's cosines.
    """
    zeros, normal = nn.initializers.zeros, nn.initializers.normal(0.02)
    self.param("mask_token", normal, (1, 1, patches.shape[-1]))
    self.param("centers", zeros, (2, self.prototypes))
    config = self.clone(parent=None)
    return Head(config, name="pooled")(pooled), Head(config, name="patches")(
      patches
    )


def _unit(x, axis):
  square = jnp.sum(x * x, axis=axis, keepdims=True)
  return x / jnp.sqrt(square + 1e-12)
