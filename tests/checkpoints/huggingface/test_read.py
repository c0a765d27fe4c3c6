"""Directories as transformers writes them, made by hand, against our leaves."""

import json
import re

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from paligemma.checkpoints import infer
from paligemma.checkpoints.huggingface import read as huggingface
from tests.checkpoints.handmade_huggingface import (
  IMAGE_TOKEN,
  IMG_HEADS,
  IMG_MLP,
  IMG_WIDTH,
  ROWS,
  VISION,
  WIDTH,
  Draw,
  assert_leaves,
  draw_image_tower,
  draw_paligemma,
  draw_text,
  paligemma_config,
  text_config,
  write,
)


@pytest.fixture
def gemma1(tmp_path):
  """A PaliGemma 1 with a config as sparse as the official ones."""
  tensors, _ = draw_paligemma()
  return write(tmp_path / "hf", paligemma_config(text_config(3, 1)), tensors)


def change(path, update, section=None):
  """Changes config.json; a value of ... removes the key."""
  config = json.loads((path / "config.json").read_text())
  part = config if section is None else config[section]
  for key, value in update.items():
    part.pop(key, None)
    if value is not ...:
      part[key] = value
  (path / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
  ("heads", "kv_heads", "gemma2"),
  [(3, 1, False), (3, 3, False), (6, 2, True), (2, 2, True)],
)
def test_leaves_are_big_visions(tmp_path, heads, kv_heads, gemma2):
  tensors, leaves = draw_paligemma(heads, kv_heads, gemma2)
  text = text_config(heads, kv_heads, "gemma2" if gemma2 else "gemma")
  found = huggingface.open(write(tmp_path, paligemma_config(text), tensors))
  assert_leaves(found.leaves, leaves)
  assert found.format == "Hugging Face"
  assert found.ignored == ()
  assert "image_token_id" not in found.metadata
  sizes = infer.sizes(found.leaves)
  assert (sizes["img"]["res"], sizes["llm"]["vocab_size"]) == (10, IMAGE_TOKEN)


HUB_TO = {
  "4.52": [
    ("language_model.model.", "model.language_model."),
    ("vision_tower.", "model.vision_tower."),
    ("multi_modal_projector.", "model.multi_modal_projector."),
  ],
  "5.x in memory": [
    ("language_model.model.", "model.language_model."),
    ("vision_tower.vision_model.", "model.vision_tower."),
    ("multi_modal_projector.", "model.multi_modal_projector."),
  ],
  "5.x": [("vision_tower.vision_model.", "vision_tower.")],
}


@pytest.mark.parametrize("release", HUB_TO)
@pytest.mark.parametrize("lm_head", ["lm_head", "language_model.lm_head", None])
def test_every_release_names_the_same(tmp_path, release, lm_head):
  hub, leaves = draw_paligemma()
  tensors = {}
  for key, array in hub.items():
    for before, after in HUB_TO[release]:
      if key.startswith(before):
        key = after + key.removeprefix(before)
        break
    tensors[key] = array
  ignored = []
  if lm_head is not None:
    table = hub["language_model.model.embed_tokens.weight"]
    tensors[f"{lm_head}.weight"] = table.copy()
    ignored.append(f"{lm_head}.weight")
  path = write(tmp_path, paligemma_config(text_config(3, 1)), tensors)
  found = huggingface.open(path)
  assert_leaves(found.leaves, leaves)
  assert list(found.ignored) == ignored


def test_buffers_and_the_pooling_head_are_ignored(gemma1):
  tensors, leaves = draw_paligemma()
  vision = "vision_tower.vision_model"
  extra = {
    f"{vision}.embeddings.position_ids": np.arange(4)[None],
    f"{vision}.head.probe": np.ones((1, 1, IMG_WIDTH), np.float32),
    "language_model.model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(2),
  }
  write(gemma1, paligemma_config(text_config(3, 1)), tensors | extra)
  found = huggingface.open(gemma1)
  assert_leaves(found.leaves, leaves)
  assert list(found.ignored) == sorted(extra)


@pytest.mark.parametrize("dtype", ["float16", "float64", ml_dtypes.bfloat16])
def test_dtypes_are_kept(tmp_path, dtype):
  tensors, leaves = draw_paligemma()
  tensors = {key: x.astype(dtype) for key, x in tensors.items()}
  path = write(tmp_path, paligemma_config(text_config(3, 1)), tensors)
  found = huggingface.open(path).leaves
  assert {leaf.dtype for leaf in found.values()} == {np.dtype(dtype)}
  assert_leaves(found, {name: x.astype(dtype) for name, x in leaves.items()})


@pytest.mark.parametrize("other", ["float32", "float16"])
def test_mixed_dtypes_within_a_leaf_lose_nothing(gemma1, other):
  tensors, leaves = draw_paligemma()
  tensors = {key: x.astype(other) for key, x in tensors.items()}
  key = "language_model.model.layers.1.self_attn.v_proj.weight"
  tensors[key] = tensors[key].astype(ml_dtypes.bfloat16)
  write(gemma1, paligemma_config(text_config(3, 1)), tensors)
  name = "llm/layers/attn/kv_einsum/w"
  expected = leaves[name].astype(other).astype(np.float32)
  expected[1, 1] = expected[1, 1].astype(ml_dtypes.bfloat16)
  found = huggingface.open(gemma1).leaves[name]
  assert found.dtype == np.float32
  np.testing.assert_array_equal(found.read(), expected)
  part = found.read(index=(slice(1, 2), *4 * (slice(None),)))
  np.testing.assert_array_equal(part, expected[1:])


def write_shards(path):
  """Splits model.safetensors in two; returns the index."""
  tensors = safetensors.numpy.load_file(path / "model.safetensors")
  (path / "model.safetensors").unlink()
  weight_map = {}
  for i, key in enumerate(tensors):
    weight_map[key] = f"model-0000{1 + i % 2}-of-00002.safetensors"
  for file in set(weight_map.values()):
    part = {k: x for k, x in tensors.items() if weight_map[k] == file}
    safetensors.numpy.save_file(part, path / file)
  index = {"metadata": {}, "weight_map": weight_map}
  (path / "model.safetensors.index.json").write_text(json.dumps(index))
  return index


def test_shards(gemma1):
  write_shards(gemma1)
  assert_leaves(huggingface.open(gemma1).leaves, draw_paligemma()[1])


def refused(path, match):
  with pytest.raises(ValueError, match=match) as error:
    huggingface.open(path)
  assert "\n" not in str(error.value)
  assert str(path) in str(error.value)


def test_shards_must_agree_with_their_index(gemma1):
  index = write_shards(gemma1)
  file = gemma1 / "model.safetensors.index.json"
  key = "multi_modal_projector.linear.bias"

  def rewrite(**changes):
    weight_map = {**index["weight_map"], **changes}
    weight_map = {k: v for k, v in weight_map.items() if v is not ...}
    file.write_text(json.dumps({"weight_map": weight_map}))

  rewrite(**{key: ...})
  refused(gemma1, f"00-?.*1 tensors differ: '{key}' is in the file alone")
  rewrite(more="model-00001-of-00002.safetensors")
  refused(gemma1, r"differ: 'more' is in model.safetensors.index.json alone")
  rewrite(more="model-00003-of-00003.safetensors")
  refused(gemma1, "model-00003-of-00003.safetensors: No such file")
  rewrite(more="../model.safetensors")
  refused(gemma1, r"'more' is in '../model.safetensors', expected a file name")
  rewrite(more=3)
  refused(gemma1, "'more' is in 3, expected a file name")
  file.write_text("{}")
  refused(gemma1, "index.json: no weight_map")
  file.write_text("{")
  refused(gemma1, "index.json: is no JSON")
  file.unlink()
  refused(gemma1, "holds model-00001.* without model.safetensors.index.json")


def test_one_file_and_shards_at_once_are_refused(gemma1):
  (gemma1 / "model.safetensors.index.json").write_text("{}")
  refused(gemma1, "holds model.safetensors and model.*json, remove one")


def test_pickles_are_never_read(gemma1):
  (gemma1 / "model.safetensors").unlink()
  refused(gemma1, "holds no weights, expected model.safetensors or")
  (gemma1 / "pytorch_model.bin").write_bytes(b"x")
  refused(gemma1, r"pytorch_model.bin: pickled .* safe_serialization=True")


def test_a_missing_directory_and_bad_config_are_refused(tmp_path, gemma1):
  refused(tmp_path / "none", "no such directory")
  refused(gemma1 / "config.json", "no such directory")
  for content, match in {
    "{": "config.json: is no JSON",
    "[" * 100_000: "config.json: is no JSON",
    "[]": "config.json: is no JSON object",
    "{}": "model_type is None, expected one of: gemma, gemma2, paligemma",
    '{"model_type": ["gemma"]}': r"model_type is \['gemma'\], expected one of",
    '{"model_type": "paligema"}': 'Did you mean "paligemma"',
  }.items():
    (gemma1 / "config.json").write_text(content)
    refused(gemma1, match)
  (gemma1 / "config.json").unlink()
  refused(gemma1, "config.json: No such file")


def test_leftovers_gaps_and_shapes_are_listed_at_once(gemma1):
  tensors, _ = draw_paligemma()
  norm = "language_model.model.norm.weight"
  tensors["language_model.model.norm.wait"] = tensors.pop(norm)
  up = "language_model.model.layers.1.mlp.up_proj.weight"
  tensors[up] = tensors[up].T
  tensors["multi_modal_projector.linear.bias"] = np.zeros(WIDTH, np.int32)
  write(gemma1, paligemma_config(text_config(3, 1)), tensors)
  with pytest.raises(ValueError, match="4 differ") as error:
    huggingface.open(gemma1)
  for line in (
    f"{norm}: missing, expected (15,)",
    f'norm.wait: unexpected, found (15,). Did you mean "{norm}"?',
    f"{up}: found shape (15, 11), expected (11, 15)",
    "multi_modal_projector.linear.bias: dtype int32, expected a float",
  ):
    assert line in str(error.value)


def test_a_long_list_of_differences_is_cut(gemma1):
  change(gemma1, {"hidden_size": 17}, "text_config")
  refused(gemma1, r"22 differ: (.*; ){10}and 12 more$")


def test_two_names_of_one_parameter_are_refused(gemma1):
  tensors, _ = draw_paligemma()
  tensors["model.language_model.norm.weight"] = np.ones(WIDTH, np.float32)
  write(gemma1, paligemma_config(text_config(3, 1)), tensors)
  refused(gemma1, "norm.weight and .*norm.weight are one parameter")


def test_an_untied_head_is_refused(gemma1):
  tensors, _ = draw_paligemma()
  table = tensors["language_model.model.embed_tokens.weight"]
  for head in (
    table + (table == table[-1, -1]),
    table[:-1],
    table.astype("f2"),
  ):
    tensors["lm_head.weight"] = head
    write(gemma1, paligemma_config(text_config(3, 1)), tensors)
    refused(gemma1, "lm_head.weight differs from embed_tokens.weight")
  tensors["lm_head.weight"] = table.copy()
  for section in (None, "text_config"):
    write(gemma1, paligemma_config(text_config(3, 1)), tensors)
    change(gemma1, {"tie_word_embeddings": False}, section)
    huggingface.open(gemma1)
  del tensors["lm_head.weight"]
  for section in (None, "text_config"):
    write(gemma1, paligemma_config(text_config(3, 1)), tensors)
    change(gemma1, {"tie_word_embeddings": False}, section)
    refused(gemma1, "tie_word_embeddings is false")


@pytest.mark.parametrize("image_token", [97, 127, 64])
def test_padding_of_the_vocabulary_is_cut(gemma1, image_token):
  change(gemma1, {"image_token_index": image_token})
  found = huggingface.open(gemma1)
  table = draw_paligemma()[0]["language_model.model.embed_tokens.weight"]
  np.testing.assert_array_equal(
    found.leaves["llm/embedder/input_embedding"].read(), table[:image_token]
  )
  assert "image_token_id" not in found.metadata


@pytest.mark.parametrize(
  ("name", "content"),
  [
    ("added_tokens", {"<image>": 97, "<mine>": 98}),
    ("tokenizer_config", {"added_tokens_decoder": {"97": {}, "98": {}}}),
    ("tokenizer", {"added_tokens": [{"id": 97}, {"id": 98}]}),
  ],
)
def test_tokens_behind_the_image_token_keep_their_rows(gemma1, name, content):
  file = gemma1 / f"{name}.json"
  file.write_text(json.dumps(content).replace("98", "97"))
  found = huggingface.open(gemma1)
  assert found.leaves["llm/embedder/input_embedding"].shape[0] == IMAGE_TOKEN
  file.write_text(json.dumps(content))
  found = huggingface.open(gemma1)
  assert found.leaves["llm/embedder/input_embedding"].shape[0] == ROWS
  assert found.metadata["image_token_id"] == IMAGE_TOKEN


@pytest.mark.parametrize("image_token", [63, 128, 1000])
def test_rows_that_are_no_padding_stay(gemma1, image_token):
  change(gemma1, {"image_token_index": ..., "image_token_id": image_token})
  found = huggingface.open(gemma1)
  assert found.leaves["llm/embedder/input_embedding"].shape[0] == ROWS
  assert found.metadata["image_token_id"] == image_token


def test_image_token_is_256000_by_default_and_has_one_id(gemma1):
  change(gemma1, {"image_token_index": ...})
  metadata = huggingface.open(gemma1).metadata
  assert metadata["image_token_id"] == 256_000
  change(gemma1, {"image_token_index": 97, "image_token_id": 98})
  refused(gemma1, "image_token_id is 98, expected that of image_token_index")


GEMMA1 = {
  "norm_eps": 1e-6,
  "query_scale": "head_dim",
  "post_norms": False,
  "attn_logits_softcap": None,
  "final_logits_softcap": None,
  "sliding_window": None,
}
GEMMA2 = {
  "norm_eps": 1e-6,
  "query_scale": 256,
  "post_norms": True,
  "attn_logits_softcap": 50.0,
  "final_logits_softcap": 30.0,
  "sliding_window": 4096,
}
FULL, SLIDING = "full_attention", "sliding_attention"
ROPE = {"rope_theta": 10_000.0, "rope_type": "default"}


@pytest.mark.parametrize(
  ("config", "fields"),
  [
    ({}, {}),
    ({"hidden_act": "gelu", "hidden_activation": None}, {}),
    ({"rms_norm_eps": 1e-5, "rope_theta": 10000, "rope_scaling": None},
     {"norm_eps": 1e-5}),
    ({"rope_parameters": ROPE, "attention_bias": False}, {}),
  ],
)  # fmt: skip
def test_fields_of_gemma1(gemma1, config, fields):
  change(gemma1, config, "text_config")
  assert huggingface.open(gemma1).llm == {**GEMMA1, **fields}


@pytest.fixture
def gemma2(tmp_path):
  tensors, _ = draw_paligemma(3, 1, gemma2=True)
  text = text_config(3, 1, "gemma2")
  return write(tmp_path / "hf", paligemma_config(text), tensors)


@pytest.mark.parametrize(
  ("config", "fields"),
  [
    ({}, {}),
    ({"query_pre_attn_scalar": 4}, {"query_scale": "head_dim"}),
    ({"query_pre_attn_scalar": 5}, {"query_scale": "width_per_head"}),
    ({"query_pre_attn_scalar": 6.5}, {"query_scale": 6.5}),
    ({"attn_logit_softcapping": None, "final_logit_softcapping": 7},
     {"attn_logits_softcap": None, "final_logits_softcap": 7.0}),
    ({"sliding_window": 3}, {"sliding_window": 3}),
    ({"sliding_window": None}, {"sliding_window": None}),
    ({"layer_types": [FULL, FULL]}, {"sliding_window": None}),
    ({"layer_types": [SLIDING, FULL], "sliding_window": 3},
     {"sliding_window": 3}),
    ({"layer_types": None, "rope_parameters": ROPE}, {}),
  ],
)  # fmt: skip
def test_fields_of_gemma2(gemma2, config, fields):
  change(gemma2, config, "text_config")
  assert huggingface.open(gemma2).llm == {**GEMMA2, **fields}


REFUSED = {
  "hidden_activation": (
    "text_config",
    "gelu",
    "'gelu_pytorch_tanh', our models",
  ),
  "rope_theta": ("text_config", 500_000.0, "10000.0, our models"),
  "rope_scaling": ("text_config", {"type": "linear", "factor": 2}, "RoPE"),
  "rope_parameters": ("text_config", {**ROPE, "rope_theta": 1e6}, "RoPE"),
  "attention_bias": ("text_config", True, "False, our models"),
  "layer_types": ("text_config", [FULL, SLIDING], "full_attention in all 2"),
  "sliding_window": ("text_config", -1, "a positive integer"),
  "query_pre_attn_scalar": ("text_config", 0, "a positive number"),
  "attn_logit_softcapping": ("text_config", "x", "a positive number"),
  "num_hidden_layers": ("text_config", True, "a positive integer"),
  "num_key_value_heads": ("text_config", 2, "a divisor of 3 heads"),
  "layer_norm_eps": ("vision_config", 1e-5, "1e-06, our models"),
  "hidden_act": ("vision_config", "quick_gelu", "'gelu_pytorch_tanh'"),
  "patch_size": ("vision_config", [5, 7], "a square"),
  "image_size": ("vision_config", 1, "at least the patch_size, "),
  "num_channels": ("vision_config", 4, "3, our models"),
  "num_attention_heads": ("vision_config", 3, "a divisor of the width 14"),
  "vision_config": (None, [1], "an object"),
}


@pytest.mark.parametrize("key", REFUSED)
def test_what_our_models_cannot_do_is_refused(gemma2, key):
  section, value, expected = REFUSED[key]
  change(gemma2, {key: value}, section)
  where = f"config.json: {section + ': ' if section else ''}"
  value = re.escape(repr(value)) if key != "rope_scaling" else ".*"
  refused(gemma2, f"{where}{key} is {value}, expected .*{expected}")


def test_a_sliding_layer_needs_a_window(gemma2):
  config = {"layer_types": [SLIDING, FULL], "sliding_window": None}
  change(gemma2, config, "text_config")
  refused(gemma2, r"layer_types is .*\(of sliding_window None\)")


GEMMA2_KEYS = [
  "hidden_activation",
  "rms_norm_eps",
  "tie_word_embeddings",
  "attention_bias",
  "rope_theta",
  "rope_scaling",
  "rope_parameters",
  "query_pre_attn_scalar",
  "sliding_window",
  "layer_types",
  "final_logit_softcapping",
  "attn_logit_softcapping",
]
JSON = st.recursive(
  st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
  lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(), x, max_size=3),
  max_leaves=5,
)


@settings(
  max_examples=300,
  deadline=None,
  suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_any_damage_to_a_config_ends_in_one_line(gemma2, data):
  good = paligemma_config(text_config(3, 1, "gemma2"))
  config = json.loads(json.dumps(good))
  keys = {
    None: [*config, "quantization_config", "image_token_id"],
    "text_config": [*config["text_config"], *GEMMA2_KEYS],
    "vision_config": [*VISION, "num_channels", "hidden_act", "layer_norm_eps"],
  }
  section = data.draw(st.sampled_from(list(keys)))
  key = data.draw(st.sampled_from(keys[section]))
  (config if section is None else config[section])[key] = data.draw(JSON)
  (gemma2 / "config.json").write_text(json.dumps(config))
  try:
    found = huggingface.open(gemma2)
  except ValueError as e:
    assert "\n" not in str(e) and str(gemma2) in str(e)
  else:
    assert found.leaves


def test_quantized_weights_and_absurd_depths_are_refused(gemma1):
  change(gemma1, {"num_hidden_layers": 10**9}, "text_config")
  refused(gemma1, "tensors are too few for the 1000000000 layers")
  change(gemma1, {"quantization_config": {"bits": 4}})
  refused(gemma1, "says that weights are quantized")


def test_defaults_are_those_of_the_official_sparse_config(gemma1):
  """As in google/paligemma-3b-pt-224: neither head_dim nor patches' colours."""
  change(gemma1, {"head_dim": ...}, "text_config")
  refused(
    gemma1, r"q_proj.weight: found shape \(12, 15\), expected \(768, 15\)"
  )
  config = json.loads((gemma1 / "config.json").read_text())
  (gemma1 / "config.json").write_text(json.dumps({"model_type": "paligemma"}))
  refused(gemma1, r"embed_tokens.weight: .* expected \(257152, 2048\)")
  config["text_config"] = {}
  (gemma1 / "config.json").write_text(json.dumps(config))
  refused(gemma1, r"embed_tokens.weight: .* expected \(256000, 3072\)")


@pytest.mark.parametrize("prefix", ["model.", ""])
@pytest.mark.parametrize("gemma2", [False, True])
def test_a_gemma_gives_the_decoder_alone(tmp_path, prefix, gemma2):
  draw = Draw()
  leaves = draw_text(draw, 3, 1, gemma2)
  tensors = {
    key.replace("language_model.model.", prefix): x
    for key, x in draw.tensors.items()
  }
  if prefix:
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
  config = text_config(3, 1, "gemma2" if gemma2 else "gemma")
  found = huggingface.open(write(tmp_path, config, tensors))
  assert_leaves(found.leaves, leaves)
  assert found.llm == (GEMMA2 if gemma2 else GEMMA1)
  assert "image_token_id" not in found.metadata
  assert "img" not in infer.sizes(found.leaves)


@pytest.mark.parametrize("prefix", ["vision_model.", ""])
def test_a_siglip_gives_the_image_tower_alone(tmp_path, prefix):
  draw = Draw()
  leaves = draw_image_tower(draw)
  tensors = {
    key.replace("vision_tower.vision_model.", prefix): x
    for key, x in draw.tensors.items()
  }
  found = huggingface.open(write(tmp_path / "x", VISION, tensors))
  assert_leaves(found.leaves, leaves)
  # With the pooling head, which a SigLIP takes as its own.
  whole = Draw()
  beside = draw_siglip(whole)
  leaves |= {n: x for n, x in beside.items() if n.startswith("img/MAPHead_0")}
  tensors |= {
    key.replace("vision_model.", prefix): x
    for key, x in whole.tensors.items()
    if key.startswith("vision_model.head.")
  }
  found = huggingface.open(write(tmp_path / "y", VISION, tensors))
  assert_leaves(found.leaves, leaves)
  assert found.ignored == ()


SIGLIP = {
  "model_type": "siglip",
  "vision_config": {**VISION, "vision_use_head": True},
  "text_config": {
    "hidden_size": 6,
    "intermediate_size": 7,
    "max_position_embeddings": 5,
    "num_attention_heads": 3,
    "num_hidden_layers": 2,
    "projection_size": IMG_WIDTH,
    "vocab_size": 11,
  },
}


def draw_siglip(draw):
  """The parts beside the image tower, written out; returns their leaves."""
  head, heads = "vision_model.head", (IMG_HEADS, 2)
  mha = "img/MAPHead_0/MultiHeadDotProductAttention_0"
  w = draw(f"{head}.attention.in_proj_weight", 3 * IMG_WIDTH, IMG_WIDTH)
  b = draw(f"{head}.attention.in_proj_bias", 3 * IMG_WIDTH)
  out = draw(f"{head}.attention.out_proj.weight", IMG_WIDTH, IMG_WIDTH)
  leaves = {
    "img/MAPHead_0/probe": draw(f"{head}.probe", 1, 1, IMG_WIDTH),
    f"{mha}/out/kernel": out.T.reshape(*heads, IMG_WIDTH),
    f"{mha}/out/bias": draw(f"{head}.attention.out_proj.bias", IMG_WIDTH),
    "t": draw("logit_scale", 1),
    "b": draw("logit_bias", 1),
  }
  for i, name in enumerate(("query", "key", "value")):
    rows = slice(i * IMG_WIDTH, (i + 1) * IMG_WIDTH)
    leaves[f"{mha}/{name}/kernel"] = w[rows].T.reshape(IMG_WIDTH, *heads)
    leaves[f"{mha}/{name}/bias"] = b[rows].reshape(heads)
  for ours, theirs in (("scale", "weight"), ("bias", "bias")):
    name = f"img/MAPHead_0/LayerNorm_0/{ours}"
    leaves[name] = draw(f"{head}.layernorm.{theirs}", IMG_WIDTH)
  for j, shape in enumerate([(IMG_MLP, IMG_WIDTH), (IMG_WIDTH, IMG_MLP)]):
    name = f"img/MAPHead_0/MlpBlock_0/Dense_{j}"
    leaves[f"{name}/kernel"] = draw(f"{head}.mlp.fc{j + 1}.weight", *shape).T
    leaves[f"{name}/bias"] = draw(f"{head}.mlp.fc{j + 1}.bias", shape[0])
  text = "text_model"
  table = f"{text}.embeddings.token_embedding.weight"
  leaves["txt/Embed_0/embedding"] = draw(table, 11, 6)
  positions = f"{text}.embeddings.position_embedding.weight"
  leaves["txt/pos_embedding"] = draw(positions, 5, 6)[None]
  leaves["txt/head/kernel"] = draw(f"{text}.head.weight", IMG_WIDTH, 6).T
  leaves["txt/head/bias"] = draw(f"{text}.head.bias", IMG_WIDTH)
  norm, ours = f"{text}.final_layer_norm", "txt/Encoder_0/encoder_norm"
  leaves[f"{ours}/scale"] = draw(f"{norm}.weight", 6)
  leaves[f"{ours}/bias"] = draw(f"{norm}.bias", 6)
  layers = {}

  def add(name, array):
    name = f"txt/Encoder_0/encoderblock/{name}"
    layers.setdefault(name, []).append(array)

  for i in range(2):
    at = f"{text}.encoder.layers.{i}"
    for j in (0, 1):
      add(f"LayerNorm_{j}/scale", draw(f"{at}.layer_norm{j + 1}.weight", 6))
      add(f"LayerNorm_{j}/bias", draw(f"{at}.layer_norm{j + 1}.bias", 6))
    attention = "MultiHeadDotProductAttention_0"
    for theirs, name in {"q": "query", "k": "key", "v": "value"}.items():
      linear = f"{at}.self_attn.{theirs}_proj"
      kernel = draw(f"{linear}.weight", 6, 6).T.reshape(6, 3, 2)
      add(f"{attention}/{name}/kernel", kernel)
      bias = draw(f"{linear}.bias", 6).reshape(3, 2)
      add(f"{attention}/{name}/bias", bias)
    linear = f"{at}.self_attn.out_proj"
    kernel = draw(f"{linear}.weight", 6, 6).T.reshape(3, 2, 6)
    add(f"{attention}/out/kernel", kernel)
    add(f"{attention}/out/bias", draw(f"{linear}.bias", 6))
    for j, shape in enumerate([(7, 6), (6, 7)]):
      linear = f"{at}.mlp.fc{j + 1}"
      add(f"MlpBlock_0/Dense_{j}/kernel", draw(f"{linear}.weight", *shape).T)
      add(f"MlpBlock_0/Dense_{j}/bias", draw(f"{linear}.bias", shape[0]))
  return leaves | {name: np.stack(x) for name, x in layers.items()}


def siglip_folder(path, **changed):
  draw = Draw()
  leaves = draw_image_tower(draw)
  tower = "vision_tower."
  tensors = {k.removeprefix(tower): x for k, x in draw.tensors.items()}
  draw.tensors = tensors
  leaves |= draw_siglip(draw)
  for name in ("text", "vision"):  # buffers of old releases
    tensors[f"{name}_model.embeddings.position_ids"] = np.arange(5)[None]
  return write(path, SIGLIP | changed, tensors), leaves


def test_a_siglip_gives_both_towers(tmp_path):
  folder, leaves = siglip_folder(tmp_path)
  found = huggingface.open(folder)
  assert_leaves(found.leaves, leaves)
  assert set(found.ignored) == {
    "text_model.embeddings.position_ids",
    "vision_model.embeddings.position_ids",
  }
  sizes = infer.sizes(found.leaves)
  assert sizes["txt"] == {
    "width": 6,
    "depth": 2,
    "mlp_dim": 7,
    "num_heads": 3,
    "vocab_size": 11,
    "text_len": 5,
    "num_classes": IMG_WIDTH,
    "scan": True,
  }
  assert sizes["img"]["pool_type"] == "map"
  assert sizes["img"]["num_classes"] is None


@pytest.mark.parametrize(
  ("changed", "message"),
  [
    (
      {"vision_config": {**VISION, "vision_use_head": False}},
      "vision_use_head",
    ),
    ({"text_config": {"hidden_act": "gelu"}}, "hidden_act"),
    ({"text_config": {"model_type": "clip_text_model"}}, "model_type"),
    (
      {"text_config": {**SIGLIP["text_config"], "num_attention_heads": 4}},
      r"num_attention_heads.*a divisor of the width 6",
    ),
    (
      {"text_config": {**SIGLIP["text_config"], "vocab_size": 12}},
      r"token_embedding\.weight: found shape .11, 6., expected .12, 6.",
    ),
  ],
)
def test_a_siglip_that_is_another(tmp_path, changed, message):
  folder, _ = siglip_folder(tmp_path, **changed)
  with pytest.raises(ValueError, match=message):
    huggingface.open(folder)
