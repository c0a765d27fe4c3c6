"""PaliGemma: an image tower and a decoder that reads images before text.

Sources: arXiv:2407.07726 (PaliGemma), arXiv:2412.03555 (PaliGemma 2),
big_vision's models/proj/paligemma/paligemma.py.

Axes: B batch, F frames, H height, W width in pixels, L image tokens, T text
tokens, S = L + T, D width of the decoder, V vocabulary.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from paligemma import parameters, registry, tree, variants
from paligemma.lora.config import Lora
from paligemma.models import gemma, vit


@dataclasses.dataclass(frozen=True)
class OutputLayer:
  """Logits from features and the parameters that this takes."""

  llm: nn.Module

  def __call__(
    self, head: PyTree[Array], features: Float[Array, "B T D"]
  ) -> Float[Array, "B T V"]:
    """Returns the logits of some features."""
    variables = {"params": head}
    return self.llm.apply(variables, features, method="compute_logits")


class Model(nn.Module):
  """Two towers in one sequence: image tokens, then text.

  Attributes:
    img: module called with (image, train) that returns float[B, L, D] tokens
      and a dict of intermediates, e.g. vit.Model with num_classes D; None for
      a decoder alone, whose images are None as well.
    llm: module with `embed_tokens`, `compute_logits` and __call__ as
      gemma.Model has them; `prefill_cache` and `extend_cache` are optional.
    metadata: what the checkpoint said beside the towers, such as the
      preprocessing of pictures (see checkpoints/stated_fields.py). No product
      depends on it, and models that differ in it alone are equal.
  """

  img: nn.Module | None
  llm: nn.Module
  metadata: Mapping[str, Any] = dataclasses.field(
    default_factory=dict, compare=False, repr=False
  )

  def embed_image(
    self, image: Float[Array, "B *F H W 3"], train: bool = False
  ) -> tuple[Float[Array, "B L D"], dict[str, Any]]:
    """Turns images into decoder inputs.

    The tokens are not multiplied by sqrt(D): only text is, inside the
    embedding table.

    Args:
      image: float[B, H, W, 3] in [-1, 1], or frames float[B, F, H, W, 3],
        whose tokens are concatenated in order.
      train: bool, whether dropout is on.

    Returns:
      Tuple of float32[B, L, D] (frames: [B, F * L, D]) and a dict of
      intermediates named "img/...", "img/zimg" being the tokens.
    """
    batch = image.shape[0]
    is_video = image.ndim == 5
    if is_video:
      image = einops.rearrange(image, "B F H W C -> (B F) H W C")
    zimg, out = self.img(image, train=train)
    if is_video:
      zimg = einops.rearrange(zimg, "(B F) L D -> B (F L) D", B=batch)
    out = {f"img/{name}": value for name, value in out.items()}
    return zimg, {**out, "img/zimg": zimg}

  def embed_text(
    self, tokens: Int[Array, "B T"]
  ) -> tuple[Float[Array, "B T D"], dict[str, Array]]:
    """Looks tokens up: int[B, T] -> float32[B, T, D], and {"llm/ztxt": ...}."""
    ztxt = self.llm.embed_tokens(tokens)
    return ztxt, {"llm/ztxt": ztxt}

  def embed_image_and_text(
    self,
    image: Float[Array, "B *F H W 3"] | None,
    text: Int[Array, "B T"],
    *,
    input_mask: Bool[Array, "B T"] | None = None,
    mask_ar: Int[Array, "B T"] | None = None,
    frame_mask: Bool[Array, "B F"] | None = None,
    train: bool = False,
  ) -> tuple[
    tuple[Float[Array, "B S D"], Bool[Array, "B S"], Int[Array, "B S"]],
    dict[str, Any],
  ]:
    """Lays images and text out as one sequence of embeddings.

    Args:
      image: float[B, H, W, 3] or float[B, F, H, W, 3], see `embed_image`; None
        for text alone.
      text: int[B, T] token ids.
      input_mask: bool[B, T], False at padding. Default: no padding.
      mask_ar: int[B, T], 0 in the prefix, which is read in both directions
        together with the image, 1 where text is causal. Default: all 1.
      frame_mask: bool[B, F], False at a frame that is only padding. Default:
        all frames count. Only with frames.
      train: bool, whether dropout is on.

    Returns:
      Tuple of (x float32[B, S, D], input_mask bool[B, S], mask_ar int[B, S])
      and a dict of intermediates.

    Raises:
      ValueError: `frame_mask` does not fit the frames.
    """
    ztxt, out_txt = self.embed_text(text)
    if input_mask is None:
      input_mask = jnp.ones(text.shape, bool)
    if mask_ar is None:
      mask_ar = jnp.ones(text.shape, jnp.int32)
    if image is None:
      return (ztxt, input_mask.astype(bool), mask_ar), out_txt
    zimg, out_img = self.embed_image(image, train=train)
    image_mask = jnp.ones(zimg.shape[:2], bool)
    if frame_mask is not None:
      if image.ndim != 5 or frame_mask.shape != image.shape[:2]:
        raise ValueError(
          f"frame_mask of shape {frame_mask.shape} does not fit an image of "
          f"shape {image.shape}, expected [B, F] and [B, F, H, W, 3]"
        )
      tokens_per_frame = zimg.shape[1] // frame_mask.shape[1]
      image_mask = jnp.repeat(frame_mask, tokens_per_frame, axis=1)
    x = jnp.concatenate([zimg, ztxt], axis=1)
    input_mask = jnp.concatenate([image_mask, input_mask.astype(bool)], axis=1)
    mask_ar = jnp.pad(mask_ar, [(0, 0), (zimg.shape[1], 0)])
    return (x, input_mask, mask_ar), {**out_img, **out_txt}

  def __call__(
    self,
    image: Float[Array, "B *F H W 3"] | None,
    text: Int[Array, "B T"],
    mask_ar: Int[Array, "B T"],
    train: bool = False,
    *,
    input_mask: Bool[Array, "B T"] | None = None,
    frame_mask: Bool[Array, "B F"] | None = None,
  ) -> tuple[Float[Array, "B T V"], dict[str, Any]]:
    """Predicts each next text token.

    Args:
      image, text, mask_ar, input_mask, frame_mask, train: see
        `embed_image_and_text`.

    Returns:
      Tuple of logits float32[B, T, V], those at t predicting token t + 1, and
      a dict of intermediates, named as in big_vision: "img/..." of the image
      tower, "llm/..." of the decoder ("llm/pre_logits" float32[B, S, D] and
      "llm/logits" float32[B, S, V] among them), "attn_mask" bool[B, S, S],
      which is "llm/attn_mask" too, "text_logits" and "text_tokens" int[B, T],
      their largest. Those that a compiled program does not use cost it nothing.
      Flax's `capture_intermediates=True` adds the output of every submodule.
    """
    features, out = self.compute_features(
      image, text, mask_ar, train, input_mask=input_mask, frame_mask=frame_mask
    )
    logits = self.compute_logits(features)
    out["llm/logits"] = self.compute_logits(out["llm/pre_logits"])
    out["attn_mask"] = out["llm/attn_mask"]
    out["text_logits"] = logits
    out["text_tokens"] = jnp.argmax(logits, axis=-1)
    return logits, out

  def compute_features(
    self,
    image: Float[Array, "B *F H W 3"] | None,
    text: Int[Array, "B T"],
    mask_ar: Int[Array, "B T"],
    train: bool = False,
    *,
    input_mask: Bool[Array, "B T"] | None = None,
    frame_mask: Bool[Array, "B F"] | None = None,
  ) -> tuple[Float[Array, "B T D"], dict[str, Any]]:
    """All but the last step of __call__, with the same arguments.

    Returns:
      Tuple of float32[B, T, D] for `compute_logits`, and intermediates.
    """
    (x, input_mask, mask_ar), out = self.embed_image_and_text(
      image,
      text,
      input_mask=input_mask,
      mask_ar=mask_ar,
      frame_mask=frame_mask,
      train=train,
    )
    pre_logits, out_llm = self.llm(x, input_mask, mask_ar, train=train)
    out.update({f"llm/{name}": value for name, value in out_llm.items()})
    return pre_logits[:, -text.shape[1] :], out

  def compute_logits(
    self, features: Float[Array, "B T D"]
  ) -> Float[Array, "B T V"]:
    """float[B, T, D] -> logits float32[B, T, V], soft-capped."""
    return self.llm.compute_logits(features)

  @nn.nowrap
  def output_layer(
    self, params: Mapping[str, Any]
  ) -> tuple[OutputLayer, dict[str, Any]]:
    """The last step of __call__ by itself, for losses.mean_next_token.

    Args:
      params: parameters of the model, {"img": ..., "llm": ...}.

    Returns:
      Tuple of a function (head, float[B, T, D]) -> float32[B, T, V], equal for
      equal models, and the part of the parameters that is its `head`.
    """
    return OutputLayer(self.llm), {"embedder": params["llm"]["embedder"]}

  def prefill_cache(
    self,
    x: Float[Array, "B S D"],
    input_mask: Bool[Array, "B S"],
    mask_ar: Int[Array, "B S"],
    *,
    cache_size: int,
  ) -> Float[Array, "B 1 V"]:
    """Reads a prompt into the "cache" collection, which must be mutable.

    Args:
      x, input_mask, mask_ar: as `embed_image_and_text` returns them.
      cache_size: int, S plus the number of tokens that will be appended.

    Returns:
      float32[B, 1, V] logits after the last valid token of each row.
    """
    if hasattr(self.llm, "prefill_cache"):
      return self.llm.prefill_cache(
        x, input_mask, mask_ar, cache_size=cache_size
      )
    room = [(0, 0), (0, cache_size - x.shape[1])]
    self.put_variable("cache", "x", jnp.pad(x, [*room, (0, 0)]))
    self.put_variable("cache", "input_mask", jnp.pad(input_mask, room))
    self.put_variable("cache", "mask_ar", jnp.pad(mask_ar, room))
    self.put_variable("cache", "next_index", jnp.int32(x.shape[1]))
    return self._last_logits_without_cache()

  def extend_cache(self, x: Float[Array, "B 1 D"]) -> Float[Array, "B 1 V"]:
    """Appends one embedded token per row: float[B, 1, D] -> float32[B, 1, V].

    The new token attends to every valid token before it.
    """
    if hasattr(self.llm, "extend_cache"):
      return self.llm.extend_cache(x)
    index = self.get_variable("cache", "next_index")
    new = {
      "x": x,
      "input_mask": jnp.ones(x.shape[:2], bool),
      "mask_ar": jnp.ones(x.shape[:2], jnp.int32),
    }
    for name, value in new.items():
      old = self.get_variable("cache", name)
      value = jax.lax.dynamic_update_slice_in_dim(
        old, value.astype(old.dtype), index, axis=1
      )
      self.put_variable("cache", name, value)
    self.put_variable("cache", "next_index", index + 1)
    return self._last_logits_without_cache()

  def _last_logits_without_cache(self):
    """Runs the decoder on all tokens so far: slow, but any decoder can."""
    names = ("x", "input_mask", "mask_ar")
    x, input_mask, mask_ar = (self.get_variable("cache", n) for n in names)
    pre_logits, _ = self.llm(x, input_mask, mask_ar)
    last = input_mask.shape[1] - 1 - jnp.argmax(input_mask[:, ::-1], axis=1)
    last = jnp.take_along_axis(pre_logits, last[:, None, None], axis=1)
    return self.llm.compute_logits(last)


def make(
  variant: str = "paligemma_3b",
  *,
  vocab_size: int | None = None,
  dtype: str = "float32",
  img: Mapping[str, Any] | None = None,
  llm: Mapping[str, Any] | None = None,
  lora: Mapping[str, Any] | None = None,
) -> Model:
  """A model by name.

  Args:
    variant: str, a key of variants.PALIGEMMA.
    vocab_size: int, rows of the embedding table. Default: the variant's.
    dtype: compute dtype of both towers: "float32", "bfloat16" or "float16".
    img: dict of fields of vit.Model that differ; "variant" (e.g. "B/16")
      exchanges the whole tower.
    llm: dict of fields of gemma.Model that differ; likewise "variant".
    lora: dict of fields of lora.config.Lora that differ, {} for its defaults;
      None for no adapters.

  Returns:
    Model. The resolution is not part of it: the position embedding takes the
    number of patches of the image that initialises or the checkpoint.

  Raises:
    ValueError: unknown variant or field, with the nearest name.
  """
  sizes = registry.lookup(variants.PALIGEMMA, variant, "variant")
  llm = {"variant": sizes.llm, **sizes.llm_overrides, **(llm or {})}
  img = {"variant": sizes.img, **(img or {})}
  if vocab_size is not None:
    llm["vocab_size"] = vocab_size
  if lora is not None:
    for field in lora:
      registry.lookup(Lora.__annotations__, field, "LoRA field")
    llm["lora"] = img["lora"] = Lora(**lora)
  llm = gemma.make(**{"dtype": dtype, **llm})
  img = vit.make(**{"dtype": dtype, "num_classes": llm.width, **img})
  return Model(img=img, llm=llm)


def from_sizes(
  img: Mapping[str, Any] | None,
  llm: Mapping[str, Any],
  *,
  dtype: str = "float32",
) -> Model:
  """A model of the sizes that a checkpoint has.

  What array shapes cannot tell (soft caps, window, query scale) comes from the
  variant of those sizes, unless `llm` says it. A decoder of unknown sizes
  counts as Gemma 2 if it has post norms, else as Gemma 1. With an image tower
  Gemma 2 runs without window and final soft cap, as PaliGemma 2 was trained.

  Args:
    img: dict of width, depth, mlp_dim, num_heads, patch_size and scan; further
      fields of vit.Model are taken as they are. None: a decoder alone.
    llm: dict of width, depth, mlp_dim, num_heads, num_kv_heads, head_dim,
      vocab_size, post_norms and scan; further fields of gemma.Model likewise.
    dtype: compute dtype of both towers.

  Returns:
    Model.

  Raises:
    ValueError: unknown field, with the nearest name.
  """
  overrides = {}
  if img is not None and llm["post_norms"]:
    overrides = variants.AS_IN_PALIGEMMA2
  llm = gemma.make(variants.nearest(llm), dtype=dtype, **{**overrides, **llm})
  if img is None:
    return Model(img=None, llm=llm)
  for field in img:
    registry.lookup(vit.Model.__annotations__, field, "image tower field")
  img = vit.Model(**{"num_classes": llm.width, "dtype": dtype, **img})
  return Model(img=img, llm=llm)


def resolution(model: Model, params: Mapping[str, Any]) -> int:
  """Side in pixels of the images that an image tower's positions are for.

  Args:
    model: with an image tower.
    params: its parameters, or leaves with a `shape`, flat or nested.
  """
  positions = tree.flatten(params)[parameters.POSITIONS].shape[1]
  return math.isqrt(positions) * model.img.patch_size
