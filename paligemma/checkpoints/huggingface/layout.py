"""Each tensor of transformers' PaliGemma and SigLIP, and where it lies in ours.

Keys are written without the prefixes in which releases of transformers differ:
"text.", "vision." and "projector." (see read.py). A linear layer of PyTorch
keeps its weight as (out, in), and heads as one axis (N H).

Source: transformers 5.23,
models/{gemma,gemma2,siglip,siglip2,paligemma}/modeling_*.py. Both sides keep
the difference to one as the scale of a norm of Gemma.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from paligemma.checkpoints import names
from paligemma.checkpoints.leaves import Mapped, nbytes
from paligemma.checkpoints.names import Entry
from paligemma.parameters import LAYERS

_LAYERS = f"{LAYERS['llm'][0]}/", "text.layers.*."
_QKV = [f"self_attn.{x}_proj" for x in "qkv"]
_MHA = "MultiHeadDotProductAttention_0"
DECODER = (
  ("llm/embedder/input_embedding", "V D", "text.embed_tokens"),
  ("llm/final_norm", "D", "text.norm"),
  *names.under(
    *_LAYERS,
    (
      ("attn/q_einsum", "(N H) D", _QKV[0]),
      ("attn/kv_einsum", "(K H) D", *_QKV[1:]),
      ("attn/qkv_einsum", "(N H) D", *_QKV),
      ("attn/attn_vec_einsum", "D (N H)", "self_attn.o_proj"),
      ("mlp/gating_einsum", "F D", "mlp.gate_proj", "mlp.up_proj"),
      ("mlp/linear", "D F", "mlp.down_proj"),
      ("pre_attention_norm", "D", "input_layernorm"),
    ),
  ),
)
# The same name is another norm in Gemma 1 and 2.
_NORMS_GEMMA1 = (("pre_ffw_norm", "D", "post_attention_layernorm"),)
_NORMS_GEMMA2 = (
  ("pre_ffw_norm", "D", "pre_feedforward_layernorm"),
  ("post_attention_norm", "D", "post_attention_layernorm"),
  ("post_ffw_norm", "D", "post_feedforward_layernorm"),
)
_MLP = (
  ("MlpBlock_0/Dense_0", "F D", "mlp.fc1"),
  ("MlpBlock_0/Dense_1", "D F", "mlp.fc2"),
)
_VIT_LAYER = (
  ("LayerNorm_0", "D", "layer_norm1"),
  ("LayerNorm_1", "D", "layer_norm2"),
  (f"{_MHA}/query", "(N H) D", _QKV[0]),
  (f"{_MHA}/key", "(N H) D", _QKV[1]),
  (f"{_MHA}/value", "(N H) D", _QKV[2]),
  (f"{_MHA}/out", "D (N H)", "self_attn.out_proj"),
  *_MLP,
)
_PATCHES = "vision.embeddings.patch_embedding"
_POSITIONS = "vision.embeddings.position_embedding"
_SQUARE = (
  ("img/embedding", "D C h w", _PATCHES),
  ("img/pos_embedding", "P D", _POSITIONS),
)
_NAFLEX = (
  ("img/embedding", "D Z", _PATCHES),
  ("img/pos_embedding", "(y x) D", _POSITIONS),
)
IMAGE_TOWER = (
  ("img/Transformer/encoder_norm", "D", "vision.post_layernorm"),
  *names.under(f"{LAYERS['img'][0]}/", "vision.encoder.layers.*.", _VIT_LAYER),
)
_POOLING = (
  ("img/MAPHead_0/probe", "1 1 D", "vision.head.probe"),
  *names.under(
    "img/MAPHead_0/",
    "vision.head.",
    (
      ("LayerNorm_0", "D", "layernorm"),
      (f"{_MHA}/query", "(N H) D", "attention.in_proj.q"),
      (f"{_MHA}/key", "(N H) D", "attention.in_proj.k"),
      (f"{_MHA}/value", "(N H) D", "attention.in_proj.v"),
      (f"{_MHA}/out", "D (N H)", "attention.out_proj"),
      *_MLP,
    ),
  ),
)
_TEXT_EMBEDDINGS = "text.embeddings"
TEXT_TOWER = (
  ("txt/Embed_0/embedding", "V D", f"{_TEXT_EMBEDDINGS}.token_embedding"),
  ("txt/pos_embedding", "T D", f"{_TEXT_EMBEDDINGS}.position_embedding"),
  ("txt/Encoder_0/encoder_norm", "D", "text.final_layer_norm"),
  ("txt/head", "E D", "text.head"),
  *names.under(f"{LAYERS['txt'][0]}/", "text.encoder.layers.*.", _VIT_LAYER),
)
_LOGITS = (("t", "1", "logit_scale"), ("b", "1", "logit_bias"))
# Spelled without ".weight".
_BARE = ("vision.head.probe", "logit_scale", "logit_bias")
PROJECTOR = (("img/head", "E M", "projector.linear"),)

TABLE = "text.embed_tokens.weight"

# As the files on the hub have them, and transformers 5.23 writes them but for
# "vision_model."; every release since 4.41 reads these.
_HUB_PREFIXES = {
  "text": "language_model.model",
  "vision": "vision_tower.vision_model",
  "projector": "multi_modal_projector",
}
# The modules of a model, likewise by the prefix of a key.
TOWERS = {x: name.partition(".")[0] for x, name in _HUB_PREFIXES.items()}

# Query, key and value of PyTorch's MultiheadAttention are one tensor.
_JOINED = re.compile(r"(.*attention\.in_proj)_(weight|bias)")
_PART = re.compile(r"(.*attention\.in_proj)\.([qkv])\.(weight|bias)")


def entries(
  img: Mapping[str, Any] | None,
  llm: Mapping[str, Any] | None,
  num_positions: int | None,
  txt: Mapping[str, Any] | None = None,
  pools: bool = False,
) -> list[Entry]:
  """The tensors of a PaliGemma, a SigLIP, or of a Gemma or image tower alone.

  Args:
    img: Fields of vit.Model, the sizes; None: no image tower.
    llm: Fields of gemma.Model, the sizes, and post_norms where it is True;
      None: no decoder, nor a projector.
    num_positions: Patches of an image; None for NaFlex.
    txt: Fields of text_tower.Model, the sizes; None: no SigLIP.
    pools: Whether an image tower alone has the pooling head of a SigLIP.
  """
  found = []
  if llm is not None:
    post_norms = llm.get("post_norms", False)
    norms = _NORMS_GEMMA2 if post_norms else _NORMS_GEMMA1
    table = DECODER + names.under(*_LAYERS, norms)
    sizes = names.letters("llm", llm)
    when = ["post_norms"] * post_norms
    found += names.entries(table, sizes, _spell, when=when)
  if img is not None:
    sizes = names.letters("img", img) | {"P": num_positions}
    stem, when = (_SQUARE, []) if num_positions else (_NAFLEX, ["naflex"])
    found += names.entries(stem + IMAGE_TOWER, sizes, _spell, when=when)
    if llm is not None:
      sizes["E"] = llm["width"]
      found += names.entries(PROJECTOR, sizes, _spell)
  if txt is not None or pools:
    found += names.entries(_POOLING, sizes, _spell, when=["map"])
  if txt is not None:
    sizes = names.letters("txt", txt)
    found += names.entries(TEXT_TOWER + _LOGITS, sizes, _spell)
  return found


def _spell(name, layer, is_bias):
  if name in _BARE:
    return name
  return f"{name.replace('*', str(layer))}.{'bias' if is_bias else 'weight'}"


def hub_key(key: str) -> str:
  """ "text.norm.weight" -> "language_model.model.norm.weight"."""
  prefix, _, rest = key.partition(".")
  return f"{_HUB_PREFIXES[prefix]}.{rest}"


def siglip_key(key: str) -> str:
  """ "text.head.weight" -> "text_model.head.weight"."""
  return re.sub(r"^(text|vision)\.", r"\1_model.", key)


def split_joined(tensors: Mapping[str, Mapped]) -> dict[str, Mapped]:
  """Takes query, key and value of the pooling head apart, see _PART."""
  found = {}
  for key, x in tensors.items():
    joined = _JOINED.fullmatch(key)
    if joined is None or not x.shape or x.shape[0] % 3:
      found[key] = x
      continue
    for i, part in enumerate("qkv"):
      found[f"{joined[1]}.{part}.{joined[2]}"] = dataclasses.replace(
        x,
        offset=x.offset + i * nbytes(x) // 3,
        shape=(x.shape[0] // 3, *x.shape[1:]),
      )
  return found


def joined_key(key: str) -> str:
  """ "attention.in_proj.q.weight" -> "attention.in_proj_weight"."""
  return _PART.sub(r"\1_\3", key)


def gemma_key(key: str) -> str:
  """ "text.norm.weight" -> "model.norm.weight", as of a Gemma alone."""
  return f"model.{key.removeprefix('text.')}"
