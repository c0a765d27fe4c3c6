"""Directories written for transformers, against ones made by hand."""

import json
import os

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from paligemma.checkpoints import leaves
from paligemma.checkpoints import (
  safetensors as ours_safetensors,
)
from paligemma.checkpoints.huggingface import read as huggingface
from paligemma.checkpoints.huggingface import write as huggingface_write
from tests.checkpoints.handmade_huggingface import (
  DEPTH,
  HEAD_DIM,
  IMAGE_TOKEN,
  IMG_DEPTH,
  IMG_HEADS,
  IMG_MLP,
  IMG_WIDTH,
  MLP,
  PATCH,
  POSITIONS,
  ROWS,
  WIDTH,
  assert_leaves,
  draw_paligemma,
)

TABLE = "language_model.model.embed_tokens.weight"
IMG = {
  "width": IMG_WIDTH,
  "depth": IMG_DEPTH,
  "mlp_dim": IMG_MLP,
  "num_heads": IMG_HEADS,
  "patch_size": PATCH,
}
GEMMA2 = {
  "query_scale": "width_per_head",
  "attn_logits_softcap": 50.0,
  "final_logits_softcap": 30.0,
  "sliding_window": 3,
}
CASES = {"grouped": (3, 1), "multi-head": (3, 3)}


def llm_fields(heads=3, kv_heads=1, gemma2=False, **more):
  return {
    "width": WIDTH,
    "depth": DEPTH,
    "mlp_dim": MLP,
    "num_heads": heads,
    "num_kv_heads": kv_heads,
    "head_dim": HEAD_DIM,
    "vocab_size": IMAGE_TOKEN,
    "norm_eps": 1e-6,
    "query_scale": "head_dim",
    "post_norms": gemma2,
    "attn_logits_softcap": None,
    "final_logits_softcap": None,
    "sliding_window": None,
    **more,
  }


def unstack(arrays):
  loop = leaves.unstack_layers(
    {name: leaves.Leaf.of(x) for name, x in arrays.items()}
  )
  assert loop.keys() != arrays.keys()
  return {name: leaf.read() for name, leaf in loop.items()}


def as_leaves(arrays):
  return {name: leaves.Leaf.of(x) for name, x in arrays.items()}


FORMS = {
  "NumPy": lambda arrays: arrays,
  "JAX": lambda arrays: {k: jnp.asarray(x) for k, x in arrays.items()},
  "leaves": as_leaves,
  "loop": unstack,
  "loop of leaves": lambda arrays: as_leaves(unstack(arrays)),
}


def read_config(path):
  return json.loads((path / "config.json").read_text())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("gemma2", [False, True])
@pytest.mark.parametrize("heads", CASES)
def test_tensors_are_those_of_transformers(tmp_path, form, gemma2, heads):
  expected, arrays = draw_paligemma(*CASES[heads], gemma2)
  path = tmp_path / "out"
  llm = llm_fields(*CASES[heads], gemma2)
  huggingface_write.save(path, FORMS[form](arrays), img=IMG, llm=llm)
  found = safetensors.numpy.load_file(path / "model.safetensors")
  assert found.keys() == expected.keys()
  assert found[TABLE].shape == (ROWS, WIDTH)
  for key, tensor in expected.items():
    rows = slice(IMAGE_TOKEN if key == TABLE else None)
    assert found[key].dtype == np.float32
    np.testing.assert_array_equal(found[key][rows], tensor[rows], err_msg=key)


@pytest.mark.parametrize("gemma2", [False, True])
@pytest.mark.parametrize("window", [None, 3])
def test_read_back_it_is_itself(tmp_path, gemma2, window):
  _, arrays = draw_paligemma(3, 1, gemma2)
  llm = llm_fields(gemma2=gemma2, norm_eps=1e-5)
  if gemma2:
    llm |= {**GEMMA2, "sliding_window": window}
  first, second = tmp_path / "a/mine", tmp_path / "b/mine"
  huggingface_write.save(first, arrays, img=IMG, llm=llm)
  found = huggingface.open(first)
  assert_leaves(found.leaves, arrays)
  assert found.llm == {name: llm[name] for name in found.llm}
  assert found.ignored == ()
  assert "image_token_id" not in found.metadata
  # And the same file again, from what was read.
  huggingface_write.save(second, found.leaves, img=IMG, llm=llm)
  assert os.listdir(tmp_path / "b") == ["mine"]
  for file in first.iterdir():
    assert (second / file.name).read_bytes() == file.read_bytes()


def test_rows_that_are_added_never_win(tmp_path, monkeypatch):
  monkeypatch.setattr(huggingface_write, "BLOCK_BYTES", 1000)  # several blocks
  _, arrays = draw_paligemma()
  huggingface_write.save(tmp_path / "a", arrays, img=IMG, llm=llm_fields())
  table = safetensors.numpy.load_file(tmp_path / "a/model.safetensors")[TABLE]
  mean = table[:IMAGE_TOKEN].mean(axis=0, dtype=np.float64)
  np.testing.assert_allclose(table[IMAGE_TOKEN:], [mean] * 31, rtol=1e-6)
  x = np.random.default_rng(0).normal(size=(1000, WIDTH))
  logits = x @ table.T
  assert (logits.argmax(axis=1) < IMAGE_TOKEN).all()
  assert read_config(tmp_path / "a")["image_token_index"] == IMAGE_TOKEN


def test_with_an_image_token_rows_stay(tmp_path):
  expected, arrays = draw_paligemma()
  arrays["llm/embedder/input_embedding"] = expected[TABLE]
  llm = llm_fields(vocab_size=ROWS)
  metadata = {"image_token_id": 33}
  huggingface_write.save(
    tmp_path / "a", arrays, img=IMG, llm=llm, metadata=metadata
  )
  found = huggingface.open(tmp_path / "a")
  assert_leaves(found.leaves, arrays)
  assert found.metadata["image_token_id"] == 33
  assert read_config(tmp_path / "a")["text_config"]["vocab_size"] == ROWS


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", jnp.bfloat16])
def test_a_dtype_holds_for_all(tmp_path, dtype):
  expected, arrays = draw_paligemma()
  huggingface_write.save(
    tmp_path / "a", arrays, img=IMG, llm=llm_fields(), dtype=dtype
  )
  dtype = jnp.dtype(dtype)
  assert read_config(tmp_path / "a")["torch_dtype"] == dtype.name
  found = ours_safetensors.open(tmp_path / "a/model.safetensors")
  assert {tensor.dtype for tensor in found.values()} == {dtype}
  for key, tensor in expected.items():
    rows = slice(IMAGE_TOKEN if key == TABLE else None)
    np.testing.assert_array_equal(found[key][rows], tensor.astype(dtype)[rows])
  assert (found[TABLE][IMAGE_TOKEN:] == found[TABLE][-1]).all()


def test_dtypes_are_kept(tmp_path):
  _, arrays = draw_paligemma()
  arrays = {
    name: x.astype(np.float32 if "norm" in name else ml_dtypes.bfloat16)
    for name, x in arrays.items()
  }
  huggingface_write.save(tmp_path / "a", arrays, img=IMG, llm=llm_fields())
  found = huggingface.open(tmp_path / "a").leaves
  assert {k: x.dtype for k, x in found.items()} == {
    k: x.dtype for k, x in arrays.items()
  }
  assert_leaves(found, arrays)
  assert read_config(tmp_path / "a")["torch_dtype"] == "bfloat16"


def test_shards(tmp_path):
  expected, arrays = draw_paligemma()
  path = tmp_path / "a"
  huggingface_write.save(
    path, arrays, img=IMG, llm=llm_fields(), max_shard_bytes=9000
  )
  shards = sorted(path.glob("*.safetensors"))
  assert len(shards) == 5
  assert shards[1].name == "model-00002-of-00005.safetensors"
  index = json.loads((path / "model.safetensors.index.json").read_text())
  assert index["weight_map"].keys() == expected.keys()
  total = 0
  for shard in shards:
    tensors = safetensors.numpy.load_file(shard)
    nbytes = sum(x.nbytes for x in tensors.values())
    assert nbytes <= 9000
    total += nbytes
    assert {index["weight_map"][key] for key in tensors} == {shard.name}
    with safetensors.safe_open(shard, "np") as file:
      assert file.metadata() == {"format": "pt"}
  assert index["metadata"]["total_size"] == total
  assert_leaves(huggingface.open(path).leaves, arrays)


def test_a_tensor_bigger_than_a_shard_has_one_of_its_own(tmp_path):
  expected, arrays = draw_paligemma()
  huggingface_write.save(
    tmp_path / "a", arrays, img=IMG, llm=llm_fields(), max_shard_bytes=1
  )
  assert len(list((tmp_path / "a").glob("*.safetensors"))) == len(expected)


def test_config_says_what_the_model_is(tmp_path):
  _, arrays = draw_paligemma(3, 1, gemma2=True)
  llm = llm_fields(gemma2=True, **GEMMA2)
  huggingface_write.save(tmp_path / "a", arrays, img=IMG, llm=llm)
  config = read_config(tmp_path / "a")
  text, vision = config["text_config"], config["vision_config"]
  assert config["architectures"] == ["PaliGemmaForConditionalGeneration"]
  assert (text["query_pre_attn_scalar"], text["sliding_window"]) == (5, 3)
  assert text["layer_types"] == ["sliding_attention", "full_attention"]
  assert (vision["image_size"], vision["num_image_tokens"]) == (10, POSITIONS)
  processor = json.loads((tmp_path / "a/preprocessor_config.json").read_text())
  assert processor["size"] == {"height": 10, "width": 10}
  assert processor["image_seq_length"] == POSITIONS
  generation = (tmp_path / "a/generation_config.json").read_text()
  assert json.loads(generation) == {
    "bos_token_id": 2,
    "eos_token_id": 1,
    "pad_token_id": 0,
  }


def test_without_a_window_no_layer_slides(tmp_path):
  _, arrays = draw_paligemma(3, 1, gemma2=True)
  llm = llm_fields(gemma2=True)
  huggingface_write.save(tmp_path / "a", arrays, img=IMG, llm=llm)
  text = read_config(tmp_path / "a")["text_config"]
  assert text["layer_types"] == ["full_attention", "full_attention"]
  assert text["sliding_window"] == text["max_position_embeddings"]
  assert text["attn_logit_softcapping"] is None


def refused(tmp_path, match, arrays=None, img=IMG, **llm):
  path = tmp_path / "out"
  if arrays is None:
    _, arrays = draw_paligemma(3, 1, llm.get("post_norms", False))
  with pytest.raises(ValueError, match=match) as error:
    huggingface_write.save(path, arrays, img=img, llm=llm_fields(**llm))
  assert "\n" not in str(error.value)
  assert str(path) in str(error.value)
  assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
  ("llm", "match"),
  [
    ({"sliding_window": 3}, "sliding_window is 3, expected None .*Gemma 1"),
    ({"final_logits_softcap": 3.0}, "final_logit_softcapping is 3.0"),
    ({"query_scale": "width_per_head"}, "query_pre_attn_scalar is 5.0, expec"),
    ({"query_scale": 6.5, "post_norms": True}, "root of 6.5, expected an int"),
    ({"query_scale": "hed_dim"}, 'unknown query_scale "hed_dim".*"head_dim"'),
  ],
)
def test_what_transformers_does_not_have_is_refused(tmp_path, llm, match):
  refused(tmp_path, match, **llm)


def test_arrays_of_another_model_are_refused(tmp_path):
  _, arrays = draw_paligemma()
  norm = "llm/final_norm/scale"
  wrong = {k: x for k, x in arrays.items() if k != norm}
  refused(tmp_path, rf"{norm}: missing, expected \(15,\)", wrong)
  wrong = {**arrays, "img/MAPHead_0/probe": np.ones((1, 1, 14), np.float32)}
  refused(tmp_path, "img/MAPHead_0/probe: unexpected", wrong)
  refused(tmp_path, r"input_embedding: found shape \(97, 15\)", vocab_size=96)
  wrong = {**arrays, "img/pos_embedding": np.ones((1, 5, 14), np.float32)}
  refused(tmp_path, r"img/pos_embedding: shape \(1, 5, 14\), expected", wrong)
  wrong = {k: x for k, x in arrays.items() if k != "img/pos_embedding"}
  refused(tmp_path, "img/pos_embedding is missing, expected a learned", wrong)
  wrong = {**arrays, norm: np.ones(WIDTH, np.int32)}
  refused(tmp_path, "norm.weight: dtype int32, expected a float", wrong)
  loop = unstack(arrays)
  del loop["llm/layers/0/mlp/linear"]
  refused(tmp_path, "llm/layers/0/mlp/linear: missing", loop)


def test_a_directory_that_exists_is_left_alone(tmp_path):
  (tmp_path / "out").mkdir()
  (tmp_path / "out/notes.txt").write_text("mine")
  _, arrays = draw_paligemma()
  with pytest.raises(ValueError, match="out: exists, expected a new directory"):
    huggingface_write.save(tmp_path / "out", arrays, img=IMG, llm=llm_fields())
  assert (tmp_path / "out/notes.txt").read_text() == "mine"


def test_a_remote_directory_is_refused():
  with pytest.raises(ValueError, match="gs://b/x: expected a directory of the"):
    huggingface_write.save("gs://b/x", {}, img=IMG, llm=llm_fields())


def test_an_interrupted_write_leaves_nothing(tmp_path):
  class Broken:
    shape, dtype = (DEPTH, MLP, WIDTH), np.dtype(np.float32)

    def __getitem__(self, _):
      assert [p.name[:5] for p in tmp_path.iterdir()] == [".out."]
      raise KeyboardInterrupt

  _, arrays = draw_paligemma()
  arrays["llm/layers/mlp/linear"] = Broken()
  with pytest.raises(KeyboardInterrupt):
    huggingface_write.save(tmp_path / "out", arrays, img=IMG, llm=llm_fields())
  assert os.listdir(tmp_path) == []


# What the loader of mlx-vlm makes of config.json and asks of the weights, none
# missing and none more (mlx_vlm/models/paligemma, utils.py: load_weights).
_ATTENTION = ("q_proj", "k_proj", "v_proj")
_MLX_CONFIG = {
  "": "model_type vocab_size image_token_index hidden_size pad_token_id",
  "text_config": "model_type hidden_size num_hidden_layers intermediate_size "
  "num_attention_heads num_key_value_heads vocab_size head_dim rms_norm_eps "
  "rope_theta",
  "vision_config": "model_type num_hidden_layers hidden_size intermediate_size "
  "num_attention_heads patch_size projection_dim image_size num_channels "
  "layer_norm_eps",
}
_MLX_GEMMA2 = (
  "attn_logit_softcapping final_logit_softcapping query_pre_attn_scalar"
)


def mlx_names(gemma2):
  names = []
  norms = ["input_layernorm", "post_attention_layernorm"]
  if gemma2:
    norms += ["pre_feedforward_layernorm", "post_feedforward_layernorm"]
  for i in range(DEPTH):
    at = f"language_model.model.layers.{i}"
    names += [f"{at}.self_attn.{x}" for x in (*_ATTENTION, "o_proj")]
    names += [f"{at}.mlp.{x}_proj" for x in ("gate", "up", "down")]
    names += [f"{at}.{x}" for x in norms]
  names += [f"language_model.model.{x}" for x in ("embed_tokens", "norm")]
  vision = "vision_tower.vision_model"
  names.append(f"{vision}.embeddings.position_embedding")
  biased = ["multi_modal_projector.linear", f"{vision}.post_layernorm"]
  biased.append(f"{vision}.embeddings.patch_embedding")
  for i in range(IMG_DEPTH):
    at = f"{vision}.encoder.layers.{i}"
    biased += [f"{at}.self_attn.{x}" for x in (*_ATTENTION, "out_proj")]
    biased += [f"{at}.{x}" for x in ("layer_norm1", "layer_norm2")]
    biased += [f"{at}.mlp.{x}" for x in ("fc1", "fc2")]
  names = [f"{x}.weight" for x in names + biased]
  return {*names, *(f"{x}.bias" for x in biased)}


@pytest.mark.parametrize("gemma2", [False, True])
def test_mlx_finds_what_it_loads(tmp_path, gemma2):
  _, arrays = draw_paligemma(3, 1, gemma2)
  llm = llm_fields(gemma2=gemma2) | (GEMMA2 if gemma2 else {})
  huggingface_write.save(tmp_path / "a", arrays, img=IMG, llm=llm)
  found = safetensors.numpy.load_file(tmp_path / "a/model.safetensors")
  assert found.keys() == mlx_names(gemma2)
  # It turns the kernel of patches, but for one that looks turned already.
  kernel = found["vision_tower.vision_model.embeddings.patch_embedding.weight"]
  assert kernel.shape == (IMG_WIDTH, 3, PATCH, PATCH)
  config = read_config(tmp_path / "a")
  wanted = dict(_MLX_CONFIG)
  if gemma2:
    wanted["text_config"] += f" {_MLX_GEMMA2}"
  for section, keys in wanted.items():
    values = config[section] if section else config
    assert not [key for key in keys.split() if values.get(key) is None]
  assert config["text_config"]["model_type"] == "gemma" + "2" * gemma2
  assert config["vision_config"]["model_type"] == "siglip_vision_model"


def test_vllm_finds_what_it_reads(tmp_path):
  """vllm/model_executor/models/paligemma.py, its first release and later."""
  _, arrays = draw_paligemma(3, 1)
  huggingface_write.save(tmp_path / "a", arrays, img=IMG, llm=llm_fields())
  config = read_config(tmp_path / "a")
  assert config["architectures"] == ["PaliGemmaForConditionalGeneration"]
  assert config["bos_token_id"] == 2
  assert config["image_token_index"] == IMAGE_TOKEN
  assert config["vocab_size"] == config["text_config"]["vocab_size"] == ROWS
  assert config["text_config"]["num_image_tokens"] == POSITIONS
  vision = config["vision_config"]
  assert vision["projection_dim"] == config["hidden_size"] == WIDTH
  assert (vision["image_size"] // vision["patch_size"]) ** 2 == POSITIONS
  # All its modules but one pooling head, which it leaves out without this.
  assert vision["vision_use_head"] is False
  found = safetensors.numpy.load_file(tmp_path / "a/model.safetensors")
  stems = {"vision_tower", "multi_modal_projector", "language_model"}
  assert {key.partition(".")[0] for key in found} == stems
  # Renamed by what stands in front, with queries, keys and values joined.
  assert found.keys() == mlx_names(gemma2=False)
