"""NaFlex: the image tower of SigLIP 2 for images of any aspect ratio.

An image is a sequence of patches with coordinates, padded to a fixed length.
The position embedding, a grid, is resized to the grid of each image. Attention
sees patches alone, never padding, whatever that holds.

Sources: arXiv:2502.14786 section 2.4.2, big_vision's
models/proj/image_text/naflex_vit.py, whose parameters have these names.

Axes: B images, P patches with padding, Z values of a patch, D width.
"""

import math
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from paligemma import parameters, registry, variants
from paligemma.lora import config as lora_lib
from paligemma.models import vit
from paligemma.models.attention.masks import UNSEEN, Mask

# Patches, 1 at a patch and 0 at padding, row and column of each patch.
Patches = tuple[
  Float[ArrayLike, "B P Z"],
  Int[ArrayLike, "B P"],
  Int[ArrayLike, "B P"],
  Int[ArrayLike, "B P"],
]
POOLINGS = ("none", "map")


class Model(nn.Module):
  """Patches to tokens, or to one vector with a pooling.

  Attributes:
    patch_size: Side of a square patch in pixels; Z is 3 * patch_size**2.
    grid: Side of the grid of the position embedding.
    pool_type: "map" lets a learned probe attend; "none" keeps [B, P, D], whose
      padding holds numbers without meaning.
    width, depth, mlp_dim, num_heads, num_classes, dropout, scan, dtype,
      remat_policy, attention, lora: As of vit.Model.
  """

  patch_size: int
  width: int
  depth: int
  mlp_dim: int
  num_heads: int
  grid: int = math.isqrt(variants.NAFLEX_PATCHES)
  num_classes: int | None = None
  pool_type: str = "map"
  dropout: float = 0.0
  scan: bool = True
  remat_policy: str = "block_inputs"
  dtype: str = "float32"
  attention: str = "auto"
  lora: lora_lib.Lora | None = None

  tower = "img"  # in the names of parameters

  @nn.compact
  def __call__(
    self, image: Patches, train: bool = False
  ) -> tuple[Float[Array, "B ..."], dict[str, Any]]:
    """Embeds patches, whose values are in [-1, 1] (see data/naflex.py).

    Returns:
      [B, C], C being num_classes or the width ([B, P, C] without a pooling),
      and a dict of intermediates, named as in big_vision: "stem" and
      "with_posemb" [B, P, D], "encoder" (see vit.Encoder), "encoded" [B, P, D],
      "head_input", "pre_logits" and, with a head, "logits".
    """
    registry.lookup(dict.fromkeys(POOLINGS), self.pool_type, "pool_type")
    patches, kind, y, x = image
    is_patch = jnp.asarray(kind) == 1
    y, x = (jnp.where(is_patch, at, 0) for at in (y, x))
    patches = jnp.where(is_patch[:, :, None], patches, 0)
    dense = nn.Dense(self.width, dtype=jnp.float32, name="embedding")
    z = dense(patches)
    out = {"stem": z}
    positions = self.param(
      "pos_embedding",
      nn.initializers.normal(self.width**-0.5),
      (self.grid, self.grid, self.width),
      jnp.float32,
    )
    z += resized_positions(positions, y, x)
    out["with_posemb"] = z
    z = nn.Dropout(self.dropout)(z, deterministic=not train)
    encoder = vit.Encoder(self.clone(parent=None), name="Transformer")
    z, out["encoder"] = encoder(z, train, _mask(is_patch, is_patch))
    out["encoded"] = z
    if self.pool_type == "map":
      config = self.clone(parent=None, lora=None)
      head = vit.MAPHead(config, name="MAPHead_0")
      z = head(z, _mask(jnp.ones_like(is_patch[:, :1]), is_patch))
    out["head_input"] = out["pre_logits"] = z
    if self.num_classes is not None:
      out["logits"] = z = vit.head(self)(z, train).astype(jnp.float32)
    return z, out

  @nn.nowrap
  def init_input(self, res: int | None) -> Patches:
    """Returns one patch, whatever the resolution: parameters do not have it."""
    del res
    kind = jnp.zeros((1, 1), jnp.int32)
    return jnp.zeros((1, 1, 3 * self.patch_size**2)), kind, kind, kind


def _mask(queries: Bool[Array, "B T"], keys: Bool[Array, "B P"]) -> Mask:
  """Every patch attends to every patch; padding neither sees nor is seen."""
  query_block = jnp.where(queries, 0, -1)
  key_block = jnp.where(keys, 0, UNSEEN)
  return Mask(
    query_block=query_block,
    key_block=key_block,
    query_position=jnp.zeros_like(query_block),
    key_position=jnp.zeros_like(key_block),
  )


def resized_positions(
  positions: Float[ArrayLike, "g g D"],
  y: Int[Array, "B P"],
  x: Int[Array, "B P"],
) -> Float[Array, "B P D"]:
  """Resizes a grid of embeddings to that of each image, and looks them up.

  Resizing is linear with antialiasing, as jax.image.resize does it: at half
  the size a new position is a mean of old ones. Only the positions that are
  asked for are computed, so an image may have any number of rows and columns
  (the reference has 64 at most, and NaN beyond).

  Args:
    positions: A square grid.
    y, x: Row and column of each patch, 0 at padding. The grid of an image ends
      with its largest row and column.
  """
  size = positions.shape[0]
  rows, columns = (
    _weights(at, at.max(axis=1, keepdims=True) + 1, size) for at in (y, x)
  )
  weights = rows[:, :, :, None] * columns[:, :, None, :]
  flat = jnp.asarray(positions, jnp.float32).reshape(size * size, -1)
  return jnp.einsum(
    "BPG,GD->BPD", weights.reshape(*y.shape, -1), flat, precision="highest"
  )


def _weights(at, length, size):
  """float32[B, P, size]: the weight of each old position in a new one."""
  scale = size / length.astype(jnp.float32)
  centre = (at + 0.5) * scale - 0.5
  distance = jnp.abs(centre[:, :, None] - jnp.arange(size)[None, None])
  weights = 1 - distance / jnp.maximum(scale, 1)[:, :, None]
  weights = jnp.maximum(weights, 0)
  return weights / weights.sum(axis=2, keepdims=True)


def make(variant: str, *, dtype: str = "float32", **fields: Any) -> Model:
  """Returns an image tower by name, as vit.make does: "B/16"."""
  for field in fields:
    registry.lookup(Model.__annotations__, field, "image tower field")
  tower = vit.make(variant, dtype=dtype)
  sizes = {name: getattr(tower, name) for name in parameters.SIZES["img"]}
  return Model(**{**sizes, "dtype": dtype, **fields})
