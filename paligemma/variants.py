"""The size of every published tower, and of the tiny ones used in tests.

Sources: the SigLIP image towers follow Table 2 of "Scaling Vision
Transformers" (Zhai et al. 2022, arXiv:2106.04560), So400m "Getting ViT in
Shape" (Alabdulmohsin et al. 2023, arXiv:2305.13035); the decoders follow
Table 1 of the Gemma report (arXiv:2403.08295) and Table 1 of the Gemma 2
report (arXiv:2408.00118); PaliGemma combines them as in arXiv:2407.07726 and
arXiv:2412.03555.
"""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal

VOCAB_SIZE = 257_152  # 256,000 Gemma pieces + 1024 <loc> + 128 <seg>.


@dataclasses.dataclass(frozen=True)
class ViT:
  """Sizes of an image tower; the patch size is written behind a slash."""

  width: int
  depth: int
  mlp_dim: int
  num_heads: int


@dataclasses.dataclass(frozen=True)
class Gemma:
  """Sizes of a decoder, and what array shapes cannot tell about it.

  `query_scale` says by what the queries are divided: the square root of
  "head_dim", of "width_per_head" (width / num_heads), or of a number
  (transformers' query_pre_attn_scalar). A soft cap c turns logits z into
  c * tanh(z / c); None is no cap. `sliding_window` is the number of positions
  that even layers (0, 2, ...) can look back, itself included; None all. A
  prefix sees all of itself whatever the window.
  """

  width: int
  depth: int
  mlp_dim: int
  num_heads: int
  num_kv_heads: int
  head_dim: int
  vocab_size: int = VOCAB_SIZE
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


VIT = {
  "nano": ViT(width=128, depth=4, mlp_dim=512, num_heads=4),  # ours
  "mu": ViT(width=32, depth=1, mlp_dim=128, num_heads=2),
  "Ti": ViT(width=192, depth=12, mlp_dim=768, num_heads=3),
  "S": ViT(width=384, depth=12, mlp_dim=1536, num_heads=6),
  "M": ViT(width=512, depth=12, mlp_dim=2048, num_heads=8),
  "B": ViT(width=768, depth=12, mlp_dim=3072, num_heads=12),
  "L": ViT(width=1024, depth=24, mlp_dim=4096, num_heads=16),
  "So400m": ViT(width=1152, depth=27, mlp_dim=4304, num_heads=16),
  "H": ViT(width=1280, depth=32, mlp_dim=5120, num_heads=16),
  "g": ViT(width=1408, depth=40, mlp_dim=6144, num_heads=16),
  "g-opt": ViT(width=1536, depth=40, mlp_dim=6144, num_heads=16),
  "G": ViT(width=1664, depth=48, mlp_dim=8192, num_heads=16),
  "G-opt": ViT(width=1536, depth=48, mlp_dim=8192, num_heads=16),
  "e": ViT(width=1792, depth=56, mlp_dim=15360, num_heads=16),
}

_GEMMA2 = {
  "post_norms": True,
  "attn_logits_softcap": 50.0,
  "final_logits_softcap": 30.0,
  "sliding_window": 4096,
}

GEMMA = {
  "gemma_nano": Gemma(  # ours
    width=128,
    depth=4,
    mlp_dim=512,
    num_heads=4,
    num_kv_heads=1,
    head_dim=32,
    vocab_size=1792,
  ),
  "gemma2_nano": Gemma(  # ours
    width=128,
    depth=4,
    mlp_dim=512,
    num_heads=4,
    num_kv_heads=2,
    head_dim=32,
    vocab_size=1792,
    **_GEMMA2,
  ),
  "gemma_2b": Gemma(
    width=2048,
    depth=18,
    mlp_dim=16_384,
    num_heads=8,
    num_kv_heads=1,
    head_dim=256,
  ),
  "gemma_7b": Gemma(
    width=3072,
    depth=28,
    mlp_dim=24_576,
    num_heads=16,
    num_kv_heads=16,
    head_dim=256,
  ),
  "gemma2_2b": Gemma(
    width=2304,
    depth=26,
    mlp_dim=9216,
    num_heads=8,
    num_kv_heads=4,
    head_dim=256,
    **_GEMMA2,
  ),
  "gemma2_9b": Gemma(
    width=3584,
    depth=42,
    mlp_dim=14_336,
    num_heads=16,
    num_kv_heads=8,
    head_dim=256,
    **_GEMMA2,
  ),
  "gemma2_27b": Gemma(
    width=4608,
    depth=46,
    mlp_dim=36_864,
    num_heads=32,
    num_kv_heads=16,
    head_dim=128,
    query_scale="width_per_head",
    **_GEMMA2,
  ),
}


def nearest(sizes: Mapping[str, Any]) -> str:
  """Key in GEMMA of the decoder of some sizes, whatever its vocabulary.

  Args:
    sizes: Fields of Gemma, post_norms among them. With a decoder of unknown
      sizes that counts: Gemma 2 has post norms.
  """
  tells = ("width", "depth", "mlp_dim", "num_heads", "num_kv_heads", "head_dim")
  for name, variant in GEMMA.items():
    if all(getattr(variant, x) == sizes[x] for x in (*tells, "post_norms")):
      return name
  return "gemma2_2b" if sizes["post_norms"] else "gemma_2b"


# PaliGemma 2 was trained and its transfers were run without the final soft
# cap and without the sliding window of Gemma 2 (big_vision's configs).
AS_IN_PALIGEMMA2 = MappingProxyType(
  {"final_logits_softcap": None, "sliding_window": None}
)

PALIGEMMA = {
  "paligemma_tiny": PaliGemma("nano/14", "gemma_nano"),
  "paligemma2_tiny": PaliGemma("nano/14", "gemma2_nano", AS_IN_PALIGEMMA2),
  "paligemma_3b": PaliGemma("So400m/14", "gemma_2b"),
  "paligemma2_3b": PaliGemma("So400m/14", "gemma2_2b", AS_IN_PALIGEMMA2),
  "paligemma2_10b": PaliGemma("So400m/14", "gemma2_9b", AS_IN_PALIGEMMA2),
  "paligemma2_28b": PaliGemma("So400m/14", "gemma2_27b", AS_IN_PALIGEMMA2),
}
