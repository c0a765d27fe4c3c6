"""The image tower: a Vision Transformer as SigLIP trains it.

The text tower of SigLIP (text_tower.py) is made of the same blocks. Names and
shapes of the parameters are those of big_vision's models/vit.py, so its
checkpoints load unchanged. Sources: arXiv:2010.11929 (ViT), arXiv:2205.01580
(sincos2d), arXiv:2106.04560 (MAP head), arXiv:2303.15343 (SigLIP).

Axes: B batch, H height, W width in pixels, L patches, D width, N heads; T
queries, S keys of width C.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from paligemma import registry, variants
from paligemma.lora import config as lora_lib
from paligemma.models.attention import reference as attention
from paligemma.models.attention.masks import Mask
from paligemma.models.linear import Linear
from paligemma.models.stack import Call, Stack

# Hidden values of the MLP that one device holds at once, 128 MiB in float32.
_HIDDEN_AT_ONCE = 2**25

POOLINGS = ("none", "gap", "map", "tok", "0")


def sincos2d(
  height: int, width: int, features: int, *, max_wavelength: float = 10_000
) -> Float[Array, "1 L D"]:
  """Returns sines and cosines of the coordinates of height x width patches.

  Features, whose number is a multiple of 4, are sin x, cos x, sin y, cos y in
  that order; `max_wavelength` is the slowest wave, in patches per radian.
  """
  if features % 4:
    raise ValueError(f"sincos2d needs a width divisible by 4, got {features}")
  y, x = np.mgrid[:height, :width]
  exponent = np.arange(features // 4) / max(features // 4 - 1, 1)
  omega = 1.0 / max_wavelength**exponent
  x = x.reshape(-1, 1) * omega
  y = y.reshape(-1, 1) * omega
  waves = np.concatenate([np.sin(x), np.cos(x), np.sin(y), np.cos(y)], axis=1)
  return jnp.asarray(waves[None], jnp.float32)


def _linear(config, shape, name, target, kernel_init=None, **options) -> Linear:
  return Linear(
    shape,
    config.dtype,
    kernel_init=kernel_init or nn.initializers.xavier_uniform(),
    lora=config.lora,
    target=f"{config.tower}/{target}",
    name=name,
    **options,
  )


def head(
  config: nn.Module, init: nn.initializers.Initializer | None = None
) -> Linear:
  """Returns the linear head of a tower, which has `num_classes` features."""
  init = init or nn.initializers.lecun_normal()
  return _linear(config, (config.num_classes,), "head", "head", init)


class MlpBlock(nn.Module):
  """Two dense layers with tanh GELU between, in the compute dtype."""

  config: nn.Module

  @nn.compact
  def __call__(
    self, x: Float[Array, "B T D"], train: bool = False
  ) -> Float[Array, "B T D"]:
    config, width = self.config, x.shape[-1]
    bias = {"bias_init": nn.initializers.normal(1e-6)}
    up = _linear(config, (config.mlp_dim,), "Dense_0", "mlp/up", **bias)
    hidden = nn.gelu(up(x, train))
    hidden = nn.Dropout(config.dropout)(hidden, deterministic=not train)
    down = _linear(config, (width,), "Dense_1", "mlp/down", **bias)
    return down(hidden, train)


class MultiHeadDotProductAttention(nn.Module):
  """Attention of queries over keys, which are the values too."""

  config: nn.Module

  @nn.compact
  def __call__(
    self,
    queries: Float[Array, "B T D"],
    keys: Float[Array, "B S C"],
    train: bool = False,
    mask: Mask | None = None,
  ) -> Float[Array, "B T D"]:
    config, width = self.config, queries.shape[-1]
    head_dim, rest = divmod(width, config.num_heads)
    if rest:
      raise ValueError(
        f"tower width {width} is not divisible by {config.num_heads} heads"
      )

    heads = config.num_heads, head_dim
    q, k, v = (
      _linear(config, heads, name, f"attn/{name[0]}")(x, train)
      for name, x in (("query", queries), ("key", keys), ("value", keys))
    )
    mixed = attention.attend(
      q, k, v, mask, scale=head_dim**-0.5, implementation=config.attention
    )
    return _linear(config, (width,), "out", "attn/out", axes=2)(mixed, train)


class Block(nn.Module):
  """One pre-norm transformer block; the residual stream stays float32."""

  config: nn.Module

  @nn.compact
  def __call__(
    self, x: Float[Array, "B L D"], call: Call
  ) -> tuple[Float[Array, "B L D"], dict[str, Array]]:
    """Returns the new residual stream and, except in training, a dict.

    It holds "sa", the output of the attention, "+sa", the residual stream after
    it, "mlp" and "+mlp".
    """
    config, train, out = self.config, call.train, {}
    y = nn.LayerNorm(dtype=jnp.float32)(x)
    attend = MultiHeadDotProductAttention(config)
    y = out["sa"] = attend(y, y, train, call.mask)
    y = nn.Dropout(config.dropout)(y, deterministic=not train)
    x = out["+sa"] = x + y.astype(jnp.float32)
    y = nn.LayerNorm(dtype=jnp.float32)(x)
    y = out["mlp"] = MlpBlock(config)(y, train)
    y = nn.Dropout(config.dropout)(y, deterministic=not train)
    x = out["+mlp"] = x + y.astype(jnp.float32)
    return x, {} if train else out


class Encoder(nn.Module):
  """A stack of blocks and the final norm."""

  config: nn.Module

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "B L D"],
    train: bool = False,
    mask: Mask | None = None,
  ) -> tuple[Float[Array, "B L D"], dict[str, Any]]:
    """Returns the output in float32, and intermediates.

    These are "block00", "block01", ..., as Block names them, and "pre_ln", the
    input of the norm.
    """
    blocks = Stack(
      Block(self.config, parent=None),
      tower=self.config.tower,
      tokens_at_once=_HIDDEN_AT_ONCE // self.config.mlp_dim,
    )
    x, of_blocks = blocks(self, x, Call("train" if train else "eval", mask))
    out = {f"block{i:02d}": named for i, named in enumerate(of_blocks)}
    norm = nn.LayerNorm(dtype=jnp.float32, name="encoder_norm")
    return norm(x), out | {"pre_ln": x}


class MAPHead(nn.Module):
  """Multihead attention pooling: a learned probe attends to all tokens."""

  config: nn.Module

  @nn.compact
  def __call__(
    self, x: Float[Array, "B L D"], mask: Mask | None = None
  ) -> Float[Array, "B D"]:
    batch, _, width = x.shape
    probe = self.param(
      "probe", nn.initializers.xavier_uniform(), (1, 1, width), jnp.float32
    )
    probe = jnp.broadcast_to(probe, (batch, 1, width))
    x = MultiHeadDotProductAttention(self.config)(probe, x, mask=mask)
    x = x.astype(jnp.float32)
    y = nn.LayerNorm(dtype=jnp.float32)(x)
    y = MlpBlock(self.config)(y)
    return (x + y.astype(jnp.float32))[:, 0]


class Model(nn.Module):
  """Images to tokens, or to one vector with a pooling.

  Attributes:
    patch_size: Side of a square patch in pixels.
    width, depth, mlp_dim, num_heads: See variants.VIT.
    num_classes: Features of the linear head; None leaves it out. In PaliGemma
      this is the width of the decoder.
    posemb: "learn" (one vector per patch of the trained resolution) or
      "sincos2d".
    pool_type: "none" keeps [B, L, D]; "gap" averages; "map" lets a learned
      probe attend; "tok" prepends a class token and reads it; "0" reads the
      first patch.
    rep_size: Width of a tanh layer before the head, True for that of the tower,
      None or False for none.
    head_zeroinit: Starts the head at zero.
    dropout: Rate in the blocks and after the position embedding.
    scan: One stacked block ("encoderblock" with a leading layer axis) or
      separate ones ("encoderblock_0", ...).
    dtype: Compute dtype of the matrix products. Patch and position embedding,
      norms, softmax and residual sums stay float32: in bfloat16 the embeddings
      alone shift image tokens by up to 0.4.
    remat_policy, attention, lora: As of gemma.Model.
  """

  patch_size: int
  width: int
  depth: int
  mlp_dim: int
  num_heads: int
  num_classes: int | None = None
  posemb: str = "learn"
  pool_type: str = "none"
  rep_size: int | bool | None = None
  head_zeroinit: bool = False
  dropout: float = 0.0
  scan: bool = True
  remat_policy: str = "block_inputs"
  dtype: str = "float32"
  attention: str = "auto"
  lora: lora_lib.Lora | None = None

  tower = "img"  # in the names of parameters

  @nn.compact
  def __call__(
    self,
    image: Float[ArrayLike, "B H W 3"],
    train: bool = False,
    masked: tuple[Bool[Array, "B L"], Float[Array, "1 1 D"]] | None = None,
  ) -> tuple[Float[Array, "B ..."], dict[str, Any]]:
    """Embeds images.

    Pixels are in [-1, 1]. H and W are multiples of the patch size, and with
    posemb "learn" give as many patches as at init. `masked` says which patches
    are hidden, and what stands for their embeddings.

    Returns:
      [B, L, C] (or [B, C] with a pooling), C being num_classes or the width,
      and a dict of intermediates, named as in big_vision. With h rows and w
      columns of patches: "stem" [B, h, w, D], "with_posemb" [B, h * w, D],
      "encoder" (see Encoder; in training without its blocks), "encoded" [B, L,
      D] with the class token, "head_input", "pre_logits" and, with a head,
      "logits", without and with "_2d": the same of every patch, [B, h, w, ...].
      Those that a compiled program does not use cost it nothing.
    """
    out = {}
    _, height, width, _ = image.shape
    if height % self.patch_size or width % self.patch_size:
      raise ValueError(
        f"image of {height}x{width} pixels does not divide into patches of "
        f"{self.patch_size}x{self.patch_size}"
      )
    patch = self.patch_size, self.patch_size
    x = nn.Conv(
      self.width, patch, patch, "VALID", dtype=jnp.float32, name="embedding"
    )(image)
    out["stem"] = x
    batch, rows, columns, _ = x.shape
    x = x.reshape(batch, rows * columns, self.width)
    if masked is not None:
      x = jnp.where(masked[0][:, :, None], masked[1], x)
    x = out["with_posemb"] = x + self._position_embedding(rows, columns)
    if self.pool_type == "tok":
      cls = self.param(
        "cls", nn.initializers.zeros_init(), (1, 1, self.width), jnp.float32
      )
      cls = jnp.broadcast_to(cls, (batch, 1, self.width))
      x = jnp.concatenate([cls, x], axis=1)
    x = nn.Dropout(self.dropout)(x, deterministic=not train)

    config = self.clone(parent=None)
    x, out["encoder"] = Encoder(config, name="Transformer")(x, train)
    out["encoded"] = x
    patches = x[:, 1:] if self.pool_type == "tok" else x
    x = out["head_input"] = self._pool(x)

    def in_2d(patches):
      return patches.reshape(batch, rows, columns, -1)

    if self.rep_size:
      size = self.width if self.rep_size is True else self.rep_size
      dense = nn.Dense(size, name="pre_logits")
      x, patches = jnp.tanh(dense(x)), jnp.tanh(dense(patches))
    out["pre_logits"], out["pre_logits_2d"] = x, in_2d(patches)
    if self.num_classes is not None:
      linear = head(self, nn.initializers.zeros if self.head_zeroinit else None)
      x, patches = (linear(y, train).astype(jnp.float32) for y in (x, patches))
      out["logits"], out["logits_2d"] = x, in_2d(patches)
    return x.astype(jnp.float32), out

  @nn.nowrap
  def init_input(self, res: int | None) -> Float[Array, "1 H W 3"]:
    """Returns an image of `res` pixels on a side, by default one patch."""
    side = res or self.patch_size
    return jnp.zeros((1, side, side, 3), jnp.float32)

  def _position_embedding(self, rows, columns):
    known = dict.fromkeys(("learn", "sincos2d"))
    registry.lookup(known, self.posemb, "posemb")
    if self.posemb == "sincos2d":
      return sincos2d(rows, columns, self.width)
    return self.param(
      "pos_embedding",
      nn.initializers.normal(self.width**-0.5),
      (1, rows * columns, self.width),
      jnp.float32,
    ).astype(jnp.float32)

  def _pool(self, x):
    registry.lookup(dict.fromkeys(POOLINGS), self.pool_type, "pool_type")
    if self.pool_type == "gap":
      return x.mean(axis=1)
    if self.pool_type == "map":
      config = self.clone(parent=None, lora=None)
      return MAPHead(config, name="MAPHead_0")(x)
    return x if self.pool_type == "none" else x[:, 0]


def with_positions(params: Mapping[str, Any], side: int) -> dict[str, Any]:
  """Returns parameters of a tower for images of side x side patches.

  The learned position embedding, of a square, is resized linearly.
  """
  positions = params["pos_embedding"]
  _, count, width = positions.shape
  old = math.isqrt(count)
  if old != side:
    grid = positions.reshape(1, old, old, width)
    grid = jax.image.resize(grid, (1, side, side, width), "linear")
    positions = grid.reshape(1, -1, width)
  return {**params, "pos_embedding": positions}


def make(variant: str, *, dtype: str = "float32", **overrides: Any) -> Model:
  """Returns an image tower of variants.VIT, with some fields overridden.

  The name ends with the patch size in pixels: "So400m/14".

  Raises:
    ValueError: Unknown size or field, or no patch size behind a slash.
  """
  name, _, patch = variant.partition("/")
  sizes = registry.lookup(variants.VIT, name, "image tower")
  if not re.fullmatch("[1-9][0-9]*", patch):
    raise ValueError(
      f'image tower "{variant}" names no patch size, expected e.g. "{name}/14"'
    )
  for field in overrides:
    registry.lookup(Model.__annotations__, field, "image tower field")
  fields = {**vars(sizes), "patch_size": int(patch), "dtype": dtype}
  return Model(**{**fields, **overrides})
