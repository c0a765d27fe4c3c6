"""Each tensor of transformers' PaliGemma, and where it lies in our leaves.

Keys are written without the prefixes in which releases of transformers differ:
"text.", "vision." and "projector." (see read.py). A linear layer of PyTorch
keeps its weight as (out, in), and heads as one axis (N H).

Source: transformers 5.23, models/{gemma,gemma2,siglip,paligemma}/modeling_*.py.
Both sides keep the difference to one as the scale of a norm.
"""

from collections.abc import Mapping
from typing import Any

from paligemma.checkpoints import names
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
IMAGE_TOWER = (
  ("img/embedding", "D C h w", "vision.embeddings.patch_embedding"),
  ("img/pos_embedding", "P D", "vision.embeddings.position_embedding"),
  ("img/Transformer/encoder_norm", "D", "vision.post_layernorm"),
  *names.under(
    f"{LAYERS['img'][0]}/",
    "vision.encoder.layers.*.",
    (
      ("LayerNorm_0", "D", "layer_norm1"),
      ("LayerNorm_1", "D", "layer_norm2"),
      (f"{_MHA}/query", "(N H) D", _QKV[0]),
      (f"{_MHA}/key", "(N H) D", _QKV[1]),
      (f"{_MHA}/value", "(N H) D", _QKV[2]),
      (f"{_MHA}/out", "D (N H)", "self_attn.out_proj"),
      ("MlpBlock_0/Dense_0", "F D", "mlp.fc1"),
      ("MlpBlock_0/Dense_1", "D F", "mlp.fc2"),
    ),
  ),
)
PROJECTOR = (("img/head", "E M", "projector.linear"),)

TABLE = "text.embed_tokens.weight"

# As the files on the hub have them, and transformers 5.23 writes them but for
# "vision_model."; every release since 4.41 reads these.
_HUB_PREFIXES = {
  "text": "language_model.model",
  "vision": "vision_tower.vision_model",
  "projector": "multi_modal_projector",
}


def entries(
  img: Mapping[str, Any] | None,
  llm: Mapping[str, Any] | None,
  num_positions: int | None,
) -> list[Entry]:
  """The tensors of a PaliGemma, of a Gemma alone, or of SigLIP's image tower.

  Args:
    img: Fields of vit.Model, the sizes; None: no image tower.
    llm: Fields of gemma.Model, the sizes, and post_norms where it is True;
      None: no decoder, nor a projector.
    num_positions: Patches of an image.
  """
  found = []
  if llm is not None:
    post_norms = llm.get("post_norms", False)
    norms = _NORMS_GEMMA2 if post_norms else _NORMS_GEMMA1
    table = DECODER + names.under(*_LAYERS, norms)
    sizes = names.letters("llm", llm)
    found += names.entries(table, sizes, _spell, post_norms=post_norms)
  if img is not None:
    sizes = names.letters("img", img) | {"P": num_positions}
    found += names.entries(IMAGE_TOWER, sizes, _spell)
    if llm is not None:
      sizes["E"] = llm["width"]
      found += names.entries(PROJECTOR, sizes, _spell)
  return found


def _spell(name, layer, is_bias):
  return f"{name.replace('*', str(layer))}.{'bias' if is_bias else 'weight'}"


def hub_key(key: str) -> str:
  """ "text.norm.weight" -> "language_model.model.norm.weight"."""
  prefix, _, rest = key.partition(".")
  return f"{_HUB_PREFIXES[prefix]}.{rest}"


def gemma_key(key: str) -> str:
  """ "text.norm.weight" -> "model.norm.weight", as of a Gemma alone."""
  return f"model.{key.removeprefix('text.')}"
