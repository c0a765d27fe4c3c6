"""Each tensor of transformers' PaliGemma, and where it lies in our leaves.

Keys are written without the prefixes in which releases of transformers differ:
"text.", "vision." and "projector." (see huggingface.py).

Axes: D width, F mlp hidden, N heads, K kv heads, H head dim, V vocabulary, E
width of the decoder in the projector, P positions, C colours, h and w of a
patch. A linear layer of PyTorch keeps its weight as (out, in), and heads as one
axis (N H).

Source: transformers 5.23, models/{gemma,gemma2,siglip,paligemma}/modeling_*.py.
Both sides keep the difference to one as the scale of a norm.
"""

import dataclasses
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import einops
import numpy as np

# key of a layer, leaf of a layer, place in that leaf, axes there and here
_ATTENTION_QKV = (
  ("self_attn.q_proj.weight", "attn/qkv_einsum/w", (0,), "(N H) D", "N D H"),
  ("self_attn.k_proj.weight", "attn/qkv_einsum/w", (1,), "(N H) D", "N D H"),
  ("self_attn.v_proj.weight", "attn/qkv_einsum/w", (2,), "(N H) D", "N D H"),
)
_ATTENTION_Q_KV = (
  ("self_attn.q_proj.weight", "attn/q_einsum/w", (), "(N H) D", "N D H"),
  ("self_attn.k_proj.weight", "attn/kv_einsum/w", (0,), "(K H) D", "K D H"),
  ("self_attn.v_proj.weight", "attn/kv_einsum/w", (1,), "(K H) D", "K D H"),
)
_DECODER_LAYER = (
  ("self_attn.o_proj.weight", "attn/attn_vec_einsum/w", (), "D (N H)", "N H D"),
  ("mlp.gate_proj.weight", "mlp/gating_einsum", (0,), "F D", "D F"),
  ("mlp.up_proj.weight", "mlp/gating_einsum", (1,), "F D", "D F"),
  ("mlp.down_proj.weight", "mlp/linear", (), "D F", "F D"),
  ("input_layernorm.weight", "pre_attention_norm/scale", (), "D", "D"),
)
# The same name is another norm in Gemma 1 and 2.
_NORMS_GEMMA1 = (
  ("post_attention_layernorm.weight", "pre_ffw_norm/scale", (), "D", "D"),
)
_NORMS_GEMMA2 = (
  ("pre_feedforward_layernorm.weight", "pre_ffw_norm/scale", (), "D", "D"),
  (
    "post_attention_layernorm.weight",
    "post_attention_norm/scale",
    (),
    "D",
    "D",
  ),
  ("post_feedforward_layernorm.weight", "post_ffw_norm/scale", (), "D", "D"),
)
_DECODER = (
  ("text.embed_tokens.weight", "llm/embedder/input_embedding", "V D", "V D"),
  ("text.norm.weight", "llm/final_norm/scale", "D", "D"),
)

_MHA = "MultiHeadDotProductAttention_0"
_VISION_LAYER = (
  ("layer_norm1.weight", "LayerNorm_0/scale", (), "D", "D"),
  ("layer_norm1.bias", "LayerNorm_0/bias", (), "D", "D"),
  ("layer_norm2.weight", "LayerNorm_1/scale", (), "D", "D"),
  ("layer_norm2.bias", "LayerNorm_1/bias", (), "D", "D"),
  ("self_attn.q_proj.weight", f"{_MHA}/query/kernel", (), "(N H) D", "D N H"),
  ("self_attn.q_proj.bias", f"{_MHA}/query/bias", (), "(N H)", "N H"),
  ("self_attn.k_proj.weight", f"{_MHA}/key/kernel", (), "(N H) D", "D N H"),
  ("self_attn.k_proj.bias", f"{_MHA}/key/bias", (), "(N H)", "N H"),
  ("self_attn.v_proj.weight", f"{_MHA}/value/kernel", (), "(N H) D", "D N H"),
  ("self_attn.v_proj.bias", f"{_MHA}/value/bias", (), "(N H)", "N H"),
  ("self_attn.out_proj.weight", f"{_MHA}/out/kernel", (), "D (N H)", "N H D"),
  ("self_attn.out_proj.bias", f"{_MHA}/out/bias", (), "D", "D"),
  ("mlp.fc1.weight", "MlpBlock_0/Dense_0/kernel", (), "F D", "D F"),
  ("mlp.fc1.bias", "MlpBlock_0/Dense_0/bias", (), "F", "F"),
  ("mlp.fc2.weight", "MlpBlock_0/Dense_1/kernel", (), "D F", "F D"),
  ("mlp.fc2.bias", "MlpBlock_0/Dense_1/bias", (), "D", "D"),
)
_PATCHES = "embeddings.patch_embedding"
_VISION = (
  (f"vision.{_PATCHES}.weight", "img/embedding/kernel", "D C h w", "h w C D"),
  (f"vision.{_PATCHES}.bias", "img/embedding/bias", "D", "D"),
  (
    "vision.embeddings.position_embedding.weight",
    "img/pos_embedding",
    "P D",
    "1 P D",
  ),
  (
    "vision.post_layernorm.weight",
    "img/Transformer/encoder_norm/scale",
    "D",
    "D",
  ),
  ("vision.post_layernorm.bias", "img/Transformer/encoder_norm/bias", "D", "D"),
)
_PROJECTOR = (
  ("projector.linear.weight", "img/head/kernel", "E D", "D E"),
  ("projector.linear.bias", "img/head/bias", "E", "E"),
)


# As the files on the hub have them, and transformers 5.23 writes them but for
# "vision_model."; every release since 4.41 reads these.
_HUB_PREFIXES = {
  "text": "language_model.model",
  "vision": "vision_tower.vision_model",
  "projector": "multi_modal_projector",
}


@dataclasses.dataclass(frozen=True)
class Entry:
  """A tensor of transformers as a part of a leaf of ours.

  Attributes:
    key: Its name there, "text.layers.3.mlp.up_proj.weight".
    leaf: The leaf here, in scan layout, "llm/layers/mlp/gating_einsum".
    at: Its place in the leaf, the layer first: (3, 1).
    theirs: Axes of the tensor there, "F D".
    ours: Axes of leaf[at], "D F".
    sizes: Size of every axis.
  """

  key: str
  leaf: str
  at: tuple[int, ...]
  theirs: str
  ours: str
  sizes: Mapping[str, int]

  @property
  def their_shape(self) -> tuple[int, ...]:
    return _shape(self.theirs, self.sizes)

  @property
  def our_shape(self) -> tuple[int, ...]:
    return _shape(self.ours, self.sizes)

  def to_ours(self, tensor: np.ndarray) -> np.ndarray:
    """Turns a tensor of transformers into leaf[at]: a view."""
    return self._rearrange(tensor, self.theirs, self.ours)

  def to_theirs(self, part: np.ndarray) -> np.ndarray:
    """Turns leaf[at] into the tensor of transformers."""
    return self._rearrange(part, self.ours, self.theirs)

  def _rearrange(self, array, source, target):
    axes = set(re.findall("[a-zA-Z]", self.theirs))
    sizes = {axis: self.sizes[axis] for axis in axes}
    return einops.rearrange(array, f"{source} -> {target}", **sizes)


def entries(
  img: Mapping[str, Any] | None,
  llm: Mapping[str, Any],
  num_positions: int | None,
) -> list[Entry]:
  """The tensors of a PaliGemma, or of a Gemma alone.

  Args:
    img: Fields of vit.Model: width, depth, mlp_dim, num_heads, patch_size.
      None: no image tower.
    llm: Fields of gemma.Model: the sizes, and post_norms where it is True.
    num_positions: Patches of an image.
  """
  tower = ("width", "depth", "mlp_dim", "num_heads")
  sizes = (*tower, "num_kv_heads", "head_dim", "vocab_size")
  found = [
    *decoder(
      **{name: llm[name] for name in sizes},
      post_norms=llm.get("post_norms", False),
    )
  ]
  if img is None:
    return found
  return [
    *found,
    *image_tower(
      **{name: img[name] for name in tower},
      patch_size=img["patch_size"],
      num_positions=num_positions,
    ),
    *projector(img_width=img["width"], llm_width=llm["width"]),
  ]


def decoder(
  *,
  width: int,
  depth: int,
  mlp_dim: int,
  num_heads: int,
  num_kv_heads: int,
  head_dim: int,
  vocab_size: int,
  post_norms: bool,
) -> Iterator[Entry]:
  """Yields the tensors of Gemma 1, or with `post_norms` of Gemma 2."""
  sizes = {
    "D": width,
    "F": mlp_dim,
    "N": num_heads,
    "K": num_kv_heads,
    "H": head_dim,
    "V": vocab_size,
  }
  layer = (
    *(_ATTENTION_QKV if num_kv_heads == num_heads else _ATTENTION_Q_KV),
    *_DECODER_LAYER,
    *(_NORMS_GEMMA2 if post_norms else _NORMS_GEMMA1),
  )
  yield from _whole(_DECODER, sizes)
  yield from _layers("text.layers", "llm/layers", layer, depth, sizes)


def image_tower(
  *,
  width: int,
  depth: int,
  mlp_dim: int,
  num_heads: int,
  patch_size: int,
  num_positions: int,
) -> Iterator[Entry]:
  """Yields the tensors of SigLIP's image tower, without its pooling head."""
  sizes = {
    "D": width,
    "F": mlp_dim,
    "N": num_heads,
    "H": width // num_heads,
    "P": num_positions,
    "C": 3,
    "h": patch_size,
    "w": patch_size,
  }
  stem = "img/Transformer/encoderblock"
  yield from _whole(_VISION, sizes)
  yield from _layers("vision.encoder.layers", stem, _VISION_LAYER, depth, sizes)


def projector(*, img_width: int, llm_width: int) -> Iterator[Entry]:
  """Yields the tensors between the two towers."""
  yield from _whole(_PROJECTOR, {"D": img_width, "E": llm_width})


def leaf_shapes(entries: Iterable[Entry]) -> dict[str, tuple[int, ...]]:
  """Returns name -> shape of the leaves, in scan layout, of which these are."""
  shapes = {}
  for entry in entries:
    places = tuple(i + 1 for i in entry.at)
    found = shapes.get(entry.leaf, (*places, *entry.our_shape))
    shapes[entry.leaf] = (
      *map(max, places, found),
      *found[len(places) :],
    )
  return shapes


def hub_key(key: str) -> str:
  """ "text.norm.weight" -> "language_model.model.norm.weight"."""
  prefix, _, rest = key.partition(".")
  return f"{_HUB_PREFIXES[prefix]}.{rest}"


def gemma_key(key: str) -> str:
  """ "text.norm.weight" -> "model.norm.weight", as of a Gemma alone."""
  return f"model.{key.removeprefix('text.')}"


def _whole(table, sizes):
  for key, leaf, theirs, ours in table:
    yield Entry(key, leaf, (), theirs, ours, sizes)


def _layers(stem, leaf_stem, table, depth, sizes):
  for i in range(depth):
    for key, leaf, at, theirs, ours in table:
      yield Entry(
        f"{stem}.{i}.{key}",
        f"{leaf_stem}/{leaf}",
        (i, *at),
        theirs,
        ours,
        sizes,
      )


def _shape(axes: str, sizes: Mapping[str, int]) -> tuple[int, ...]:
  """ "(N H) D" -> (N * H, D)."""
  groups = re.findall(r"\([^)]*\)|\S+", axes)
  return tuple(
    math.prod(sizes[axis] for axis in re.findall("[a-zA-Z]", group))
    for group in groups
  )
