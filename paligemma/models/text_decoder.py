"""A decoder of texts about an image, for a loss that trains the image tower.

It attends to the tokens of the image before they are pooled, and learns three
texts in a row: a caption, the place of a region that is described, and the
description of a region whose place is given. Nothing but training needs it.

    text        a cat eos   | cat 10 20 30 40 eos   | 10 20 30 40 cat eos
    reads       C a   cat   | R cat 10 20 30 40     | G 10 20 30 40 cat
    parallel    M M   M     | the same              | the same

C, R and G are learned tokens, which begin a text of each kind. A caption that
is predicted in parallel is read as mask tokens M alone, all of which see each
other.

Sources: arXiv:2502.14786 section 2.2 (SigLIP 2), arXiv:2403.19596 (LocCa),
arXiv:2306.07915 (CapPa) and its code in big_vision, models/proj/cappa/cappa.py,
which learns captions alone.

Axes: B images, R texts of an image, T tokens of a text, S tokens of the image,
C their width, D width, V vocabulary.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from paligemma import registry
from paligemma.models import text_tower, vit
from paligemma.models.attention import masks
from paligemma.models.linear import Linear
from paligemma.models.stack import Call, Stack

KINDS = ("caption", "referring", "grounded")  # of texts, in their order
_HIDDEN_AT_ONCE = 2**25  # as of vit.py


class Block(nn.Module):
  """Attention to the text, to the image, and an MLP, each behind a norm."""

  config: nn.Module

  @nn.compact
  def __call__(
    self, x: Float[Array, "B Q D"], call: Call
  ) -> tuple[Float[Array, "B Q D"], dict[str, Array]]:
    """Returns the new residual stream, in float32, and nothing else."""
    config, train = self.config, call.train

    def add(x, y):
      y = nn.Dropout(config.dropout)(y, deterministic=not train)
      return x + y.astype(jnp.float32)

    y = nn.LayerNorm(dtype=jnp.float32)(x)
    attend = vit.MultiHeadDotProductAttention(config)
    x = add(x, attend(y, y, train, call.mask))
    y = nn.LayerNorm(dtype=jnp.float32)(x)
    attend = vit.MultiHeadDotProductAttention(config)
    x = add(x, attend(y, call.context, train, call.context_mask))
    y = nn.LayerNorm(dtype=jnp.float32)(x)
    return add(x, vit.MlpBlock(config)(y, train)), {}


class Model(nn.Module):
  """Tokens of images and of texts to features, for the logits of the texts.

  Attributes:
    vocab_size, text_len: Of the text tower, whose tokens it reads.
    width, depth, mlp_dim, num_heads: See variants.VIT.
    dropout, scan, remat_policy, dtype, attention: As of vit.Model.
  """

  vocab_size: int
  text_len: int
  width: int
  depth: int
  mlp_dim: int
  num_heads: int
  dropout: float = 0.0
  scan: bool = True
  remat_policy: str = "block_inputs"
  dtype: str = "float32"
  attention: str = "auto"

  tower = "dec"  # in the names of parameters
  lora = None

  @property
  def num_tokens(self) -> int:
    """Of all texts of an image."""
    return len(KINDS) * self.text_len

  def setup(self) -> None:
    self.embed = text_tower.Embed(self.vocab_size, self.width, name="Embed_0")
    self.norm = nn.LayerNorm(dtype=jnp.float32, name="decoder_norm")
    self.head = Linear(
      (self.vocab_size,),
      self.dtype,
      kernel_init=nn.initializers.zeros,
      name="head",
    )

  @nn.compact
  def __call__(
    self,
    image_tokens: Float[Array, "B S C"],
    is_patch: Bool[Array, "B S"] | None,
    text: Int[Array, "B R T"],
    parallel: Bool[Array, " B"],
    train: bool = False,
  ) -> Float[Array, "B R*T D"]:
    """Returns the features from which each token of the texts is predicted.

    Args:
      image_tokens: Of the image tower, before its pooling.
      is_patch: False at padding of a NaFlex; None: there is none.
      text: Token ids of one text of each of KINDS, padded to text_len.
      parallel: Whether the caption is predicted in parallel.
      train: Whether dropout is on.
    """
    batch, kinds, length = text.shape
    init = nn.initializers.normal(self.width**-0.5)
    positions, tokens = (
      self.param(name, init, (1, size, self.width), jnp.float32)
      for name, size in (("pos_embedding", length), ("tokens", kinds + 1))
    )
    x = self.embed(text.reshape(batch, -1)).reshape(batch, kinds, length, -1)
    starts = jnp.broadcast_to(tokens[:, :-1, None], x[:, :, :1].shape)
    x = jnp.concatenate([starts, x[:, :, :-1]], axis=2)
    is_caption = jnp.arange(kinds) == KINDS.index("caption")
    is_masked = parallel[:, None] & is_caption[None]
    x = jnp.where(is_masked[:, :, None, None], tokens[:, None, -1:], x)
    x = (x + positions[:, None]).reshape(batch, kinds * length, -1)
    call = Call(
      "train" if train else "eval",
      _text_mask(is_masked, length),
      context=image_tokens,
      context_mask=_image_mask(is_patch, kinds * length),
    )
    blocks = Stack(
      Block(self.clone(parent=None), parent=None),
      tower=self.tower,
      tokens_at_once=_HIDDEN_AT_ONCE // self.mlp_dim,
    )
    x, _ = blocks(self, x, call)
    return self.norm(x)

  def compute_logits(
    self, features: Float[Array, "B C D"]
  ) -> Float[Array, "B C V"]:
    """Returns logits in the compute dtype, of features of some tokens."""
    return self.head(features)

  def init_from(self, image_tokens: Float[Array, "B S C"]) -> None:
    """Draws all parameters, for images of such tokens."""
    batch = len(image_tokens)
    text = jnp.zeros((batch, len(KINDS), self.text_len), jnp.int32)
    parallel = jnp.zeros(batch, bool)
    self.compute_logits(self(image_tokens, None, text, parallel))


def _text_mask(is_masked, length):
  """Causal within each text, but full in one that is masked."""
  batch, kinds = is_masked.shape
  is_first = jnp.arange(length) == 0
  opens = ~is_masked[:, :, None] | is_first[None, None]
  segments = jnp.repeat(jnp.arange(kinds), length)
  return masks.make_mask(
    jnp.ones((batch, kinds * length), bool),
    opens.reshape(batch, -1).astype(jnp.int32),
    jnp.broadcast_to(segments, (batch, kinds * length)),
  )


def _image_mask(is_patch, queries):
  """Every token of a text sees all patches, but no padding."""
  if is_patch is None:
    return None
  key = jnp.where(is_patch, 0, masks.UNSEEN)
  query = jnp.zeros((len(is_patch), queries), jnp.int32)
  return masks.Mask(query, key, query, jnp.zeros_like(key))


@dataclasses.dataclass(frozen=True)
class OutputLayer:
  """Computes logits; a dataclass, so that it is equal for equal models."""

  decoder: Model

  def __call__(
    self, head: Mapping[str, Any], features: Float[Array, "B C D"]
  ) -> Float[Array, "B C V"]:
    return self.decoder.apply(
      {"params": head}, features, method="compute_logits"
    )


def beside(tower: text_tower.Model, **fields: Any) -> Model:
  """Returns a decoder of the sizes of a text tower, and half as many layers.

  `fields` are others of Model.

  Raises:
    ValueError: Unknown field, with the nearest name.
  """
  for field in fields:
    registry.lookup(Model.__annotations__, field, "decoder field")
  shared = {
    name: getattr(tower, name)
    for name in Model.__annotations__
    if hasattr(tower, name) and name not in ("name", "parent")
  }
  shared["depth"] = max(tower.depth // 2, 1)
  return Model(**shared | fields)
