"""Presets that keras-hub wrote, whole and damaged."""

import functools
import json
import pathlib
import shutil
import zipfile

import hypothesis
import hypothesis.strategies as st
import jax
import ml_dtypes
import numpy as np
import pytest

from paligemma import tree
from paligemma.checkpoints import infer, keras_hub
from paligemma.models import gemma, paligemma

h5py = pytest.importorskip("h5py")

GOLDENS = pathlib.Path(__file__).parents[1] / "goldens/keras_hub"
WEIGHTS = "model.weights.h5"
SHARDS = "model.weights.json"
LAYER = "layers/pali_gemma_decoder_block"
VIT = "layers/pali_gemma_vit/layers/pali_gemma_vit_encoder"


@pytest.fixture(scope="module")
def goldens(tmp_path_factory):
  folder = tmp_path_factory.mktemp("goldens")
  for name in ("paligemma2", "gemma"):
    with zipfile.ZipFile(GOLDENS / f"{name}.zip") as archive:
      archive.extractall(folder / name)
  return folder


@pytest.fixture
def paligemma2(goldens, tmp_path):
  """A folder to spoil, in one file."""
  return shutil.copytree(goldens / "paligemma2", tmp_path / "paligemma2")


@pytest.fixture
def sharded(goldens, tmp_path):
  """A Gemma in bfloat16, in two files."""
  return shutil.copytree(goldens / "gemma", tmp_path / "gemma")


def weights(folder):
  return h5py.File(folder / WEIGHTS, "r+")


def edit(path, change):
  found = json.loads(path.read_text())
  change(found)
  path.write_text(json.dumps(found))


def edit_config(folder, **fields):
  edit(folder / "config.json", lambda x: x["config"].update(fields))


def load(folder):
  checkpoint = keras_hub.open(folder)
  sizes = infer.sizes(checkpoint.leaves)
  sizes["llm"] |= checkpoint.llm
  flat = {n: leaf.read("float32") for n, leaf in checkpoint.leaves.items()}
  params = tree.unflatten(flat)
  if "img" not in sizes:
    return gemma.Model(**sizes["llm"]), params["llm"]
  sizes["img"].pop("res")
  return paligemma.from_sizes(**sizes), params


def expected(folder):
  with np.load(folder / "expected.npz") as file:
    return dict(file)


def test_paligemma_equals_keras_hub(goldens):
  model, params = load(goldens / "paligemma2")
  x = expected(goldens / "paligemma2")
  logits, _ = jax.jit(model.apply)(
    {"params": params},
    x["image"],
    x["text"],
    x["mask_ar"],
    input_mask=x["input_mask"],
  )
  valid = x["input_mask"]
  assert x["logits"][valid].std() > 0.3
  np.testing.assert_allclose(logits[valid], x["logits"][valid], atol=1e-4)


def test_gemma_in_shards_of_bfloat16_equals_keras_hub(goldens):
  model, params = load(goldens / "gemma")
  x = expected(goldens / "gemma")

  def run(model, text, input_mask, mask_ar):
    hidden, _ = model(model.embed_tokens(text), input_mask, mask_ar)
    return model.compute_logits(hidden)

  logits = jax.jit(functools.partial(model.apply, method=run))(
    {"params": params}, x["text"], x["input_mask"], x["mask_ar"]
  )
  valid = x["input_mask"]
  assert x["logits"][valid].std() > 0.3
  np.testing.assert_allclose(logits[valid], x["logits"][valid], atol=1e-4)


def test_what_a_checkpoint_says(goldens):
  found = keras_hub.open(goldens / "paligemma2")
  assert found.path == str(goldens / "paligemma2")
  assert found.format == "keras-hub PaliGemmaBackbone"
  assert found.llm == {
    "norm_eps": 1e-6,
    "query_scale": "head_dim",
    "post_norms": True,
    "attn_logits_softcap": 2.0,
    "final_logits_softcap": 3.0,
    "sliding_window": 8,
  }
  assert found.img == {} and found.ignored == ()
  assert infer.sizes(found.leaves) == {
    "img": {
      "width": 15,
      "depth": 2,
      "mlp_dim": 13,
      "num_heads": 3,
      "patch_size": 3,
      "res": 6,
      "scan": True,
    },
    "llm": {
      "width": 20,
      "depth": 2,
      "mlp_dim": 11,
      "num_heads": 4,
      "num_kv_heads": 2,
      "head_dim": 6,
      "vocab_size": 37,
      "post_norms": True,
      "scan": True,
    },
  }
  found = keras_hub.open(goldens / "gemma")
  assert found.format == "keras-hub GemmaBackbone"
  assert found.llm == {
    "norm_eps": 1e-6,
    "query_scale": "head_dim",
    "post_norms": False,
    "attn_logits_softcap": None,
    "final_logits_softcap": None,
    "sliding_window": None,
  }
  assert {str(leaf.dtype) for leaf in found.leaves.values()} == {"bfloat16"}


def test_query_scale_of_27b_is_as_the_config_says(paligemma2):
  edit_config(paligemma2, query_head_dim_normalize=False)
  assert keras_hub.open(paligemma2).llm["query_scale"] == "width_per_head"


def test_any_part_of_a_leaf_is_read(goldens):
  rng = np.random.default_rng(0)
  for leaf in keras_hub.open(goldens / "paligemma2").leaves.values():
    whole = leaf.read()
    assert whole.shape == leaf.shape
    index = tuple(
      slice(*sorted(rng.choice(n + 1, 2, replace=False))) for n in leaf.shape
    )
    np.testing.assert_array_equal(leaf.read(index=index), whole[index])


def test_files_are_closed(paligemma2):
  for leaf in keras_hub.open(paligemma2).leaves.values():
    leaf.read()
  with weights(paligemma2):  # HDF5 refuses what is open for reading
    pass


def test_as_many_key_value_heads_as_heads(paligemma2):
  edit_config(paligemma2, num_key_value_heads=4)
  rng = np.random.default_rng(0)
  with weights(paligemma2) as file:
    for layer in (LAYER, f"{LAYER}_1"):
      for name in ("key", "value"):
        group = file[f"{layer}/attention/{name}_dense/vars"]
        del group["0"]
        group["0"] = rng.standard_normal((4, 20, 6))
    value = file[f"{LAYER}_1/attention/value_dense/vars/0"][...]
    query = file[f"{LAYER}_1/attention/query_dense/vars/0"][...]
  leaves = keras_hub.open(paligemma2).leaves
  assert not [n for n in leaves if "/q_einsum/" in n or "/kv_einsum/" in n]
  qkv = leaves["llm/layers/attn/qkv_einsum/w"].read()
  assert qkv.shape == (2, 3, 4, 20, 6) and qkv.dtype == np.float64
  np.testing.assert_array_equal(qkv[1, 0], query)
  np.testing.assert_array_equal(qkv[1, 2], value)


def test_files_of_older_keras(paligemma2):
  new = {n: x.read() for n, x in keras_hub.open(paligemma2).leaves.items()}
  with weights(paligemma2) as file:
    file.move(
      "layers/pali_gemma_vit/layers",
      "layers/pali_gemma_vit/_layer_checkpoint_dependencies",
    )
    file.move("layers", "_layer_checkpoint_dependencies")
    file["optimizer/vars/0"] = np.zeros(3)
  found = keras_hub.open(paligemma2)
  assert found.ignored == ("optimizer/vars/0",)
  assert found.leaves.keys() == new.keys()
  for name, array in new.items():
    np.testing.assert_array_equal(found.leaves[name].read(), array)


def test_configs_of_older_keras_hub(paligemma2):
  """PaliGemma 1 presets name no field of Gemma 2."""
  gemma2_fields = (
    "query_head_dim_normalize",
    "use_post_ffw_norm",
    "use_post_attention_norm",
    "final_logit_soft_cap",
    "attention_logit_soft_cap",
    "sliding_window_size",
    "use_sliding_window_attention",
  )

  def change(found):
    for field in gemma2_fields:
      del found["config"][field]

  edit(paligemma2 / "config.json", change)
  with weights(paligemma2) as file:
    for layer in (LAYER, f"{LAYER}_1"):
      del file[f"{layer}/post_attention_norm"], file[f"{layer}/post_ffw_norm"]
  assert keras_hub.open(paligemma2).llm == {
    "norm_eps": 1e-6,
    "query_scale": "head_dim",
    "post_norms": False,
    "attn_logits_softcap": None,
    "final_logits_softcap": None,
    "sliding_window": None,
  }
  edit_config(paligemma2, vit_intermediate_dim=None)
  with pytest.raises(ValueError, match=r"expected \(15, 4304\)"):
    keras_hub.open(paligemma2)


def test_every_variable_is_used_once(paligemma2):
  with weights(paligemma2) as file:
    del file[f"{LAYER}_1/ffw_linear/vars/0"]
    file[f"{LAYER}_1/ffw_linera/vars/0"] = np.zeros(3)
    del file[f"{VIT}/encoder_layer_norm/vars/1"]
    file[f"{VIT}/encoder_layer_norm/vars/1"] = np.zeros(7, np.float32)
  with pytest.raises(ValueError) as e:
    keras_hub.open(paligemma2)
  assert str(e.value) == (
    f"{paligemma2}: the weights do not fit config.json, 3 variables differ: "
    f"{LAYER}_1/ffw_linear/vars/0: missing, expected (11, 20); "
    f"{LAYER}_1/ffw_linera/vars/0: unexpected, found (3,). "
    f'Did you mean "{LAYER}_1/ffw_linear/vars/0"?; '
    f"{VIT}/encoder_layer_norm/vars/1: found shape (7,), expected (15,)"
  )


def test_at_most_ten_variables_are_listed(paligemma2):
  with weights(paligemma2) as file:
    del file["layers/pali_gemma_vit"]
  with pytest.raises(ValueError, match="39 variables differ") as e:
    keras_hub.open(paligemma2)
  assert str(e.value).count("missing") == 10
  assert str(e.value).endswith("; and 29 more")


@pytest.mark.parametrize("dtype", ["int8", "complex64", ">f4", "S3"])
def test_quantized_and_foreign_dtypes(paligemma2, dtype):
  with weights(paligemma2) as file:
    group = file[f"{LAYER}/ffw_linear/vars"]
    del group["0"]
    group.create_dataset("0", data=np.zeros((11, 20), dtype))
  with pytest.raises(
    ValueError, match=r"ffw_linear/vars/0: dtype .*, expected a float"
  ):
    keras_hub.open(paligemma2)


def test_halves_of_both_kinds_become_float32(paligemma2):
  with weights(paligemma2) as file:
    for layer, dtype in (
      (LAYER, np.float16),
      (f"{LAYER}_1", ml_dtypes.bfloat16),
    ):
      group = file[f"{layer}/pre_ffw_norm/vars"]
      del group["0"]
      group.create_dataset("0", data=np.full(20, 1 / 3, dtype))
  found = keras_hub.open(paligemma2).leaves
  leaf = found["llm/layers/pre_ffw_norm/scale"].read()
  assert leaf.dtype == np.float32
  assert leaf[:, 0].tolist() == [np.float16(1 / 3), ml_dtypes.bfloat16(1 / 3)]


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"num_layers": 10**9}, "1000000000 layers, but the weights have 63 var"),
    ({"num_layers": 0}, "num_layers is 0, expected a positive integer"),
    ({"num_layers": True}, "num_layers is True, expected a positive int"),
    ({"hidden_dim": "20"}, "hidden_dim is '20', expected a positive int"),
    ({"vit_patch_size": None}, "vit_patch_size is None, expected a pos"),
    ({"intermediate_dim": 23}, "intermediate_dim is 23, expected an even"),
    ({"vit_num_heads": 4}, "vit_num_heads is 4, expected a divisor of 15"),
    ({"image_size": 9}, r"found shape \(4, 15\), expected \(9, 15\)"),
    ({"head_dim": 7}, "8 variables differ"),
    ({"vit_pooling": "map"}, "vit_pooling is 'map', expected None, our"),
    ({"vit_classifier_activation": "tanh"}, "is 'tanh', expected None"),
    ({"layer_norm_epsilon": 1e-5}, "is 1e-05, expected 1e-06: keras-hub"),
    ({"use_post_ffw_norm": False}, "norm is False, expected that of use_post"),
    ({"use_post_ffw_norm": 1}, "use_post_ffw_norm is 1, expected true or f"),
    ({"attention_logit_soft_cap": 0}, "soft_cap is 0, expected a positive"),
    ({"final_logit_soft_cap": "30"}, "soft_cap is '30', expected a positive"),
    ({"sliding_window_size": -1}, "sliding_window_size is -1, expected a"),
    ({"sliding_window_size": 2.5}, "sliding_window_size is 2.5, expected a"),
  ],
)
def test_configs_that_cannot_be(paligemma2, fields, message):
  edit_config(paligemma2, **fields)
  with pytest.raises(ValueError, match=message) as e:
    keras_hub.open(paligemma2)
  assert str(e.value).startswith(str(paligemma2))
  assert "\n" not in str(e.value)


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("", r"config\.json: is no JSON \(Expecting value"),
    ('{"class_name": "Gem', "is no JSON"),
    ("[" * 100_000, "is no JSON"),
    ("[1]", "is no JSON object"),
    ('{"model_type": "gemma"}', "class_name is None, expected one of"),
    ('{"class_name": [], "config": {}}', r"class_name is \[\], expected"),
    ('{"class_name": "GemmaBackbone"}', "config is None, expected an object"),
    (
      '{"class_name": "PaligemmaBackbone", "config": {}}',
      "class_name is 'PaligemmaBackbone', expected one of: GemmaBackbone, "
      r'PaliGemmaBackbone\. Did you mean "PaliGemmaBackbone"\?',
    ),
  ],
)
def test_config_files_that_are_none(paligemma2, text, message):
  (paligemma2 / "config.json").write_text(text)
  with pytest.raises(ValueError, match=message):
    keras_hub.open(paligemma2)


def test_files_that_are_missing(paligemma2, sharded):
  (paligemma2 / WEIGHTS).unlink()
  with pytest.raises(ValueError, match=r"model\.weights\.h5: no such file"):
    keras_hub.open(paligemma2)
  (sharded / "model_00001.weights.h5").unlink()
  with pytest.raises(ValueError, match=r"model_00001\.weights\.h5: no such"):
    keras_hub.open(sharded)
  (sharded / "config.json").unlink()
  with pytest.raises(ValueError, match=r"config\.json: No such file"):
    keras_hub.open(sharded)


def test_without_h5py(paligemma2, monkeypatch):
  monkeypatch.setitem(__import__("sys").modules, "h5py", None)
  with pytest.raises(ValueError, match=r"h5py is needed .*pip install h5py"):
    keras_hub.open(paligemma2)


@pytest.mark.parametrize(
  ("files", "message"),
  [
    ("../gemma.h5", r"'\.\./gemma\.h5', expected a file here"),
    (3, "3, expected a file here"),
    (["model_00000.weights.h5", None], "None, expected a file here"),
    ("model_00001.weights.h5", "does not say that layers/gemma_decoder_block"),
    ("config.json", r"config\.json: not an HDF5 file"),
  ],
)
def test_shards_that_the_map_does_not_tell(sharded, files, message):
  group = "/layers/gemma_decoder_block/ffw_linear/vars"
  edit(sharded / SHARDS, lambda x: x["weight_map"].update({group: files}))
  with pytest.raises(ValueError, match=message):
    keras_hub.open(sharded)


def test_map_without_shards(sharded):
  edit(sharded / SHARDS, lambda x: x.pop("weight_map"))
  with pytest.raises(ValueError, match=r'weights\.json: no "weight_map"'):
    keras_hub.open(sharded)


def test_a_variable_in_two_shards(sharded):
  key = "layers/rms_normalization/vars/0"
  names = ["model_00000.weights.h5", "model_00001.weights.h5"]
  for name in names:
    with h5py.File(sharded / name, "r+") as file:
      if key not in file:
        file[key] = np.zeros(14)
  groups = {"/layers/rms_normalization/vars": names}
  edit(sharded / SHARDS, lambda x: x["weight_map"].update(groups))
  with pytest.raises(ValueError, match=f"{key} is in two files"):
    keras_hub.open(sharded)


def test_nothing_elsewhere_is_read(paligemma2, tmp_path):
  (tmp_path / "secret").write_bytes(bytes(1000))
  key = f"{LAYER}/pre_ffw_norm/vars/0"

  def spoil(make):
    with weights(paligemma2) as file:
      if key in file:
        del file[key]
      make(file)
    with pytest.raises(ValueError) as e:
      keras_hub.open(paligemma2)
    return str(e.value)

  def soft_link(file):
    file[key] = h5py.SoftLink("/layers/rms_normalization/vars/0")

  def external_link(file):
    file[key] = h5py.ExternalLink(str(tmp_path / "secret"), "/x")

  def external_data(file):
    outside = [(str(tmp_path / "secret"), 0, 80)]
    file.create_dataset(key, (20,), np.float32, external=outside)

  def virtual_data(file):
    layout = h5py.VirtualLayout((20,), np.float32)
    layout[:] = h5py.VirtualSource(str(tmp_path / "secret"), "x", (20,))
    file.create_virtual_dataset(key, layout)

  def never_written(file):
    file.create_dataset(key, (20,), np.float32)

  def empty(file):
    file[key] = h5py.Empty("f4")

  assert "missing, expected (20,)" in spoil(soft_link)
  assert "missing, expected (20,)" in spoil(external_link)
  assert "lies in another file, expected it here" in spoil(external_data)
  assert "lies in another file, expected it here" in spoil(virtual_data)
  assert "holds 0 bytes, expected 80" in spoil(never_written)
  assert "holds nothing, expected an array" in spoil(empty)


def test_a_group_that_holds_itself(paligemma2):
  with weights(paligemma2) as file:
    file["layers/again"] = file["layers"]
  keras_hub.open(paligemma2)


def opens_or_one_line(folder):
  try:
    checkpoint = keras_hub.open(folder)
    for name in sorted(checkpoint.leaves)[::5]:
      checkpoint.leaves[name].read()
  except ValueError as e:
    assert str(e).startswith(str(folder))
    assert "\n" not in str(e)
    return False
  return True


MANY = hypothesis.settings(
  max_examples=60,
  deadline=None,
  derandomize=True,
  suppress_health_check=list(hypothesis.HealthCheck),
)


@MANY
@hypothesis.given(st.floats(0, 1, exclude_max=True))
def test_files_cut_short(goldens, tmp_path_factory, part):
  folder = tmp_path_factory.mktemp("cut")
  shutil.copy(goldens / "paligemma2/config.json", folder)
  whole = (goldens / "paligemma2" / WEIGHTS).read_bytes()
  (folder / WEIGHTS).write_bytes(whole[: int(part * len(whole))])
  assert not opens_or_one_line(folder)


@MANY
@hypothesis.given(st.integers(0, 2**31), st.binary(min_size=1, max_size=9))
def test_files_with_wrong_bytes(goldens, tmp_path_factory, where, what):
  folder = tmp_path_factory.mktemp("wrong")
  shutil.copy(goldens / "paligemma2/config.json", folder)
  content = bytearray((goldens / "paligemma2" / WEIGHTS).read_bytes())
  where %= len(content)
  content[where : where + len(what)] = what
  (folder / WEIGHTS).write_bytes(content)
  opens_or_one_line(folder)
