"""The text tower of SigLIP: the blocks of the image tower over token ids.

There is neither a causal mask nor one of padding: padding is read as it was in
training, so texts must be padded to the full length. Names and shapes are those
of big_vision, models/proj/image_text/text_transformer.py.

Axes: B batch, T tokens, D width, E features of the embedding, V vocabulary.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from paligemma import quantization, registry, variants
from paligemma.lora import config as lora_lib
from paligemma.models import cpu, vit
from paligemma.models.linear import matrix

POOLINGS = ("last", "first", "mean", "max", "map")


class Embed(nn.Module):
  """The table of embeddings, in full precision or quantized."""

  vocab_size: int
  width: int

  @nn.compact
  def __call__(self, tokens: Int[ArrayLike, "B T"]) -> Float[Array, "B T D"]:
    init = nn.initializers.variance_scaling(1.0, "fan_in", "normal", out_axis=0)
    table = matrix(self, "embedding", init, (self.vocab_size, self.width))
    rows = jax.tree.map(lambda x: cpu.gather(x, jnp.asarray(tokens)), table)
    if quantization.is_quantized(rows):
      rows = quantization.dequantize(rows, jnp.float32)
    return rows.astype(jnp.float32)


class Model(nn.Module):
  """Token ids to one vector.

  Attributes:
    vocab_size: Rows of the table of embeddings.
    text_len: T, tokens of a text with its padding.
    width, depth, mlp_dim, num_heads: See variants.VIT.
    num_classes: Features of the linear head; None leaves it out.
    pool_type: What the head reads: "last" the last token, which is eos or
      padding; "first", "mean" and "max" of all tokens; "map" lets a learned
      probe attend to them.
    dropout, scan, remat_policy, dtype, attention, lora: As of vit.Model.
  """

  vocab_size: int
  text_len: int
  width: int
  depth: int
  mlp_dim: int
  num_heads: int
  num_classes: int | None = None
  pool_type: str = "last"
  dropout: float = 0.0
  scan: bool = True
  remat_policy: str = "block_inputs"
  dtype: str = "float32"
  attention: str = "auto"
  lora: lora_lib.Lora | None = None

  tower = "txt"  # in the names of parameters

  @nn.compact
  def __call__(
    self, text: Int[ArrayLike, "B T"], train: bool = False
  ) -> tuple[Float[Array, "B E"], dict[str, Any]]:
    """Embeds texts.

    Returns:
      [B, num_classes or D], and a dict of intermediates, named as in
      big_vision: "embedded" [B, T, D], without positions, "transformed" [B, T,
      D], those of vit.Encoder, "pre_logits" [B, D], what the head reads, and,
      with a head, "logits". Its "vocab_logits", which no loss reads, are
      transformed @ table.T.

    Raises:
      ValueError: The texts have another length than the tower.
    """
    if text.shape[1] != self.text_len:
      raise ValueError(
        f"texts have {text.shape[1]} tokens, expected {self.text_len}: pad or "
        "cut them to the length of the text tower"
      )
    x = Embed(self.vocab_size, self.width, name="Embed_0")(text)
    out = {"embedded": x}
    x += self.param(
      "pos_embedding",
      nn.initializers.normal(self.width**-0.5),
      (1, self.text_len, self.width),
      jnp.float32,
    ).astype(jnp.float32)
    x = nn.Dropout(self.dropout)(x, deterministic=not train)
    encoder = vit.Encoder(self.clone(parent=None), name="Encoder_0")
    x, of_encoder = encoder(x, train)
    x, out = self._pool(x), out | {"transformed": x} | of_encoder
    out["pre_logits"] = x
    if self.num_classes is not None:
      out["logits"] = x = vit.head(self)(x, train).astype(jnp.float32)
    return x, out

  def _pool(self, x):
    registry.lookup(dict.fromkeys(POOLINGS), self.pool_type, "text pool_type")
    if self.pool_type == "map":
      config = self.clone(parent=None, lora=None)
      return vit.MAPHead(config, name="MAPHead_0")(x)
    if self.pool_type == "mean":
      return x.mean(axis=1)
    if self.pool_type == "max":
      return x.max(axis=1)
    return x[:, -1] if self.pool_type == "last" else x[:, 0]


def make(variant: str, *, dtype: str = "float32", **fields: Any) -> Model:
  """Returns a text tower of the sizes of variants.VIT, some of them replaced.

  Raises:
    ValueError: Unknown size or field.
  """
  sizes = registry.lookup(variants.VIT, variant, "text tower")
  for field in fields:
    registry.lookup(Model.__annotations__, field, "text tower field")
  return Model(**{**vars(sizes), "dtype": dtype, **fields})
