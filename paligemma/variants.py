"""The size of every published tower, and of the tiny ones used in tests.

Sources: the SigLIP image towers follow Table 2 of "Scaling Vision
Transformers" (Zhai et al. 2022, arXiv:2106.04560), So400m "Getting ViT in
Shape" (Alabdulmohsin et al. 2023, arXiv:2305.13035); the decoders follow
Table 1 of the Gemma report (arXiv:2403.08295) and Table 1 of the Gemma 2
report (arXiv:2408.00118); PaliGemma combines them as in arXiv:2407.07726 and
arXiv:2412.03555. SigLIP (arXiv:2303.15343) and SigLIP 2 (arXiv:2502.14786) are
as in SigLIP_demo.ipynb and SigLIP2_demo.ipynb of big_vision.
"""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal

GEMMA_VOCAB_SIZE = 256_000
VOCAB_SIZE = GEMMA_VOCAB_SIZE + 1024 + 128  # with <loc> and <seg>


@dataclasses.dataclass(frozen=True)
class ViT:
  """Sizes of an image tower; names have the patch size after a slash."""

  width: int
  depth: int
  mlp_dim: int
  num_heads: int


@dataclasses.dataclass(frozen=True)
class Gemma:
  """Sizes of a decoder, and fields that the shapes of its arrays do not show.

  Queries are divided by the square root of `query_scale`: "head_dim",
  "width_per_head" (width / num_heads), or a number (transformers'
  query_pre_attn_scalar). A soft cap c maps logits z to c * tanh(z / c); None is
  no cap. In even layers (0, 2, ...) a position attends to the last
  `sliding_window` positions, its own included; None is no limit. A prefix
  attends to all of itself whatever the window.
  """

  width: int
  depth: int
  mlp_dim: int
  num_heads: int
  num_kv_heads: int
  head_dim: int
  vocab_size: int = GEMMA_VOCAB_SIZE
  norm_eps: float = 1e-6
  query_scale: Literal["head_dim", "width_per_head"] | float = "head_dim"
  post_norms: bool = False
  attn_logits_softcap: float | None = None
  final_logits_softcap: float | None = None
  sliding_window: int | None = None


@dataclasses.dataclass(frozen=True)
class PaliGemma:
  """An image tower, a decoder, and the decoder's fields that differ."""

  img: str
  llm: str
  llm_overrides: Mapping[str, Any] = dataclasses.field(
    default_factory=lambda: MappingProxyType({})
  )
  vocab_size: int = VOCAB_SIZE


@dataclasses.dataclass(frozen=True)
class SigLIP:
  """An image tower and a text tower whose embeddings are compared.

  Attributes:
    img: Key of VIT with a patch size.
    txt: Key of VIT: the text tower has the sizes of an image tower.
    res: Side of the images in pixels; None: NaFlex, any aspect ratio.
    embed_dim: Of both embeddings, the width of the image tower.
    vocab_size: Rows of the table of the text tower: 32,000 c4_en, 250,000 mc4,
      256,000 Gemma.
    text_len: Tokens of a text, with padding.
  """

  img: str
  txt: str
  res: int | None
  embed_dim: int
  vocab_size: int
  text_len: int = 64


VIT = {
  # width, depth, mlp_dim, num_heads
  "nano": ViT(128, 4, 512, 4),  # ours
  "mu": ViT(32, 1, 128, 2),
  "Ti": ViT(192, 12, 768, 3),
  "S": ViT(384, 12, 1536, 6),
  "M": ViT(512, 12, 2048, 8),
  "B": ViT(768, 12, 3072, 12),
  "L": ViT(1024, 24, 4096, 16),
  "So400m": ViT(1152, 27, 4304, 16),
  "H": ViT(1280, 32, 5120, 16),
  "g": ViT(1408, 40, 6144, 16),
  "g-opt": ViT(1536, 40, 6144, 16),
  "G": ViT(1664, 48, 8192, 16),
  "G-opt": ViT(1536, 48, 8192, 16),
  "e": ViT(1792, 56, 15360, 16),
}

_GEMMA2 = {
  "post_norms": True,
  "attn_logits_softcap": 50.0,
  "final_logits_softcap": 30.0,
  "sliding_window": 4096,
}

GEMMA = {
  # width, depth, mlp_dim, num_heads, num_kv_heads, head_dim
  "gemma_nano": Gemma(128, 4, 512, 4, 1, 32, vocab_size=1792),  # ours
  "gemma2_nano": Gemma(128, 4, 512, 4, 2, 32, vocab_size=1792, **_GEMMA2),
  "gemma_2b": Gemma(2048, 18, 16_384, 8, 1, 256),
  "gemma_7b": Gemma(3072, 28, 24_576, 16, 16, 256),
  # Gemma 1 in all else: no window, no caps, no post norms (arXiv:2510.15001).
  "vault_gemma_1b": Gemma(1152, 26, 6912, 4, 4, 256),
  "gemma2_2b": Gemma(2304, 26, 9216, 8, 4, 256, **_GEMMA2),
  "gemma2_9b": Gemma(3584, 42, 14_336, 16, 8, 256, **_GEMMA2),
  "gemma2_27b": Gemma(
    4608, 46, 36_864, 32, 16, 128, query_scale="width_per_head", **_GEMMA2
  ),
}


def nearest(sizes: Mapping[str, Any]) -> str:
  """Returns the key in GEMMA of some fields of Gemma, whatever its vocabulary.

  A decoder of unknown sizes counts as Gemma 2 if it has post norms.
  """
  names = ("width", "depth", "mlp_dim", "num_heads", "num_kv_heads", "head_dim")
  for name, variant in GEMMA.items():
    if all(getattr(variant, x) == sizes[x] for x in (*names, "post_norms")):
      return name
  return "gemma2_2b" if sizes["post_norms"] else "gemma_2b"


# PaliGemma 2 was trained and its transfers were run without the final soft
# cap and without the sliding window of Gemma 2 (big_vision's configs).
AS_IN_PALIGEMMA2 = MappingProxyType(
  {"final_logits_softcap": None, "sliding_window": None}
)

PALIGEMMA = {
  "paligemma_tiny": PaliGemma("nano/14", "gemma_nano", vocab_size=1792),
  "paligemma2_tiny": PaliGemma(
    "nano/14", "gemma2_nano", AS_IN_PALIGEMMA2, vocab_size=1792
  ),
  "paligemma_3b": PaliGemma("So400m/14", "gemma_2b"),
  "paligemma2_3b": PaliGemma("So400m/14", "gemma2_2b", AS_IN_PALIGEMMA2),
  "paligemma2_10b": PaliGemma("So400m/14", "gemma2_9b", AS_IN_PALIGEMMA2),
  "paligemma2_28b": PaliGemma("So400m/14", "gemma2_27b", AS_IN_PALIGEMMA2),
}


def decoder(variant: str) -> dict[str, Any]:
  """Returns fields of gemma.make for a key of PALIGEMMA or of GEMMA."""
  if variant in GEMMA:
    return {"variant": variant}
  sizes = PALIGEMMA[variant]
  shared = {"variant": sizes.llm, "vocab_size": sizes.vocab_size}
  return {**shared, **sizes.llm_overrides}


# Patches of a NaFlex image, by default; the grid of its position embedding has
# the root of it on a side.
NAFLEX_PATCHES = 256

# Image tower, pixels, vocabulary, length of texts where it is not 64.
_SIGLIP = {
  "siglip_tiny": ("nano/14", 56, 1792, 16),  # ours
  "siglip_b16_224": ("B/16", 224, 32_000),
  "siglip_b16_256": ("B/16", 256, 32_000),
  "siglip_b16_384": ("B/16", 384, 32_000),
  "siglip_b16_512": ("B/16", 512, 32_000),
  "siglip_l16_256": ("L/16", 256, 32_000),
  "siglip_l16_384": ("L/16", 384, 32_000),
  "siglip_so400m14_224": ("So400m/14", 224, 32_000, 16),
  "siglip_so400m14_384": ("So400m/14", 384, 32_000),
  "siglip_i18n_b16_256": ("B/16", 256, 250_000),
  "siglip_i18n_so400m16_256": ("So400m/16", 256, 250_000),
  "siglip2_b16_224": ("B/16", 224, 256_000),
  "siglip2_b16_256": ("B/16", 256, 256_000),
  "siglip2_b16_384": ("B/16", 384, 256_000),
  "siglip2_b16_512": ("B/16", 512, 256_000),
  "siglip2_b32_256": ("B/32", 256, 256_000),
  "siglip2_l16_256": ("L/16", 256, 256_000),
  "siglip2_l16_384": ("L/16", 384, 256_000),
  "siglip2_l16_512": ("L/16", 512, 256_000),
  "siglip2_so400m14_224": ("So400m/14", 224, 256_000),
  "siglip2_so400m14_384": ("So400m/14", 384, 256_000),
  "siglip2_so400m16_256": ("So400m/16", 256, 256_000),
  "siglip2_so400m16_384": ("So400m/16", 384, 256_000),
  "siglip2_so400m16_512": ("So400m/16", 512, 256_000),
  "siglip2_g-opt16_256": ("g-opt/16", 256, 256_000),
  "siglip2_g-opt16_384": ("g-opt/16", 384, 256_000),
  "siglip2_b16_naflex": ("B/16", None, 256_000),
  "siglip2_so400m16_naflex": ("So400m/16", None, 256_000),
}


def _siglip(img, res, vocab_size, text_len=64):
  size = img.partition("/")[0]
  txt = "So400m" if size == "g-opt" else size
  return SigLIP(img, txt, res, VIT[size].width, vocab_size, text_len)


SIGLIP = {name: _siglip(*sizes) for name, sizes in _SIGLIP.items()}


def siglip_side(patch_size: int, grid: int) -> int:
  """Returns the pixels that images of a SigLIP are resized to.

  As published for patches of this size, which do not always fill the image: 27
  of 14 pixels fill 378 of 384. Else as many as the patches fill.

  Args:
    patch_size: In pixels.
    grid: Patches along a side.
  """
  for variant in SIGLIP.values():
    patch = int(variant.img.partition("/")[2])
    if variant.res and (patch, variant.res // patch) == (patch_size, grid):
      return variant.res
  return patch_size * grid


# The mask codec of PaLI-3 and PaliGemma, models/mask_codec.py: layer -> what it
# is, in the order of the computation. Activations have the other numbers.
MASK_CODEC = {
  **{f"encoder.{i}": "down" for i in (0, 2, 4, 6)},
  **{f"encoder.{i}": "block" for i in (8, 9)},
  "encoder.10": "1x1",
  "decoder.0": "1x1",
  **{f"decoder.{i}": "block" for i in (2, 3)},
  **{f"decoder.{i}": "up" for i in (4, 6, 8, 10)},
  "decoder.12": "1x1",
}
CODEBOOK = "_vq_vae._embedding"
# What a layer is -> end of the name of each kernel in it -> its side.
_KERNELS = {
  "down": {"": 4},
  "block": {".net.0": 3, ".net.2": 3, ".net.4": 1},
  "1x1": {"": 1},
  "up": {"": 4},
}


def mask_codec_shapes(
  sizes: Mapping[str, int], tower: str = ""
) -> dict[str, tuple[int, ...]]:
  """Returns consistent shapes of the arrays, each layer as wide as its bias.

  Args:
    sizes: Name -> number of elements, of the biases and the codebook.
    tower: "encoder" for that and the codebook; "" for the decoder as well.
  """
  shapes, width = {}, 1
  for layer, kind in MASK_CODEC.items():
    if not layer.startswith(tower):
      continue
    for end, side in _KERNELS[kind].items():
      new = max(sizes.get(f"{layer}{end}.bias", 1), 1)
      if kind == "block":  # its output is added to its input
        new = width
      if layer == "decoder.12":
        new = 1
      axes = (width, new) if kind == "up" else (new, width)
      shapes[f"{layer}{end}.weight"] = (*axes, side, side)
      shapes[f"{layer}{end}.bias"] = (new,)
      width = new
    if layer == "encoder.10":
      shapes[CODEBOOK] = (max(sizes.get(CODEBOOK, 1) // width, 1), width)
  return shapes
