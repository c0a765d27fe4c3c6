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
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, PyTree

from paligemma import parameters, registry, tree, variants
from paligemma.lora.config import Lora
from paligemma.models import gemma, stack, vit

# Pixels; or their embeddings, for a tower that returns them (decode.generate).
Images = Float[ArrayLike, "B *F H W 3"] | Float[ArrayLike, "B L D"]


@dataclasses.dataclass(frozen=True)
class OutputLayer:
  """Computes logits; a dataclass, so that it is equal for equal models."""

  llm: nn.Module

  def __call__(
    self, head: PyTree[Array], features: Float[Array, "B T D"]
  ) -> Float[Array, "B T V"]:
    return self.llm.apply({"params": head}, features, method="compute_logits")


class Model(nn.Module):
  """Two towers in one sequence: image tokens, then text.

  Attributes:
    img: Called with (image, train), returns tokens [B, L, D] and a dict of
      intermediates, e.g. vit.Model with num_classes D; None for a decoder
      alone, whose images are None as well.
    llm: With the methods of gemma.Model.
    metadata: What the checkpoint said beside the towers, such as the
      preprocessing of images (see checkpoints/stated_fields.py). No computation
      depends on it, and models that differ in it alone are equal.
  """

  img: nn.Module | None
  llm: nn.Module
  metadata: Mapping[str, Any] = dataclasses.field(
    default_factory=dict, compare=False, repr=False
  )

  @property
  def towers(self) -> dict[str, nn.Module]:
    """The towers by name, without an image tower that is None."""
    both = {"img": self.img, "llm": self.llm}
    return {name: tower for name, tower in both.items() if tower is not None}

  @nn.nowrap
  def init_inputs(self, res: int | None = None) -> tuple[Array | None, ...]:
    """Returns arguments for `init`, for images of `res` pixels or one patch."""
    text = jnp.zeros((1, 1), jnp.int32)
    image = None if self.img is None else self.img.init_input(res)
    return image, text, text

  def embed_image(
    self, image: Images, train: bool = False
  ) -> tuple[Float[Array, "B L D"], dict[str, Any]]:
    """Turns images into decoder inputs.

    Pixels are in [-1, 1]. The tokens of frames are concatenated in order.
    Unlike text, they are not multiplied by sqrt(D).

    Returns:
      Tokens, and intermediates: "img/zimg", the tokens, and others.
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
    self, tokens: Int[ArrayLike, "B T"]
  ) -> tuple[Float[Array, "B T D"], dict[str, Array]]:
    """Returns the embeddings of tokens, and {"llm/ztxt": embeddings}."""
    ztxt = self.llm.embed_tokens(tokens)
    return ztxt, {"llm/ztxt": ztxt}

  def embed_image_and_text(
    self,
    image: Images | None,
    text: Int[ArrayLike, "B T"],
    *,
    input_mask: Bool[ArrayLike, "B T"] | None = None,
    mask_ar: Int[ArrayLike, "B T"] | None = None,
    frame_mask: Bool[ArrayLike, "B F"] | None = None,
    train: bool = False,
  ) -> tuple[
    tuple[Float[Array, "B S D"], Bool[Array, "B S"], Int[Array, "B S"]],
    dict[str, Any],
  ]:
    """Makes images and text one sequence of embeddings.

    Args:
      image: In [-1, 1]; None for text alone.
      text: Token ids.
      input_mask: False at padding. Default: no padding.
      mask_ar: 0 in the prefix, which attends in both directions together with
        the image, 1 where text is causal. Default: all 1.
      frame_mask: False at a frame that is only padding. Default: no padding.
      train: Whether dropout is on.

    Returns:
      (embeddings, input_mask, mask_ar) of the sequence, and intermediates.

    Raises:
      ValueError: `frame_mask` does not fit the frames.
    """
    ztxt, out_txt = self.embed_text(text)
    if input_mask is None:
      input_mask = jnp.ones(text.shape, bool)
    if mask_ar is None:
      mask_ar = jnp.ones(text.shape, jnp.int32)
    if image is None:
      input_mask, mask_ar = jnp.asarray(input_mask, bool), jnp.asarray(mask_ar)
      return (ztxt, input_mask, mask_ar), out_txt
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
    image: Images | None,
    text: Int[ArrayLike, "B T"],
    mask_ar: Int[ArrayLike, "B T"],
    train: bool = False,
    *,
    segment_ids: Int[ArrayLike, "B T"] | None = None,
    **masks: Bool[ArrayLike, "B _"] | None,
  ) -> tuple[Float[Array, "B T V"], dict[str, Any]]:
    """Predicts each next text token.

    Args:
      image, text, mask_ar, train: As for `embed_image_and_text`.
      segment_ids: Of several texts in a row, without images, see
        attention.masks.make_mask. Default: a row is one text.
      **masks: Its `input_mask` and `frame_mask`.

    Returns:
      Logits, those at t predicting token t + 1, and a dict of intermediates,
      named as in big_vision: "img/..." of the image tower, "llm/..." of the
      decoder ("llm/pre_logits" [B, S, D] and "llm/logits" [B, S, V] among
      them), "attn_mask" [B, S, S], "text_logits" and "text_tokens" [B, T],
      their largest. Those that a compiled program does not use cost it nothing.
      Flax's `capture_intermediates=True` adds the output of every submodule.
    """
    masks |= {"segment_ids": segment_ids}
    features, out = self.compute_features(image, text, mask_ar, train, **masks)
    logits = self.compute_logits(features)
    out["llm/logits"] = self.compute_logits(out["llm/pre_logits"])
    out["attn_mask"] = out["llm/attn_mask"]
    out["text_logits"] = logits
    out["text_tokens"] = jnp.argmax(logits, axis=-1)
    return logits, out

  def compute_features(
    self,
    image: Images | None,
    text: Int[ArrayLike, "B T"],
    mask_ar: Int[ArrayLike, "B T"],
    train: bool = False,
    *,
    segment_ids: Int[ArrayLike, "B T"] | None = None,
    **masks: Bool[ArrayLike, "B _"] | None,
  ) -> tuple[Float[Array, "B T D"], dict[str, Any]]:
    """Returns features for `compute_logits`, and intermediates.

    These are all steps of __call__ but the last, with the same arguments.

    Raises:
      ValueError: Images are given with segments; or as embed_image_and_text.
    """
    if image is not None and segment_ids is not None:
      raise ValueError(
        "images with segment_ids, expected texts alone: image tokens belong to "
        "one text"
      )
    (x, input_mask, mask_ar), out = self.embed_image_and_text(
      image, text, mask_ar=mask_ar, train=train, **masks
    )
    pre_logits, out_llm = self.llm(
      x, input_mask, mask_ar, train=train, segment_ids=segment_ids
    )
    out.update({f"llm/{name}": value for name, value in out_llm.items()})
    return pre_logits[:, -text.shape[1] :], out

  def compute_logits(
    self, features: Float[Array, "B T D"]
  ) -> Float[Array, "B T V"]:
    """Returns soft-capped logits in float32."""
    return self.llm.compute_logits(features)

  @nn.nowrap
  def output_layer(
    self, params: Mapping[str, Any]
  ) -> tuple[OutputLayer, dict[str, Any]]:
    """Returns the last step of __call__, for losses.mean_next_token.

    It is a function (head, features) -> logits, and those of the parameters
    that are its `head`.
    """
    head = {"embedder": params["llm"]["embedder"]}
    if self.llm.dtype == "float16":
      # Once, not for every few tokens: the GPUs of float16 multiply no int8.
      head = jax.tree.map(
        lambda x: x.astype("float16") if x.dtype == jnp.int8 else x, head
      )
    return OutputLayer(self.llm), head

  @nn.nowrap
  def unstack_decoder(
    self, params: Mapping[str, Any]
  ) -> tuple["Model", dict[str, Any]]:
    """Returns this model with the layers of the decoder apart, as copies.

    A loop over tokens reads them once per token. Of layers that are stacked XLA
    copies each before its product, for every token.
    """
    llm = self.llm
    layers = stack.unstack(params["llm"]["layers"], llm.depth, llm.dtype)
    params = {**params, "llm": {**params["llm"], "layers": layers}}
    return self.clone(llm=llm.clone(scan=False)), params

  def prefill_cache(
    self,
    x: Float[ArrayLike, "B S D"],
    input_mask: Bool[ArrayLike, "B S"],
    mask_ar: Int[ArrayLike, "B S"],
    *,
    cache_size: int,
  ) -> Float[Array, "B 1 V"]:
    """Reads a prompt into the "cache" collection, which must be mutable.

    See gemma.Model.prefill_cache; the sequence is of `embed_image_and_text`.
    """
    return self.llm.prefill_cache(x, input_mask, mask_ar, cache_size=cache_size)

  def extend_cache(self, x: Float[Array, "B 1 D"]) -> Float[Array, "B 1 V"]:
    """Appends one token per example, see gemma.Model.extend_cache."""
    return self.llm.extend_cache(x)


def make(
  variant: str = "paligemma_3b",
  *,
  vocab_size: int | None = None,
  dtype: str = "float32",
  img: Mapping[str, Any] | None = None,
  llm: Mapping[str, Any] | None = None,
  lora: Mapping[str, Any] | None = None,
) -> Model:
  """Returns a model by name.

  The resolution is not part of it: the position embedding takes the number of
  patches of the image that initialises or of the checkpoint.

  Args:
    variant: A key of variants.PALIGEMMA; or of variants.GEMMA: a decoder alone.
    vocab_size: Size of the embedding table. Default: the variant's.
    dtype: Compute dtype of both towers: "float32", "bfloat16" or "float16".
    img: Fields of vit.Model that differ; "variant" (e.g. "B/16") exchanges the
      whole tower. Of a decoder alone they are not used.
    llm: Fields of gemma.Model that differ; likewise "variant".
    lora: Fields of lora.config.Lora that differ, {} for its defaults; None for
      no adapters.

  Raises:
    ValueError: Unknown variant or field, with the nearest name.
  """
  known = {**variants.PALIGEMMA, **variants.GEMMA}
  registry.lookup(known, variant, "variant")
  llm = {"dtype": dtype, **variants.decoder(variant), **(llm or {})}
  if vocab_size is not None:
    llm["vocab_size"] = vocab_size
  adapters = {}
  if lora is not None:
    for field in lora:
      registry.lookup(Lora.__annotations__, field, "LoRA field")
    adapters["lora"] = Lora(**lora)
  llm = gemma.make(**llm, **adapters)
  if variant in variants.GEMMA:
    return Model(img=None, llm=llm)
  sizes = {"variant": variants.PALIGEMMA[variant].img, "num_classes": llm.width}
  img = {"dtype": dtype, **sizes, **(img or {}), **adapters}
  return Model(img=vit.make(**img), llm=llm)


def from_sizes(
  img: Mapping[str, Any] | None,
  llm: Mapping[str, Any],
  *,
  dtype: str = "float32",
) -> Model:
  """Returns a model of the sizes that a checkpoint has.

  Fields that array shapes do not show (soft caps, window, query scale) come
  from the variant of those sizes, unless `llm` has them. A decoder of unknown
  sizes counts as Gemma 2 if it has post norms, else as Gemma 1. With an image
  tower Gemma 2 runs without window and final soft cap, as PaliGemma 2 was
  trained.

  Args:
    img: Sizes (see parameters.SIZES), `scan` and other fields of vit.Model.
      None: a decoder alone.
    llm: Sizes, `post_norms`, `scan` and other fields of gemma.Model.
    dtype: Compute dtype of both towers.

  Raises:
    ValueError: Unknown field, with the nearest name.
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


def check_whole(model: nn.Module, name: str) -> None:
  """Raises if a model lacks the image tower or the decoder.

  Args:
    model: Of any kind.
    name: Of its checkpoint, for the error.
  """
  if set(model.towers) != {"img", "llm"}:
    raise ValueError(
      f"{name}: holds {' and '.join(model.towers)}, expected a whole "
      "PaliGemma: an image tower (img) and a decoder (llm)"
    )


def resolution(model: Model, params: Mapping[str, Any]) -> int:
  """Returns the side in pixels of the images that the positions are for.

  `params` may be leaves with a `shape`, flat or nested.
  """
  positions = tree.flatten(params)[parameters.POSITIONS].shape[1]
  return math.isqrt(positions) * model.img.patch_size
