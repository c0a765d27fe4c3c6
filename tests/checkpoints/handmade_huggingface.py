"""Directories as transformers writes them, made by hand, with our leaves.

Independent of the package: every transposition is written out.
"""

import json

import numpy as np
import safetensors.numpy

# Pairwise different sizes.
WIDTH, DEPTH, MLP, HEAD_DIM = 15, 2, 11, 4
IMG_WIDTH, IMG_DEPTH, IMG_MLP, IMG_HEADS = 14, 3, 13, 7
PATCH, POSITIONS = 5, 4
ROWS, IMAGE_TOKEN = 128, 97

VISION = {
  "hidden_size": IMG_WIDTH,
  "image_size": 2 * PATCH,
  "intermediate_size": IMG_MLP,
  "model_type": "siglip_vision_model",
  "num_attention_heads": IMG_HEADS,
  "num_hidden_layers": IMG_DEPTH,
  "patch_size": PATCH,
  "projection_dim": WIDTH,
  "projector_hidden_act": "gelu_fast",
  "vision_use_head": False,
}


def text_config(heads, kv_heads, model_type="gemma", **more):
  return {
    "head_dim": HEAD_DIM,
    "hidden_size": WIDTH,
    "intermediate_size": MLP,
    "model_type": model_type,
    "num_attention_heads": heads,
    "num_hidden_layers": DEPTH,
    "num_key_value_heads": kv_heads,
    "vocab_size": ROWS,
    **more,
  }


def paligemma_config(text, **more):
  return {
    "image_token_index": IMAGE_TOKEN,
    "model_type": "paligemma",
    "text_config": text,
    "vision_config": VISION,
    **more,
  }


class Draw:
  """Draws tensors in the shape of PyTorch, and notes them."""

  def __init__(self, seed=0):
    self.rng = np.random.default_rng(seed)
    self.tensors = {}

  def __call__(self, key, *shape):
    array = self.rng.normal(size=shape).astype(np.float32)
    self.tensors[key] = array
    return array


def draw_text(draw, heads, kv_heads, gemma2):
  """Draws a decoder; returns what its leaves are, written out."""
  text = "language_model.model"
  table = draw(f"{text}.embed_tokens.weight", ROWS, WIDTH)
  leaves = {"llm/embedder/input_embedding": table}
  leaves["llm/final_norm/scale"] = draw(f"{text}.norm.weight", WIDTH)
  layers = {}

  def add(name, array):
    layers.setdefault(f"llm/layers/{name}", []).append(array)

  for i in range(DEPTH):
    at = f"{text}.layers.{i}"
    q = draw(f"{at}.self_attn.q_proj.weight", heads * HEAD_DIM, WIDTH)
    k = draw(f"{at}.self_attn.k_proj.weight", kv_heads * HEAD_DIM, WIDTH)
    v = draw(f"{at}.self_attn.v_proj.weight", kv_heads * HEAD_DIM, WIDTH)
    o = draw(f"{at}.self_attn.o_proj.weight", WIDTH, heads * HEAD_DIM)

    def per_head(w):  # rows of one head after the other -> [heads, D, H]
      return np.stack([x.T for x in np.split(w, len(w) // HEAD_DIM)])

    if heads == kv_heads:
      add("attn/qkv_einsum/w", np.stack([per_head(x) for x in (q, k, v)]))
    else:
      add("attn/q_einsum/w", per_head(q))
      add("attn/kv_einsum/w", np.stack([per_head(k), per_head(v)]))
    add("attn/attn_vec_einsum/w", np.stack(np.split(o.T, heads)))
    gate = draw(f"{at}.mlp.gate_proj.weight", MLP, WIDTH)
    up = draw(f"{at}.mlp.up_proj.weight", MLP, WIDTH)
    add("mlp/gating_einsum", np.stack([gate.T, up.T]))
    add("mlp/linear", draw(f"{at}.mlp.down_proj.weight", WIDTH, MLP).T)
    norms = {"input_layernorm": "pre_attention_norm"}
    if gemma2:
      norms["post_attention_layernorm"] = "post_attention_norm"
      norms["pre_feedforward_layernorm"] = "pre_ffw_norm"
      norms["post_feedforward_layernorm"] = "post_ffw_norm"
    else:
      norms["post_attention_layernorm"] = "pre_ffw_norm"
    for theirs, ours in norms.items():
      add(f"{ours}/scale", draw(f"{at}.{theirs}.weight", WIDTH))
  return leaves | {name: np.stack(x) for name, x in layers.items()}


def draw_image_tower(draw):
  vision = "vision_tower.vision_model"
  patches = f"{vision}.embeddings.patch_embedding"
  kernel = draw(f"{patches}.weight", IMG_WIDTH, 3, PATCH, PATCH)
  positions = f"{vision}.embeddings.position_embedding.weight"
  norm = f"{vision}.post_layernorm"
  leaves = {
    "img/embedding/kernel": np.einsum("dcij->ijcd", kernel),
    "img/embedding/bias": draw(f"{patches}.bias", IMG_WIDTH),
    "img/pos_embedding": draw(positions, POSITIONS, IMG_WIDTH)[None],
    "img/Transformer/encoder_norm/scale": draw(f"{norm}.weight", IMG_WIDTH),
    "img/Transformer/encoder_norm/bias": draw(f"{norm}.bias", IMG_WIDTH),
  }
  layers = {}

  def add(name, array):
    name = f"img/Transformer/encoderblock/{name}"
    layers.setdefault(name, []).append(array)

  for i in range(IMG_DEPTH):
    at = f"{vision}.encoder.layers.{i}"
    for j in (0, 1):
      norm = f"{at}.layer_norm{j + 1}"
      add(f"LayerNorm_{j}/scale", draw(f"{norm}.weight", IMG_WIDTH))
      add(f"LayerNorm_{j}/bias", draw(f"{norm}.bias", IMG_WIDTH))
    mha, heads = "MultiHeadDotProductAttention_0", (IMG_HEADS, 2)
    for theirs, ours in {"q": "query", "k": "key", "v": "value"}.items():
      linear = f"{at}.self_attn.{theirs}_proj"
      w = draw(f"{linear}.weight", IMG_WIDTH, IMG_WIDTH)
      add(f"{mha}/{ours}/kernel", w.T.reshape(IMG_WIDTH, *heads))
      add(
        f"{mha}/{ours}/bias", draw(f"{linear}.bias", IMG_WIDTH).reshape(heads)
      )
    linear = f"{at}.self_attn.out_proj"
    w = draw(f"{linear}.weight", IMG_WIDTH, IMG_WIDTH)
    add(f"{mha}/out/kernel", w.T.reshape(*heads, IMG_WIDTH))
    add(f"{mha}/out/bias", draw(f"{linear}.bias", IMG_WIDTH))
    for j, (n, m) in enumerate([(IMG_MLP, IMG_WIDTH), (IMG_WIDTH, IMG_MLP)]):
      w = draw(f"{at}.mlp.fc{j + 1}.weight", n, m)
      add(f"MlpBlock_0/Dense_{j}/kernel", w.T)
      add(f"MlpBlock_0/Dense_{j}/bias", draw(f"{at}.mlp.fc{j + 1}.bias", n))
  return leaves | {name: np.stack(x) for name, x in layers.items()}


def draw_paligemma(heads=3, kv_heads=1, gemma2=False):
  """Returns key -> tensor in the hub's layout, and name -> leaf."""
  draw = Draw()
  leaves = draw_text(draw, heads, kv_heads, gemma2) | draw_image_tower(draw)
  linear = "multi_modal_projector.linear"
  leaves["img/head/kernel"] = draw(f"{linear}.weight", WIDTH, IMG_WIDTH).T
  leaves["img/head/bias"] = draw(f"{linear}.bias", WIDTH)
  table = "llm/embedder/input_embedding"
  leaves[table] = leaves[table][:IMAGE_TOKEN]
  return draw.tensors, leaves


def write(path, config, tensors):
  path.mkdir(exist_ok=True)
  (path / "config.json").write_text(json.dumps(config))
  safetensors.numpy.save_file(
    {key: np.ascontiguousarray(x) for key, x in tensors.items()},
    path / "model.safetensors",
    {"format": "pt"},
  )
  return path


def assert_leaves(found, expected):
  assert found.keys() == expected.keys()
  for name, array in expected.items():
    assert found[name].shape == array.shape, name
    np.testing.assert_array_equal(found[name].read(), array, err_msg=name)
