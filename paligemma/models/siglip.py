"""SigLIP: an image tower and a text tower whose embeddings are compared.

    logits = zimg @ ztxt.T * out["t"] + out["b"]
    probability that image i and text j belong together = sigmoid(logits[i, j])

Sources: arXiv:2303.15343 (SigLIP), arXiv:2502.14786 (SigLIP 2), big_vision's
models/proj/image_text/two_towers.py, whose parameters have these names.

Axes: B images, C texts, H height, W width in pixels, T tokens, E features of an
embedding.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from paligemma import parameters, registry, tree, variants
from paligemma.models import (
  distillation,
  naflex,
  text_decoder,
  text_tower,
  vit,
)

_EPSILON = 1e-8  # of norms


class Model(nn.Module):
  """Two towers, a temperature and a bias.

  Attributes:
    img: vit.Model with a pooling, so that it returns [B, E], or naflex.Model.
    txt: text_tower.Model.
    temperature_init: Of out["t"].
    bias_init: Of out["b"]; None: no bias, as with the softmax loss of CLIP.
    dec: text_decoder.Model, for a loss beside that of the pairs; None: none.
    distill: distillation.Heads, likewise.
    metadata: As of paligemma.Model.
  """

  img: nn.Module
  txt: nn.Module
  temperature_init: float = 10.0
  bias_init: float | None = -10.0
  dec: nn.Module | None = None
  distill: nn.Module | None = None
  metadata: Mapping[str, Any] = dataclasses.field(
    default_factory=dict, compare=False, repr=False
  )

  @nn.compact
  def __call__(
    self,
    image: Float[ArrayLike, "B H W 3"] | naflex.Patches | None,
    text: Int[ArrayLike, "C T"] | None = None,
    train: bool = False,
  ) -> tuple[
    Float[Array, "B E"] | None, Float[Array, "C E"] | None, dict[str, Any]
  ]:
    """Embeds images and texts; either may be None.

    Args:
      image: Pixels in [-1, 1]. Those at the right and the bottom that fill no
        patch are left out: So400m/14 reads 378 of 384 pixels. For NaFlex the
        tuple (patches, type, yidx, xidx), see naflex.Patches.
      text: Token ids, padded to the length of the text tower.
      train: Whether dropout is on.

    Returns:
      Embeddings of images and of texts, each divided by its L2 norm + 1e-8, and
      a dict: "t", the factor of the logits, and "b", what is added to them,
      both [1]; "t/parameter", the logarithm of t; the outputs of the towers
      under "img/" and "txt/", with "norm" and "normalized".

    Raises:
      ValueError: Images are smaller than a patch, or texts have another length
        than the text tower.
    """
    zimg, ztxt, out = None, None, {}
    if text is not None:
      ztxt, of_text = self.txt(text, train=train)
      ztxt = _normalize("txt", ztxt, of_text, out)
    if image is not None:
      zimg, of_image = self.img(self._whole_patches(image), train=train)
      if self.distill is not None and self.is_initializing():
        self.distill(zimg, of_image["encoded"])
      zimg = _normalize("img", zimg, of_image, out)
      if self.dec is not None and self.is_initializing():
        self.dec.init_from(of_image["encoded"])
    start = nn.initializers.constant(math.log(self.temperature_init))
    out["t/parameter"] = t = self.param("t", start, (1,), jnp.float32)
    out["t"] = jnp.exp(t.astype(jnp.float32))
    if self.bias_init is not None:
      start = nn.initializers.constant(self.bias_init)
      out["b"] = self.param("b", start, (1,), jnp.float32).astype(jnp.float32)
    return zimg, ztxt, out

  def _whole_patches(self, image):
    if isinstance(image, tuple):
      return image
    side = self.img.patch_size
    height, width = (x - x % side for x in image.shape[1:3])
    if not height or not width:
      raise ValueError(
        f"images have {image.shape[1]}x{image.shape[2]} pixels, expected at "
        f"least a patch of {side}x{side}"
      )
    return image[:, :height, :width]

  def decode(
    self,
    image_tokens: Float[Array, "B S C"],
    is_patch: Bool[Array, "B S"] | None,
    text: Int[Array, "B R T"],
    parallel: Bool[Array, " B"],
    train: bool = False,
  ) -> Float[Array, "B R*T D"]:
    """Reads texts beside images, see text_decoder.Model."""
    return self.dec(image_tokens, is_patch, text, parallel, train)

  @property
  def towers(self) -> dict[str, nn.Module]:
    """The towers by name."""
    return {"img": self.img, "txt": self.txt}

  @nn.nowrap
  def init_inputs(self, res: int | None = None) -> tuple[Any, Array]:
    """Returns arguments for `init`, for images of `res` pixels or one patch."""
    text = jnp.zeros((1, self.txt.text_len), jnp.int32)
    return self.img.init_input(res), text


def _normalize(tower, z, of_tower, out):
  out.update({f"{tower}/{name}": value for name, value in of_tower.items()})
  norm = out[f"{tower}/norm"] = jnp.linalg.norm(z, axis=1, keepdims=True)
  z = out[f"{tower}/normalized"] = z / (norm + _EPSILON)
  return z


def is_naflex(model: Model) -> bool:
  """Returns whether images are patches, see models/naflex.py."""
  return isinstance(model.img, naflex.Model)


def resolution(model: Model, params: Mapping[str, Any]) -> int:
  """Returns the side in pixels of images, see variants.siglip_side.

  `params` may be leaves with a `shape`, flat or nested.
  """
  positions = tree.flatten(params)[parameters.POSITIONS].shape[1]
  return variants.siglip_side(model.img.patch_size, math.isqrt(positions))


def from_sizes(
  img: Mapping[str, Any],
  txt: Mapping[str, Any],
  *,
  has_bias: bool = True,
) -> Model:
  """Returns a model of the sizes that a checkpoint has.

  Args:
    img: Fields of naflex.Model if "grid" is among them, else of vit.Model.
    txt: Fields of text_tower.Model.
    has_bias: Whether the logits have a bias.

  Raises:
    ValueError: Unknown field, with the nearest name.
  """
  image_tower = naflex.Model if "grid" in img else vit.Model
  for tower, fields, what in (
    (image_tower, img, "image tower field"),
    (text_tower.Model, txt, "text tower field"),
  ):
    for field in fields:
      registry.lookup(tower.__annotations__, field, what)
  start = Model.bias_init if has_bias else None
  return Model(image_tower(**img), text_tower.Model(**txt), bias_init=start)


def make(
  variant: str,
  *,
  dtype: str = "float32",
  img: Mapping[str, Any] | None = None,
  txt: Mapping[str, Any] | None = None,
  dec: Mapping[str, Any] | None = None,
  distill: Mapping[str, Any] | None = None,
  **fields: Any,
) -> Model:
  """Returns a model by name, such as "siglip2_b16_224".

  The resolution is not part of it: the position embedding takes the number of
  patches of the image that initialises or of the checkpoint.

  Args:
    variant: A key of variants.SIGLIP.
    dtype: Compute dtype of both towers: "float32", "bfloat16" or "float16".
    img, txt: Fields of vit.Model and text_tower.Model that differ.
    dec: Fields of text_decoder.Model that differ from the text tower's; None:
      no decoder.
    distill: Fields of distillation.Heads that differ; None: no such heads.
    **fields: Fields of Model that differ: temperature_init, bias_init.

  Raises:
    ValueError: Unknown variant or field, with the nearest name; embeddings of
      images and texts have other sizes.
  """
  sizes = registry.lookup(variants.SIGLIP, variant, "variant")
  names = ("vocab_size", "text_len")
  txt = {name: getattr(sizes, name) for name in names} | dict(txt or {})
  txt.setdefault("num_classes", sizes.embed_dim)
  img = {"pool_type": "map", **(img or {})}
  tower = vit if sizes.res else naflex
  img = tower.make(sizes.img, dtype=dtype, **img)
  txt = text_tower.make(sizes.txt, dtype=dtype, **txt)
  found = [getattr(x, "num_classes", None) or x.width for x in (img, txt)]
  if found[0] != found[1]:
    raise ValueError(
      f"embeddings of images have {found[0]} features, of texts {found[1]}, "
      f"which cannot be compared; txt.num_classes={found[0]} makes them equal"
    )
  return Model(
    img=img,
    txt=txt,
    dec=None if dec is None else text_decoder.beside(txt, **dec),
    distill=None if distill is None else distillation.Heads(**distill),
    **fields,
  )
