"""The decoder: Gemma 1 and Gemma 2, with a key/value cache.

Names and shapes of the parameters are those of big_vision's models/ppp/gemma.py
(Gemma 2 adds post norms). Sources: arXiv:2403.08295 (Gemma), arXiv:2408.00118
(Gemma 2), google-deepmind/gemma.

Axes: B batch, T query position, S key position, N query heads, K key/value
heads, H head dim, D width, F hidden width of the MLP, V vocabulary.
"""

import numbers
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from paligemma import quantization, registry, variants
from paligemma.lora import config as lora_lib
from paligemma.models import cpu, device
from paligemma.models.attention import masks
from paligemma.models.attention import reference as attention
from paligemma.models.linear import (
  Matrix,
  adapt,
  adapted_product,
  keep,
  matrix,
  product,
)
from paligemma.models.stack import Call, Stack

# Hidden values of the MLP that one device holds at once: 128 MiB in bfloat16.
_HIDDEN_AT_ONCE = 2**26

_EVERYWHERE = np.iinfo(np.int32).max


def _fan_in(in_axis, out_axis):
  return nn.initializers.variance_scaling(
    1.0, "fan_in", "truncated_normal", in_axis=in_axis, out_axis=out_axis
  )


class Weight(nn.Module):
  """A matrix "w" of its own name, in the compute dtype or quantized."""

  shape: tuple[int, ...]
  kernel_init: nn.initializers.Initializer
  dtype: str

  @nn.compact
  def __call__(self) -> Matrix:
    return matrix(self, "w", self.kernel_init, self.shape, self.dtype)


class RMSNorm(nn.Module):
  """Root-mean-square norm times (1 + scale), in float32.

  The stored scale is the difference to one (Gemma's convention): a converter
  copies it and never adds one.
  """

  epsilon: float

  @nn.compact
  def __call__(self, x: Float[ArrayLike, "B T D"]) -> Float[Array, "B T D"]:
    scale = self.param(
      "scale", nn.initializers.zeros_init(), (x.shape[-1],), jnp.float32
    )
    x = x.astype(jnp.float32)
    mean_square = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
    gain = 1.0 + scale.astype(jnp.float32)
    return x / jnp.sqrt(mean_square + self.epsilon) * gain[None, None, :]


class Embedder(nn.Module):
  """The vocabulary table, read on the way in and on the way out."""

  vocab_size: int
  width: int
  dtype: str

  def setup(self) -> None:
    init = nn.initializers.variance_scaling(
      1.0, "fan_in", "normal", in_axis=1, out_axis=0
    )
    shape = self.vocab_size, self.width
    self.input_embedding = matrix(self, "input_embedding", init, shape)

  def encode(self, tokens: Int[ArrayLike, "B T"]) -> Float[Array, "B T D"]:
    """Returns the embeddings of tokens, times the square root of D.

    Gemma rounds that factor to the dtype of the table; here it is float32.
    """
    tokens = jnp.asarray(tokens)
    rows = jax.tree.map(lambda x: cpu.gather(x, tokens), self.input_embedding)
    if quantization.is_quantized(rows):
      rows = quantization.dequantize(rows, jnp.float32)
    return rows.astype(jnp.float32) * np.float32(np.sqrt(self.width))

  def decode(self, x: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
    """Returns the product with every embedding of the table, in float32."""
    batch, length, width = x.shape
    table = self.input_embedding
    is_quantized = quantization.is_quantized(table)
    table = table if is_quantized else table.astype(self.dtype)
    # With three axes, XLA on CPUs transposes the table in every step.
    x = x.reshape(batch * length, width).astype(self.dtype)
    values = table.get("int8") if is_quantized else table
    if cpu.is_matvec_faster(x, values):
      logits = cpu.matvec(x, values)
      if is_quantized:
        logits *= table[quantization.SCALE].T
    else:
      logits = product("XD,VD->XV", x, table)
    return logits.reshape(batch, length, -1)


class Attention(nn.Module):
  """Multi-head, grouped or multi-query attention with RoPE and a cache."""

  config: "Model"

  @nn.compact
  def __call__(
    self, x: Float[Array, "B T D"], call: Call
  ) -> Float[Array, "B T D"]:
    config, width = self.config, x.shape[-1]
    q, k, v = self._project(x, call.train)
    q = attention.apply_rope(q, call.mask.query_position)
    k = attention.apply_rope(k, call.mask.query_position)
    if call.mode == "prefill":
      room = [(0, 0), (0, call.cache_size - k.shape[1]), (0, 0), (0, 0)]
      self.put_variable("cache", "k", jnp.pad(k, room))
      self.put_variable("cache", "v", jnp.pad(v, room))
    elif call.mode == "extend":
      k = self._append("k", k, call.cache_index)
      v = self._append("v", v, call.cache_index)
    mixed = attention.attend(
      q,
      k,
      v,
      call.mask,
      scale=config.find_query_scale(),
      logits_softcap=config.attn_logits_softcap,
      window=call.window,
      implementation=config.attention,
    )
    shape = config.num_heads, config.head_dim, width
    w = self._weight("attn_vec_einsum", shape, _fan_in((0, 1), (2,)))
    out = adapted_product(
      "BTNH,NHD->BTD", mixed, w, config.lora, "llm/attn/out", call.train
    )
    return keep(out)

  def _weight(self, name, shape, init):
    return Weight(shape, init, self.config.dtype, name=name)()

  def _project(self, x, train):
    config, width = self.config, x.shape[-1]
    num_heads, head_dim = config.num_heads, config.head_dim
    fan_in, x = _fan_in((2,), (0, 1, 3)), x.astype(config.dtype)

    def adapted(several, targets):
      for target, y in zip(targets, several, strict=True):
        target = f"llm/attn/{target}"
        shape = y.shape[2:]
        yield y + adapt(config.lora, target, x, shape, config.dtype, train)

    if config.num_kv_heads == num_heads:
      w = self._weight("qkv_einsum", (3, num_heads, width, head_dim), fan_in)
      qkv = adapted(product("BTD,3NDH->3BTNH", x, w), "qkv")
    else:
      shape = num_heads, width, head_dim
      w = self._weight("q_einsum", shape, _fan_in((1,), (0, 2)))
      q = adapted_product(
        "BTD,NDH->BTNH", x, w, config.lora, "llm/attn/q", train
      )
      shape = 2, config.num_kv_heads, width, head_dim
      w = self._weight("kv_einsum", shape, fan_in)
      qkv = q, *adapted(product("BTD,2KDH->2BTKH", x, w), "kv")
    return [keep(y.astype(config.dtype)) for y in qkv]

  def _append(self, name, new, cache_index):
    cached = self.get_variable("cache", name)
    cached = jax.lax.dynamic_update_slice_in_dim(
      cached, new.astype(cached.dtype), cache_index, axis=1
    )
    self.put_variable("cache", name, cached)
    return cached


class FeedForward(nn.Module):
  """Gated MLP with tanh-approximated GELU, with a float32 result.

  The hidden values of released Gemma checkpoints exceed the largest float16,
  65504. In that dtype they are divided by 64 (exact, but for values below
  0.004, which move by at most 2e-6) and the output is multiplied by it.
  """

  config: "Model"

  @nn.compact
  def __call__(
    self, x: Float[Array, "B T D"], train: bool
  ) -> Float[Array, "B T D"]:
    width, mlp_dim, dtype = x.shape[-1], self.config.mlp_dim, self.config.dtype
    gating = matrix(
      self, "gating_einsum", _fan_in((1,), (0, 2)), (2, width, mlp_dim), dtype
    )
    shape = mlp_dim, width
    linear = matrix(self, "linear", _fan_in((0,), (1,)), shape, dtype)
    x = x.astype(dtype)
    # 16 bits are half of what a GPU would write and read. float16 holds either
    # factor of the hidden values, if not their product.
    rounds = dtype != "float16" or device.is_gpu()

    if x.shape[1] == 1:  # in decoding a slice of weights is a copy
      both = product("BTD,2DF->2BTF", x, gating)
      both = [
        out + self._adapt(target, x, (mlp_dim,), train)
        for out, target in zip(both, ("gate", "up"), strict=True)
      ]
    else:
      both = [
        adapted_product(
          "BTD,DF->BTF",
          x,
          jax.tree.map(lambda w, i=i: w[i], gating),
          self.config.lora,
          f"llm/mlp/{target}",
          train,
          rounds=rounds,
        )
        for i, target in enumerate(("gate", "up"))
      ]
    gate, up = (keep(out.astype(dtype) if rounds else out) for out in both)
    headroom = 64.0 if dtype == "float16" else 1.0

    def combine(gate, up):
      gate, up = gate.astype(jnp.float32), up.astype(jnp.float32)
      return (nn.gelu(gate) * (up / headroom)).astype(dtype)

    # The backward pass stores gate and up, and recomputes the rest.
    hidden = jax.checkpoint(combine, prevent_cse=False)(gate, up)
    out = adapted_product(
      "BTF,FD->BTD",
      hidden,
      linear,
      self.config.lora,
      "llm/mlp/down",
      train,
      rounds=False,
    )
    return out * headroom

  def _adapt(self, target, x, shape, train):
    target = f"llm/mlp/{target}"
    return adapt(self.config.lora, target, x, shape, self.config.dtype, train)


class Block(nn.Module):
  """One decoder layer; the residual stream stays float32.

  As in big_vision, dropout follows the post norm of the attention, but precedes
  that of the MLP.
  """

  config: "Model"

  @nn.compact
  def __call__(
    self, x: Float[Array, "B T D"], call: Call
  ) -> tuple[Float[Array, "B T D"], dict[str, Array]]:
    config = self.config
    drop = nn.Dropout(config.dropout, deterministic=not call.train)

    y = RMSNorm(config.norm_eps, name="pre_attention_norm")(x)
    y = Attention(config, name="attn")(y, call)
    if config.post_norms:
      y = RMSNorm(config.norm_eps, name="post_attention_norm")(y)
    x = x + drop(y.astype(jnp.float32))

    y = RMSNorm(config.norm_eps, name="pre_ffw_norm")(x)
    y = drop(FeedForward(config, name="mlp")(y, call.train))
    if config.post_norms:
      y = RMSNorm(config.norm_eps, name="post_ffw_norm")(y)
    return x + y, {}


class Model(nn.Module):
  """A decoder of embedded tokens.

  Attributes:
    width, ..., sliding_window: See variants.Gemma, and masks.Mask on how window
      and prefix combine.
    dropout: Rate on the output of each attention and MLP.
    scan: Whether layers are stacked on a leading axis ("layers/...") and run by
      lax.scan, or separate ("layers/0/...").
    remat_policy: See stack.Stack.
    dtype: Compute dtype of matrix products and cache: "float32", "bfloat16" or
      "float16". Norms, RoPE, softmax, logits and residual sums are float32.
    attention: An implementation, see attention.reference.attend.
    lora: The adapters beside the matrices.
  """

  width: int
  depth: int
  mlp_dim: int
  num_heads: int
  num_kv_heads: int
  head_dim: int
  vocab_size: int
  norm_eps: float = 1e-6
  query_scale: str | float = "head_dim"
  post_norms: bool = False
  attn_logits_softcap: float | None = None
  final_logits_softcap: float | None = None
  sliding_window: int | None = None
  dropout: float = 0.0
  scan: bool = True
  remat_policy: str = "block_inputs"
  dtype: str = "float32"
  attention: str = "auto"
  lora: lora_lib.Lora | None = None

  def setup(self) -> None:
    self.embedder = Embedder(self.vocab_size, self.width, self.dtype)
    self.final_norm = RMSNorm(self.norm_eps)
    self.layers = Stack(
      Block(self.clone(parent=None), parent=None),
      tower="llm",
      tokens_at_once=_HIDDEN_AT_ONCE // self.mlp_dim,
    )

  @nn.nowrap
  def find_query_scale(self) -> float:
    """Returns what queries are multiplied by; a ValueError for no number."""
    divisors = {
      "head_dim": self.head_dim,
      "width_per_head": self.width / self.num_heads,
    }
    divisor = self.query_scale
    if isinstance(divisor, str):
      divisor = registry.lookup(divisors, divisor, "query_scale")
    elif not (isinstance(divisor, numbers.Real) and 0 < divisor < np.inf):
      raise ValueError(
        f"query_scale is {divisor!r}, expected a positive number, by whose "
        f"square root queries are divided, or one of: {', '.join(divisors)}"
      )
    return divisor**-0.5

  def embed_tokens(
    self, tokens: Int[ArrayLike, "B T"]
  ) -> Float[Array, "B T D"]:
    """Returns the embeddings of tokens, times sqrt(D)."""
    return self.embedder.encode(tokens)

  def compute_logits(
    self, pre_logits: Float[Array, "B T D"]
  ) -> Float[Array, "B T V"]:
    """Returns soft-capped logits in float32.

    All of training, prefill and extension use this (big_vision caps in
    extension only).
    """
    logits = self.embedder.decode(pre_logits)
    return attention.soft_cap(logits, self.final_logits_softcap)

  def __call__(
    self,
    x: Float[ArrayLike, "B T D"],
    input_mask: Bool[ArrayLike, "B T"],
    mask_ar: Int[ArrayLike, "B T"],
    train: bool = False,
    segment_ids: Int[ArrayLike, "B T"] | None = None,
  ) -> tuple[Float[Array, "B T D"], dict[str, Array]]:
    """Runs all layers on embedded tokens.

    `input_mask`, `mask_ar` and `segment_ids` are those of masks.make_mask; with
    `train`, dropout is on.

    Returns:
      Normed features for `compute_logits`, and a dict: "attn_mask" bool[B, T,
      T], "encoded" [B, T, D] before the final norm, "pre_logits" after it.
    """
    mask = masks.make_mask(input_mask, mask_ar, segment_ids)
    encoded = self._run_layers(x, Call("train" if train else "eval", mask))
    pre_logits = self.final_norm(encoded)
    out = {"attn_mask": mask.dense(), "encoded": encoded}
    return pre_logits, out | {"pre_logits": pre_logits}

  def prefill_cache(
    self,
    x: Float[ArrayLike, "B T D"],
    input_mask: Bool[ArrayLike, "B T"],
    mask_ar: Int[ArrayLike, "B T"],
    *,
    cache_size: int,
  ) -> Float[Array, "B 1 V"]:
    """Runs a prompt and keeps its keys and values in the "cache" collection.

    The prompt keeps its padding, in the middle or at the end: new tokens are
    appended behind position T for all examples alike, and the mask stored with
    the cache hides the gaps. RoPE counts tokens, not cache positions, so a
    ragged batch equals its examples one by one.

    Args:
      x, input_mask, mask_ar: As for __call__.
      cache_size: T plus the number of tokens to come.

    Returns:
      Logits after the last valid token of each example.

    Raises:
      ValueError: The prompt does not fit.
    """
    length = x.shape[1]
    if cache_size < length:
      raise ValueError(
        f"cache_size {cache_size} is below the prompt length {length}"
      )
    mask = masks.make_mask(input_mask, mask_ar)
    x = self._run_layers(x, Call("prefill", mask, cache_size=cache_size))
    room = [(0, 0), (0, cache_size - length)]
    self.put_variable("cache", "input_mask", jnp.pad(input_mask, room))
    self.put_variable("cache", "positions", jnp.pad(mask.query_position, room))
    self.put_variable("cache", "next_index", jnp.int32(length))

    last = length - 1 - jnp.argmax(input_mask[:, ::-1], axis=1)
    pre_logits = self.final_norm(x)
    last = jnp.take_along_axis(pre_logits, last[:, None, None], axis=1)
    return self.compute_logits(last)

  def extend_cache(self, x: Float[Array, "B 1 D"]) -> Float[Array, "B 1 V"]:
    """Appends one embedded token per example, and returns the logits after it.

    The new token attends to every valid token before it and itself. The caller
    stops at `cache_size`: a token too many would overwrite the last one.
    """
    index = self.get_variable("cache", "next_index")
    input_mask = self.get_variable("cache", "input_mask")
    key_positions = self.get_variable("cache", "positions")
    positions = jnp.sum(input_mask, axis=1, keepdims=True, dtype=jnp.int32)
    write = jax.lax.dynamic_update_slice_in_dim
    input_mask = write(input_mask, jnp.ones_like(input_mask[:, :1]), index, 1)
    key_positions = write(key_positions, positions, index, 1)
    self.put_variable("cache", "input_mask", input_mask)
    self.put_variable("cache", "positions", key_positions)
    self.put_variable("cache", "next_index", index + 1)

    mask = masks.make_next_mask(input_mask, key_positions, positions)
    x = self._run_layers(x, Call("extend", mask, cache_index=index))
    return self.compute_logits(self.final_norm(x))

  def _run_layers(self, x, call):
    if self.sliding_window is not None:
      is_local = jnp.arange(self.depth) % 2 == 0
      window = jnp.where(is_local, self.sliding_window, _EVERYWHERE)
      call = call.replace(window=window)
    x, _ = self.layers(self, jnp.asarray(x, jnp.float32), call)
    return x


def make(variant: str, *, dtype: str = "float32", **overrides: Any) -> Model:
  """Returns a decoder of variants.GEMMA, with some fields overridden.

  Raises:
    ValueError: Unknown variant or field, with the nearest name.
  """
  sizes = registry.lookup(variants.GEMMA, variant, "decoder")
  for field in overrides:
    registry.lookup(Model.__annotations__, field, "decoder field")
  return Model(**{**vars(sizes), "dtype": dtype, **overrides})
