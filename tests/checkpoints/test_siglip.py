"""Checkpoints of SigLIP: npz and folders, in and out, and what is refused."""

import re

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import paligemma
from paligemma import init, tree, variants
from paligemma.checkpoints import fit, formats, npz, presets, safetensors
from paligemma.models import naflex, siglip, text_tower, vit
from paligemma.training import sharding
from tests.same_trees import assert_same

SIZES = {"width": 12, "depth": 2, "mlp_dim": 16, "num_heads": 3}
TXT = {**SIZES, "vocab_size": 31, "text_len": 5, "num_classes": 12}
IMG = {**SIZES, "patch_size": 2, "pool_type": "map"}
RES = 6


def build(img=None, txt=None, **fields):
  img, txt = {**IMG, **(img or {})}, {**TXT, **(txt or {})}
  tower = naflex.Model if "grid" in img else vit.Model
  return siglip.Model(tower(**img), text_tower.Model(**txt), **fields)


def draw(model, res=RES):
  rng = np.random.default_rng(0)
  return {
    name: rng.standard_normal(leaf.shape).astype(np.float32)
    for name, leaf in init.shapes(model, res).items()
  }


MODELS = {
  "scan": build(),
  "loop": build({"scan": False}, {"scan": False}),
  "one of each": build({"scan": False}),
  "map pooling of text": build(txt={"pool_type": "map"}),
  "heads of both": build({"num_classes": 7}, {"num_classes": 7}),
  "no head of text": build(txt={"num_classes": None}),
  "no bias": build(bias_init=None),
  "averaged patches": build({"pool_type": "gap"}),
  "class token": build({"pool_type": "tok"}),
  "naflex": build({"grid": 3}),
  "naflex, loop": build({"grid": 3, "scan": False}),
}


@pytest.mark.parametrize("which", MODELS)
def test_an_npz_of_big_vision_tells_its_model(which, tmp_path):
  model = MODELS[which]
  flat = draw(model)
  npz.save(tmp_path / "x.npz", flat)  # nothing is stated beside the arrays
  found, params = paligemma.load(tmp_path / "x.npz")
  assert found == model
  assert_same(tree.flatten(params), flat)


@pytest.mark.parametrize("pool", ["first", "mean", "max"])
def test_our_files_state_what_arrays_cannot_tell(pool, tmp_path):
  model = build({"pool_type": "gap"}, {"pool_type": pool})
  model = model.clone(metadata={"preprocessing": "hf"})
  flat = draw(model)
  for file, options in (("x.npz", {}), ("orbax", {"format": "orbax"})):
    paligemma.save(tmp_path / file, model, tree.unflatten(flat), **options)
    found, params = paligemma.load(tmp_path / file)
    assert found == model and found.metadata == model.metadata
    assert_same(tree.flatten(params), flat)


@pytest.mark.parametrize("which", ["scan", "loop", "naflex"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_folder_of_transformers_and_back(which, dtype, tmp_path):
  model = MODELS[which]
  flat = {n: x.astype(dtype) for n, x in draw(model).items()}
  paligemma.save(
    tmp_path / "hf", model, tree.unflatten(flat), format="huggingface"
  )
  fields = dict(scan=model.img.scan)
  found, params = paligemma.load(tmp_path / "hf", img=fields, txt=fields)
  towers = {n: x.clone(dtype=dtype) for n, x in model.towers.items()}
  assert found == model.clone(**towers)
  assert_same(tree.flatten(params), flat)


def test_dtypes_quantization_and_meshes(tmp_path):
  model = MODELS["scan"]
  npz.save(tmp_path / "x.npz", draw(model))
  mesh = sharding.make_mesh(data=8)
  found, params = paligemma.load(tmp_path / "x.npz", "bfloat16", mesh=mesh)
  assert found.img.dtype == found.txt.dtype == "bfloat16"
  assert params["txt"]["head"]["kernel"].dtype == ml_dtypes.bfloat16
  assert params["t"].dtype == params["txt"]["pos_embedding"].dtype == "float32"
  assert params["t"].sharding.mesh == mesh
  model, exact = paligemma.load(tmp_path / "x.npz")
  few, params = paligemma.load(tmp_path / "x.npz", quantize="int4")
  assert set(params["txt"]["Embed_0"]["embedding"]) == {"int8", "scale"}
  assert set(params["txt"]["head"]["kernel"]) == {"int4", "scale"}
  text = np.random.default_rng(0).integers(0, 31, (3, 5))
  one = model.apply({"params": exact}, None, text)[1]
  two = few.apply({"params": params}, None, text)[1]
  assert (np.sum(one * two, axis=1) > 0.9).all()
  paligemma.save(tmp_path / "q.npz", few, params)
  again, back = paligemma.load(tmp_path / "q.npz")
  assert again == few
  assert_same(tree.flatten(back), tree.flatten(params))


def test_another_resolution(tmp_path):
  model = MODELS["scan"]
  npz.save(tmp_path / "x.npz", draw(model))
  _, params = paligemma.load(tmp_path / "x.npz", res=8)
  assert params["img"]["pos_embedding"].shape == (1, 16, 12)
  npz.save(tmp_path / "y.npz", draw(MODELS["naflex"]))
  with pytest.raises(ValueError, match=r"y\.npz: is a NaFlex, .* res is 8"):
    paligemma.load(tmp_path / "y.npz", res=8)


def test_a_naflex_does_not_fit_a_tower_of_one_resolution(tmp_path):
  npz.save(tmp_path / "x.npz", draw(MODELS["naflex"]))
  with pytest.raises(
    ValueError,
    match=r"x\.npz: does not fit the model, 2 leaves differ: .*"
    r"img/pos_embedding: found shape \(3, 3, 12\), expected \(1, 9, 12\)",
  ):
    fit.fit(formats.open(tmp_path / "x.npz"), init.shapes(MODELS["scan"], RES))


def test_two_position_embeddings_of_an_old_text_tower_are_added(tmp_path):
  flat = draw(MODELS["scan"])
  second = np.full_like(flat["txt/pos_embedding"], 0.5)
  npz.save(tmp_path / "x.npz", flat | {"txt/Encoder_0/pos_embedding": second})
  _, params = paligemma.load(tmp_path / "x.npz")
  expected = flat["txt/pos_embedding"] + second
  np.testing.assert_array_equal(params["txt"]["pos_embedding"], expected)
  npz.save(
    tmp_path / "y.npz", flat | {"txt/Encoder_0/pos_embedding": second[:, 1:]}
  )
  with pytest.raises(ValueError, match="which it is added to"):
    paligemma.load(tmp_path / "y.npz")


def test_one_tower_alone(tmp_path):
  flat = draw(MODELS["scan"])
  for tower, message in (
    (
      "img",
      'holds no decoder; combine it with one: {"img": path, "llm": path}',
    ),
    ("txt", "holds the text tower of a SigLIP alone"),
  ):
    alone = {n: x for n, x in flat.items() if n.startswith(f"{tower}/")}
    npz.save(tmp_path / "x.npz", alone)
    with pytest.raises(ValueError, match=re.escape(message)) as error:
      paligemma.load(tmp_path / "x.npz")
    assert "\n" not in str(error.value)


def test_fields_of_other_models(tmp_path):
  npz.save(tmp_path / "x.npz", draw(MODELS["scan"]))
  for given, message in (
    ({"llm": {"norm_eps": 1e-5}}, r"has no decoder to give \['norm_eps'\]"),
    ({"txt": {"pooltype": "map"}}, 'text tower field "pooltype".*"pool_type"'),
  ):
    with pytest.raises(ValueError, match=message):
      paligemma.load(tmp_path / "x.npz", **given)
  with pytest.raises(ValueError, match="has no text tower to give"):
    paligemma.load("paligemma/assets/tiny.npz", txt={"pool_type": "map"})


@pytest.mark.parametrize(
  ("which", "message"),
  [
    ("map pooling of text", "txt pool_type is 'map', expected 'last'"),
    ("heads of both", "img num_classes is 7, expected None"),
    ("averaged patches", "img pool_type is 'gap', expected 'map'"),
    ("no bias", "there is no bias b of the logits, expected one"),
  ],
)
def test_what_transformers_lacks(which, message, tmp_path):
  model = MODELS[which]
  with pytest.raises(ValueError, match=message):
    paligemma.save(
      tmp_path / "x", model, tree.unflatten(draw(model)), format="huggingface"
    )
  assert not (tmp_path / "x").exists()


def test_a_naflex_tower_is_none_for_a_paligemma(tmp_path):
  npz.save(tmp_path / "x.npz", draw(MODELS["naflex"]))
  paths = {"img": tmp_path / "x.npz", "llm": "paligemma/assets/tiny.npz"}
  with pytest.raises(ValueError, match=r"x\.npz: is a NaFlex image tower"):
    paligemma.load(paths)


def test_a_siglip_gives_its_image_tower_to_a_paligemma(tmp_path):
  model = MODELS["scan"]
  flat = draw(model)
  npz.save(tmp_path / "x.npz", flat)
  paligemma.save(
    tmp_path / "hf", model, tree.unflatten(flat), format="huggingface"
  )
  for path in ("x.npz", "hf"):
    paths = {"img": tmp_path / path, "llm": "paligemma/assets/tiny.npz"}
    found, params = paligemma.load(paths)
    assert found.img.pool_type == "none" and found.img.num_classes == 128
    found = tree.flatten({"img": params["img"]})
    assert not any("MAPHead" in name for name in found)
    for name, array in found.items():
      if not name.startswith("img/head"):
        np.testing.assert_array_equal(array, flat[name], err_msg=name)


@pytest.mark.parametrize(
  ("name", "stem"),
  [
    ("siglip_b16_224", "webli_en_b16_224_63724782"),
    ("siglip_so400m14_384", "siglip-so400m-patch14-384"),
    ("siglip_i18n_b16_256", "siglip-base-patch16-256-multilingual"),
    ("siglip_i18n_so400m16_256", "webli_i18n_so400m_16_256_78061115"),
    ("siglip2_g-opt16_384", "siglip2-giant-opt-patch16-384-jax"),
    ("siglip2_b16_naflex", "siglip2-base-patch16-naflex"),
  ],
)
def test_presets_have_the_names_of_their_hubs(name, stem):
  assert presets.get(stem) is presets.get(name)
  assert presets.get(name).variant == name


def test_every_published_siglip_is_a_preset(monkeypatch):
  monkeypatch.delenv(presets.DIRECTORY_VARIABLE, raising=False)
  names = {n for n in presets.PRESETS if n.startswith("siglip")}
  assert names == set(variants.SIGLIP) - {"siglip_tiny"}


def test_presets_without_weights():
  model, params = paligemma.load(
    "siglip2_b16_naflex", load_weights=False, img=SIZES, txt=TXT
  )
  assert model.img == naflex.Model(patch_size=16, grid=16, **SIZES)
  assert params["img"]["pos_embedding"].shape == (16, 16, 12)
  np.testing.assert_array_equal(params["b"], [-10])
  model, params = paligemma.load(
    "siglip-so400m-patch14-384", load_weights=False, img=SIZES, txt=TXT
  )
  assert params["img"]["pos_embedding"].shape == (1, 27**2, 12)
  assert siglip.resolution(model, params) == 384


@pytest.mark.parametrize("which", ["scan", "naflex, loop", "heads of both"])
def test_adapters(which, tmp_path):
  model = MODELS[which]
  params = jax.tree.map(jnp.asarray, tree.unflatten(draw(model)))
  text = np.random.default_rng(0).integers(0, 31, (3, 5))

  def embed(model, params):
    return model.apply({"params": params}, None, text)[1]

  with pytest.raises(ValueError, match=r'"llm/\.\*": the model has no such t'):
    paligemma.enable_lora(model, params)
  adapted, both = paligemma.enable_lora(
    model, params, rank=3, targets=["img/.*", "txt/.*"]
  )
  np.testing.assert_array_equal(embed(adapted, both), embed(model, params))
  both = jax.tree.map(lambda x: x + 0.01, both)
  paligemma.save_adapter(tmp_path / "x.safetensors", adapted, both)
  base = {
    name: x for name, x in tree.flatten(both).items() if "/lora_" not in name
  }
  found, again = paligemma.load_adapter(
    tmp_path / "x.safetensors", model, tree.unflatten(base)
  )
  assert found == adapted
  assert_same(tree.flatten(again), tree.flatten(both))
  merged, alone = paligemma.merge_lora(adapted, both)
  assert merged == model and alone.keys() == params.keys()
  np.testing.assert_allclose(
    embed(merged, alone), embed(adapted, both), atol=1e-5
  )
  if model.img.num_classes:
    with pytest.raises(ValueError, match="SigLIP has no img/head, of which"):
      paligemma.save_adapter(tmp_path / "x", adapted, both)
    return
  paligemma.save_adapter(tmp_path / "x", adapted, both)
  found, again = paligemma.load_adapter(
    tmp_path / "x", model, tree.unflatten(base)
  )
  assert found.img.lora.rank == 3
  assert_same(tree.flatten(again), tree.flatten(both))
  names = safetensors.open(tmp_path / "x/adapter_model.safetensors").keys()
  stem = "base_model.model.text_model"
  assert f"{stem}.encoder.layers.1.mlp.fc2.lora_A.weight" in names
  assert f"{stem}.head.lora_B.weight" in names
  for tower, other in (("img", "txt"), ("txt", "img")):
    alone = tmp_path / tower
    one, its = paligemma.enable_lora(model, params, targets=[f"{tower}/attn/q"])
    paligemma.save_adapter(alone, one, its)
    there = (alone / "adapter_model.safetensors").read_bytes()
    assert {"img": b"vision_model", "txt": b"text_model"}[tower] in there
    assert {"img": b"vision_model", "txt": b"text_model"}[other] not in there
