"""Writes the golden npz files with transformers, an independent PaliGemma.

Run by hand, never by the tests, in an environment of its own:

    pip install torch==2.13.0 transformers==5.23.0
    python tests/goldens/make_goldens.py

Each case is a tiny model with random weights, run in float64. What would hide
a mistake is avoided: norm scales are not zero (a wrong 1 + w would show), soft
caps are small enough to bend, `norm_eps` is large, dimensions are pairwise
different, the sliding window is shorter than an image.

The positions of transformers start at 1, ours at 0: RoPE is relative, so
nothing follows from it. Before version 5 it divided image features by
sqrt(width); now it does not.

An npz holds "config" (JSON, keyword arguments of vit.Model and gemma.Model),
the inputs "image", "text", "mask_ar", "input_mask", "mask_loss", the expected
"image_tokens", "logits", "loss" (of each example, the mean over its suffix) and
"grads/..." (of the batch's mean loss, for the weights of attention), and
"params/...", all under our names. Weights and images are rounded to float16
before use, hence exact at half the size.
"""

import json
import pathlib

import numpy as np
import torch
import transformers

FOLDER = pathlib.Path(__file__).parent
RES = 9
IMAGE_TOKENS = 9  # of each image
IMAGE_TOKEN_ID = 96  # the last one; never part of a text
PREFIX = (5, 3)  # tokens of each row, behind the images
SUFFIX = (6, 4)

VIT = {"patch_size": 3, "width": 15, "depth": 2, "mlp_dim": 23, "num_heads": 3}
GEMMA = {
  "width": 24,
  "depth": 3,
  "mlp_dim": 29,
  "num_heads": 3,
  "num_kv_heads": 1,
  "head_dim": 10,
  "vocab_size": 97,
  "norm_eps": 1e-2,
}
GEMMA2 = GEMMA | {
  "num_heads": 6,
  "num_kv_heads": 3,
  "post_norms": True,
  "attn_logits_softcap": 2.0,
}
WINDOW = {"final_logits_softcap": 3.0, "sliding_window": 5}
CASES = {
  "gemma": GEMMA,
  "gemma_multi_head": GEMMA | {"depth": 2, "num_kv_heads": 3},
  "gemma2_2b": GEMMA2 | WINDOW,
  "gemma2_27b": GEMMA2 | WINDOW | {"query_scale": "width_per_head"},
  "gemma2_as_in_paligemma2": GEMMA2 | {"depth": 2},  # by big_vision
  "two_images": GEMMA2 | WINDOW | {"depth": 2, "query_scale": 17},
}
FRAMES = {"two_images": 2}


def transformers_model(llm):
  """A PaliGemmaForConditionalGeneration of these sizes, in float64."""
  vision = transformers.SiglipVisionConfig(
    hidden_size=VIT["width"],
    intermediate_size=VIT["mlp_dim"],
    num_hidden_layers=VIT["depth"],
    num_attention_heads=VIT["num_heads"],
    image_size=RES,
    patch_size=VIT["patch_size"],
    vision_use_head=False,
  )
  sizes = {
    "vocab_size": llm["vocab_size"],
    "hidden_size": llm["width"],
    "intermediate_size": llm["mlp_dim"],
    "num_hidden_layers": llm["depth"],
    "num_attention_heads": llm["num_heads"],
    "num_key_value_heads": llm["num_kv_heads"],
    "head_dim": llm["head_dim"],
    "rms_norm_eps": llm["norm_eps"],
  }
  if llm.get("post_norms"):
    scale = {
      "head_dim": llm["head_dim"],
      "width_per_head": llm["width"] // llm["num_heads"],
    }
    by = llm.get("query_scale", "head_dim")
    window = llm.get("sliding_window")
    local = "full_attention" if window is None else "sliding_attention"
    text = transformers.Gemma2Config(
      **sizes,
      query_pre_attn_scalar=scale.get(by, by),
      attn_logit_softcapping=llm["attn_logits_softcap"],
      final_logit_softcapping=llm.get("final_logits_softcap"),
      sliding_window=window,
      layer_types=[
        "full_attention" if i % 2 else local for i in range(llm["depth"])
      ],
    )
  else:
    text = transformers.GemmaConfig(**sizes)
  config = transformers.PaliGemmaConfig(
    vision_config=vision,
    text_config=text,
    projection_dim=llm["width"],
    image_token_index=IMAGE_TOKEN_ID,
  )
  # The other implementations of attention ignore the soft cap.
  config._attn_implementation = "eager"
  return transformers.PaliGemmaForConditionalGeneration(config).double().eval()


def randomize(model, rng):
  """Gives every parameter a random value that float16 holds exactly."""
  for name, parameter in model.named_parameters():
    shape = tuple(parameter.shape)
    if "embed_tokens" in name or len(shape) == 1:
      scale = 0.3
    else:
      scale = 1.5 * np.prod(shape[1:]) ** -0.5
    value = (scale * rng.standard_normal(shape)).astype(np.float16)
    parameter.data = torch.from_numpy(value.astype(np.float64))


def image_params(state):
  """The image tower under big_vision's names and shapes, layers stacked."""
  tower = "model.vision_tower"
  heads, width = VIT["num_heads"], VIT["width"]

  def layers(name, convert=lambda x: x):
    names = (f"{tower}.encoder.layers.{i}.{name}" for i in range(VIT["depth"]))
    return np.stack([convert(state[name]) for name in names])

  block = "img/Transformer/encoderblock"
  attn = f"{block}/MultiHeadDotProductAttention_0"
  kernel = state[f"{tower}.embeddings.patch_embedding.weight"]
  positions = state[f"{tower}.embeddings.position_embedding.weight"]
  params = {
    "img/embedding/kernel": kernel.transpose(2, 3, 1, 0),
    "img/embedding/bias": state[f"{tower}.embeddings.patch_embedding.bias"],
    "img/pos_embedding": positions[None],
    "img/Transformer/encoder_norm/scale": state[
      f"{tower}.post_layernorm.weight"
    ],
    "img/Transformer/encoder_norm/bias": state[f"{tower}.post_layernorm.bias"],
    "img/head/kernel": state["model.multi_modal_projector.linear.weight"].T,
    "img/head/bias": state["model.multi_modal_projector.linear.bias"],
    f"{attn}/out/kernel": layers(
      "self_attn.out_proj.weight", lambda x: x.T.reshape(heads, -1, width)
    ),
    f"{attn}/out/bias": layers("self_attn.out_proj.bias"),
  }
  for name in ("query", "key", "value"):
    theirs = f"self_attn.{name[0]}_proj"
    params[f"{attn}/{name}/kernel"] = layers(
      f"{theirs}.weight", lambda x: x.T.reshape(width, heads, -1)
    )
    params[f"{attn}/{name}/bias"] = layers(
      f"{theirs}.bias", lambda x: x.reshape(heads, -1)
    )
  for i in range(2):
    norm, dense = f"{block}/LayerNorm_{i}", f"{block}/MlpBlock_0/Dense_{i}"
    params[f"{norm}/scale"] = layers(f"layer_norm{i + 1}.weight")
    params[f"{norm}/bias"] = layers(f"layer_norm{i + 1}.bias")
    params[f"{dense}/kernel"] = layers(f"mlp.fc{i + 1}.weight", np.transpose)
    params[f"{dense}/bias"] = layers(f"mlp.fc{i + 1}.bias")
  return params


def text_params(state, llm):
  """The decoder under big_vision's names and shapes, layers stacked."""
  decoder = "model.language_model"
  head_dim = llm["head_dim"]

  def layers(name, convert=lambda x: x):
    names = (f"{decoder}.layers.{i}.{name}.weight" for i in range(llm["depth"]))
    return np.stack([convert(state[name]) for name in names])

  def heads(name):  # (N * H, D) -> (N, D, H)
    return layers(
      f"self_attn.{name}_proj",
      lambda x: x.reshape(-1, head_dim, x.shape[1]).transpose(0, 2, 1),
    )

  gate = layers("mlp.gate_proj", np.transpose)
  up = layers("mlp.up_proj", np.transpose)
  params = {
    "llm/embedder/input_embedding": state[f"{decoder}.embed_tokens.weight"],
    "llm/final_norm/scale": state[f"{decoder}.norm.weight"],
    "llm/layers/attn/attn_vec_einsum/w": layers(
      "self_attn.o_proj", lambda x: x.T.reshape(-1, head_dim, x.shape[0])
    ),
    "llm/layers/mlp/gating_einsum": np.stack([gate, up], axis=1),
    "llm/layers/mlp/linear": layers("mlp.down_proj", np.transpose),
    "llm/layers/pre_attention_norm/scale": layers("input_layernorm"),
  }
  q, k, v = heads("q"), heads("k"), heads("v")
  if llm["num_heads"] == llm["num_kv_heads"]:
    params["llm/layers/attn/qkv_einsum/w"] = np.stack([q, k, v], axis=1)
  else:
    params["llm/layers/attn/q_einsum/w"] = q
    params["llm/layers/attn/kv_einsum/w"] = np.stack([k, v], axis=1)
  if llm.get("post_norms"):
    norms = {
      "post_attention_norm": "post_attention_layernorm",
      "pre_ffw_norm": "pre_feedforward_layernorm",
      "post_ffw_norm": "post_feedforward_layernorm",
    }
  else:
    norms = {"pre_ffw_norm": "post_attention_layernorm"}
  for ours, theirs in norms.items():
    params[f"llm/layers/{ours}/scale"] = layers(theirs)
  return params


def make_inputs(rng, frames):
  """Images, texts and masks: row 0 is full, row 1 is padded on the right."""
  shape = (2, RES, RES, 3) if frames is None else (2, frames, RES, RES, 3)
  image = rng.uniform(-1, 1, shape).astype(np.float16)
  text_len = PREFIX[0] + SUFFIX[0]
  text = rng.integers(3, IMAGE_TOKEN_ID, (2, text_len), dtype=np.int32)
  position = np.arange(text_len)
  prefix, suffix = np.array(PREFIX)[:, None], np.array(SUFFIX)[:, None]
  input_mask = position < prefix + suffix
  return {
    "image": image,
    "text": text,
    "mask_ar": (position >= prefix).astype(np.int32),
    "input_mask": input_mask,
    "mask_loss": input_mask & (position >= prefix),
  }


def run(model, inputs):
  """Image tokens float[B, L, D], text logits float[B, T, V] and loss[B].

  The gradients of the mean loss are left in the parameters.
  """
  pixels = inputs["image"].astype(np.float64)
  pixels = pixels.reshape(-1, RES, RES, 3).transpose(0, 3, 1, 2)
  image_len = len(pixels) // 2 * IMAGE_TOKENS
  image_ids = np.full((2, image_len), IMAGE_TOKEN_ID)
  ids = np.concatenate([image_ids, inputs["text"]], axis=1)
  pad_left = [(0, 0), (image_len, 0)]
  outputs = model(
    input_ids=torch.from_numpy(ids).long(),
    pixel_values=torch.from_numpy(pixels),
    attention_mask=torch.from_numpy(
      np.pad(inputs["input_mask"], pad_left, constant_values=True)
    ).long(),
    token_type_ids=torch.from_numpy(np.pad(inputs["mask_ar"], pad_left)).long(),
  )
  logits = outputs.logits[:, image_len:]
  targets = torch.from_numpy(inputs["text"][:, 1:]).long()
  losses = torch.nn.functional.cross_entropy(
    logits[:, :-1].transpose(1, 2), targets, reduction="none"
  )
  mask_loss = torch.from_numpy(inputs["mask_loss"][:, 1:])
  loss = (losses * mask_loss).sum(dim=1) / mask_loss.sum(dim=1)
  loss.mean().backward()
  image_tokens = outputs.image_hidden_states
  results = {
    "image_tokens": image_tokens.reshape(2, image_len, -1),
    "logits": logits,
    "loss": loss,
  }
  return {
    name: value.detach().numpy().astype(np.float32)
    for name, value in results.items()
  }


def main():
  for seed, (case, llm) in enumerate(CASES.items()):
    rng = np.random.default_rng(seed)
    model = transformers_model(llm)
    randomize(model, rng)
    state = {
      name: value.numpy().astype(np.float16)
      for name, value in model.state_dict().items()
    }
    params = image_params(state) | text_params(state, llm)
    inputs = make_inputs(rng, FRAMES.get(case))
    outputs = run(model, inputs)
    # A gradient has the axes of its weight: the same mapping names it.
    slopes = {
      name: parameter.grad.numpy().astype(np.float32)
      for name, parameter in model.named_parameters()
    }
    grads = text_params(slopes, llm)
    np.savez_compressed(
      FOLDER / f"{case}.npz",
      config=json.dumps({"img": VIT, "llm": llm}),
      **inputs,
      **outputs,
      **{f"params/{name}": value for name, value in params.items()},
      **{
        f"grads/{name}": value
        for name, value in grads.items()
        if "/attn/" in name
      },
    )


if __name__ == "__main__":
  main()
