"""One row for every parameter of every model, and what follows from it."""

import re

import jax
import pytest

from paligemma import init, parameters, quantization, tree, variants
from paligemma.lora.config import Lora
from paligemma.models import paligemma as paligemma_model
from paligemma.models import siglip, vit
from paligemma.training import sharding

RES, RANK = 28, 3
GEMMA = "llm/layers"
VIT = "img/Transformer/encoderblock"
MHA = f"{VIT}/MultiHeadDotProductAttention_0"
TXT = "txt/Encoder_0/encoderblock"
DEC = "dec/decoderblock"
TXT_MHA = f"{TXT}/MultiHeadDotProductAttention_0"

# Name -> axis from the last that is split over devices, axes over which the
# product sums if it is quantized, in float32 beside bfloat16, decays.
BY_HAND = {
  "llm/embedder/input_embedding": (-2, (-1,), False, True),
  "llm/final_norm/scale": (None, None, True, False),
  f"{GEMMA}/attn/q_einsum/w": (-3, (-2,), False, True),
  f"{GEMMA}/attn/kv_einsum/w": (-3, (-2,), False, True),
  f"{GEMMA}/attn/qkv_einsum/w": (-3, (-2,), False, True),
  f"{GEMMA}/attn/attn_vec_einsum/w": (-3, (-3, -2), False, True),
  f"{GEMMA}/attn/lora_q/a": (None, None, True, False),
  f"{GEMMA}/mlp/gating_einsum": (-1, (-2,), False, True),
  f"{GEMMA}/mlp/linear": (-2, (-2,), False, True),
  f"{GEMMA}/mlp/lora_down/b": (None, None, True, False),
  f"{GEMMA}/post_ffw_norm/scale": (None, None, True, False),
  "txt/Embed_0/embedding": (-2, (-1,), False, True),
  "txt/pos_embedding": (None, None, True, False),
  f"{TXT}/MlpBlock_0/Dense_0/kernel": (-1, (-2,), False, True),
  "txt/head/kernel": (None, (-2,), False, True),
  "dec/head/kernel": (-1, (-2,), False, True),
  "dec/tokens": (None, None, True, False),
  f"{DEC}/MultiHeadDotProductAttention_1/key/kernel": (-2, (-3,), False, True),
  "t": (None, None, True, False),
  "b": (None, None, True, False),
  f"{VIT}/LayerNorm_0/bias": (None, None, True, False),
  f"{MHA}/query/kernel": (-2, (-3,), False, True),
  f"{MHA}/query/bias": (-2, None, True, False),
  f"{MHA}/out/kernel": (-3, (-3, -2), False, True),
  f"{MHA}/out/bias": (None, None, True, False),
  f"{VIT}/MlpBlock_0/Dense_0/kernel": (-1, (-2,), False, True),
  f"{VIT}/MlpBlock_0/Dense_0/bias": (-1, None, True, False),
  f"{VIT}/MlpBlock_0/Dense_1/kernel": (-2, (-2,), False, True),
  "img/MAPHead_0/probe": (None, None, True, False),
  "img/MAPHead_0/MlpBlock_0/Dense_1/kernel": (-2, (-2,), False, True),
  "img/cls": (None, None, True, False),
  "img/embedding/kernel": (None, None, True, True),
  "img/head/kernel": (None, (-2,), False, True),
  "img/pos_embedding": (None, None, True, False),
  "img/pre_logits/kernel": (None, None, False, True),
}


def img_letters(model):
  """Letter -> size, as the fields of an image tower say."""
  return {
    "L": model.depth,
    "D": model.width,
    "F": model.mlp_dim,
    "N": model.num_heads,
    "H": model.width // model.num_heads,
    "P": (RES // model.patch_size) ** 2,
    "C": 3,
    "h": model.patch_size,
    "w": model.patch_size,
    "M": model.rep_size or model.width,
    "E": model.num_classes,
    "R": RANK,
  }


def txt_letters(model):
  return {
    "L": model.depth,
    "D": model.width,
    "F": model.mlp_dim,
    "N": model.num_heads,
    "H": model.width // model.num_heads,
    "V": model.vocab_size,
    "T": model.text_len,
    "E": model.num_classes,
    "R": RANK,
  }


def llm_letters(model):
  return {
    "L": model.depth,
    "D": model.width,
    "F": model.mlp_dim,
    "N": model.num_heads,
    "K": model.num_kv_heads,
    "H": model.head_dim,
    "V": model.vocab_size,
    "R": RANK,
  }


def assert_rows(shapes, sizes):
  for name, leaf in shapes.items():
    row = parameters.find(name)
    assert row is not None, name
    axes = row.axes if row.name == name else row.axes[1:]
    expected = [
      int(x) if x.isdigit() else sizes[row.tower].get(x, size)
      for x, size in zip(axes, leaf.shape, strict=True)
    ]
    assert leaf.shape == tuple(expected), (name, axes)


def paligemma_shapes(variant, *, scan=True, **llm):
  layout = dict(scan=scan, lora=Lora(RANK, targets=[".*"]))
  model = paligemma_model.make(variant, img=layout, llm=layout | llm)
  return model, init.shapes(model, RES)


def siglip_shapes(*, scan=True, variant="siglip_tiny", **img):
  lora = Lora(RANK, targets=["txt/.*"])
  layout = dict(scan=scan, lora=lora, num_classes=5)
  txt = dict(layout, pool_type="map")
  model = siglip.make(variant, img=dict(layout, **img), txt=txt)
  return model, init.shapes(model, RES)


def decoder_shapes(**dec):
  model = siglip.make("siglip_tiny", dec=dec, distill={})
  return model, init.shapes(model, RES)


def pooled_shapes(**fields):
  model = vit.make("mu/14", num_classes=7, **fields)
  image = jax.ShapeDtypeStruct((1, RES, RES, 3), "float32")
  params = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
  return model, tree.flatten({"img": params})


POOLED = (dict(pool_type="map", rep_size=5), dict(pool_type="tok"))


@pytest.mark.parametrize("scan", [True, False])
@pytest.mark.parametrize("variant", variants.PALIGEMMA)
def test_every_parameter_has_a_row_with_its_axes(variant, scan):
  model, shapes = paligemma_shapes(variant, scan=scan)
  sizes = {"img": img_letters(model.img), "llm": llm_letters(model.llm)}
  assert_rows(shapes, sizes)
  assert scan == (shapes.keys() <= parameters.ROWS.keys())


@pytest.mark.parametrize("scan", [True, False])
def test_also_of_siglip(scan):
  model, shapes = siglip_shapes(scan=scan)
  sizes = {"img": img_letters(model.img), "txt": txt_letters(model.txt)}
  assert_rows(shapes, sizes | {"t": {}, "b": {}})


@pytest.mark.parametrize("scan", [True, False])
def test_also_of_the_decoder_beside_a_siglip(scan):
  model, shapes = decoder_shapes(scan=scan, width=24, num_heads=2)
  ours = {name: x for name, x in shapes.items() if name.startswith("dec/")}
  sizes = {x: getattr(model.dec, x) for x in parameters.SIZES["txt"]}
  letters = txt_letters(model.txt.clone(**sizes))
  assert_rows(ours, {"dec": letters | {"W": model.img.width}})


def test_naflex_has_other_axes_for_two_parameters():
  _, shapes = siglip_shapes(variant="siglip2_b16_naflex")
  letters = {"Z": 3 * 16**2, "D": 768, "y": 16, "x": 16}
  for name, row in parameters.NAFLEX.items():
    assert shapes[name].shape == tuple(letters[axis] for axis in row.axes)
    usual = parameters.ROWS[name]
    assert (row.kind, row.tower) == (usual.kind, usual.tower)


@pytest.mark.parametrize("fields", POOLED)
def test_also_with_pooling(fields):
  model, shapes = pooled_shapes(**fields)
  assert_rows(shapes, {"img": img_letters(model)})


def test_every_row_is_of_some_model():
  models = [
    paligemma_shapes("paligemma2_tiny"),
    paligemma_shapes("paligemma_tiny", num_kv_heads=4),
    *(pooled_shapes(**fields) for fields in POOLED),
    siglip_shapes(),
    decoder_shapes(),
  ]
  assert set().union(*(shapes for _, shapes in models)) == set(parameters.ROWS)


@pytest.mark.parametrize("name", BY_HAND)
def test_what_follows_from_a_row(name):
  split, summed, in_float32, decays = BY_HAND[name]
  layers = re.sub(f"^({GEMMA})/", r"\1/12/", name)
  for one in (name, re.sub(f"^({VIT})/", r"\1_12/", layers)):
    assert quantization.summed_axes(one) == summed
    assert parameters.stays_float32(one) == in_float32
    assert (re.fullmatch(parameters.DECAYED, one) is not None) == decays
    mesh = sharding.make_mesh(data=1, model=8)
    leaf = jax.ShapeDtypeStruct(
      (8,) * len(parameters.find(one).axes), "float32"
    )
    found = sharding.infer({one: leaf}, mesh)[one].spec
    axes = [axis for axis, names in enumerate(found) if names == "model"]
    assert axes == ([] if split is None else [len(leaf.shape) + split])


def test_adapters_stand_in_the_module_of_their_matrix():
  found = parameters.TARGETS
  assert found == {
    "llm/attn/q": f"{GEMMA}/attn/lora_q",
    "llm/attn/k": f"{GEMMA}/attn/lora_k",
    "llm/attn/v": f"{GEMMA}/attn/lora_v",
    "llm/attn/out": f"{GEMMA}/attn/lora_out",
    "llm/mlp/gate": f"{GEMMA}/mlp/lora_gate",
    "llm/mlp/up": f"{GEMMA}/mlp/lora_up",
    "llm/mlp/down": f"{GEMMA}/mlp/lora_down",
    "img/attn/q": f"{MHA}/query/lora_q",
    "img/attn/k": f"{MHA}/key/lora_k",
    "img/attn/v": f"{MHA}/value/lora_v",
    "img/attn/out": f"{MHA}/out/lora_out",
    "img/mlp/up": f"{VIT}/MlpBlock_0/Dense_0/lora_up",
    "img/mlp/down": f"{VIT}/MlpBlock_0/Dense_1/lora_down",
    "img/head": "img/head/lora_head",
    "txt/attn/q": f"{TXT_MHA}/query/lora_q",
    "txt/attn/k": f"{TXT_MHA}/key/lora_k",
    "txt/attn/v": f"{TXT_MHA}/value/lora_v",
    "txt/attn/out": f"{TXT_MHA}/out/lora_out",
    "txt/mlp/up": f"{TXT}/MlpBlock_0/Dense_0/lora_up",
    "txt/mlp/down": f"{TXT}/MlpBlock_0/Dense_1/lora_down",
    "txt/head": "txt/head/lora_head",
  }
  for row in parameters.ROWS.values():
    assert len(row.targets) in (0, row.num_parts or 1)


def test_names_that_are_no_parameters():
  for name in ("llm/layers/x/mlp/linear", "mlp/linear", "llm/layers", "c", ""):
    assert parameters.find(name) is None


def test_modules_alone_and_scales_of_quantized_matrices_stay_in_float32():
  for name in ("scale", "norm/bias", f"{GEMMA}/mlp/linear/scale"):
    assert parameters.stays_float32(name)
  for name in ("w", "kernel", f"{GEMMA}/mlp/linear/int8"):
    assert not parameters.stays_float32(name)


def test_what_shapes_cannot_tell_of_a_decoder():
  assert parameters.STATED == (
    "norm_eps",
    "query_scale",
    "post_norms",
    "attn_logits_softcap",
    "final_logits_softcap",
    "sliding_window",
  )
