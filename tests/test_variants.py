"""Every variant at full size: exact parameter counts, names and shapes."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import pytest

from paligemma import init, tree, variants
from paligemma.models import gemma, paligemma, siglip, vit

# Image towers at 224 pixels with patch 14 and 16, neither pooling nor head.
VIT = {
  "nano": (901_504, 916_864),
  "mu": (39_808, 43_648),
  "Ti": (5_500_992, 5_524_032),
  "S": (21_618_816, 21_664_896),
  "M": (38_262_272, 38_323_712),
  "B": (85_704_960, 85_797_120),
  "L": (303_176_704, 303_299_584),
  "So400m": (412_442_352, 412_580_592),
  "H": (630_762_240, 630_915_840),
  "g": (1_011_199_616, 1_011_368_576),
  "g-opt": (1_134_561_792, 1_134_746_112),
  "G": (1_842_772_352, 1_842_972_032),
  "G-opt": (1_663_302_144, 1_663_486_464),
  "e": (3_805_417_728, 3_805_632_768),
}
# As published, but for the tiny ones.
GEMMA = {
  "gemma_nano": 1_180_800,
  "gemma2_nano": 1_214_592,
  "gemma_2b": 2_506_172_416,
  "gemma_7b": 8_537_680_896,
  "vault_gemma_1b": 1_038_741_120,
  "gemma2_2b": 2_614_341_888,
  "gemma2_9b": 9_241_705_984,
  "gemma2_27b": 27_227_128_320,
}
# At 224 pixels: all parameters, those of the decoder's attention, and arrays.
PALIGEMMA = {
  "paligemma_tiny": (2_098_816, 163_840, 32),
  "paligemma2_tiny": (2_132_608, 196_608, 34),
  "paligemma_3b": (2_923_335_408, 169_869_312, 32),
  "paligemma2_3b": (3_032_094_960, 368_050_176, 34),
  "paligemma2_10b": (9_662_409_456, 1_849_688_064, 34),
  "paligemma2_28b": (27_650_192_112, 2_604_662_784, 34),
}
# All parameters. Those of transformers 5.23's SiglipModel, and Siglip2Model for
# NaFlex, of the published configurations.
SIGLIP = {
  "siglip_tiny": 2_110_210,
  "siglip_b16_224": 203_155_970,
  "siglip_b16_256": 203_202_050,
  "siglip_b16_384": 203_447_810,
  "siglip_b16_512": 203_791_874,
  "siglip_l16_256": 652_150_786,
  "siglip_l16_384": 652_478_466,
  "siglip_so400m14_224": 877_360_306,
  "siglip_so400m14_384": 877_960_498,
  "siglip_i18n_b16_256": 370_626_050,
  "siglip_i18n_so400m16_256": 1_128_758_962,
  "siglip2_b16_224": 375_187_970,
  "siglip2_b16_256": 375_234_050,
  "siglip2_b16_384": 375_479_810,
  "siglip2_b16_512": 375_823_874,
  "siglip2_b32_256": 376_856_066,
  "siglip2_l16_256": 881_526_786,
  "siglip2_l16_384": 881_854_466,
  "siglip2_l16_512": 882_313_218,
  "siglip2_so400m14_224": 1_135_463_602,
  "siglip2_so400m14_384": 1_136_008_498,
  "siglip2_so400m16_256": 1_135_670_962,
  "siglip2_so400m16_384": 1_136_039_602,
  "siglip2_so400m16_512": 1_136_555_698,
  "siglip2_g-opt16_256": 1_871_393_906,
  "siglip2_g-opt16_384": 1_871_885_426,
  "siglip2_b16_naflex": 375_234_050,
  "siglip2_so400m16_naflex": 1_135_670_962,
}
RESOLUTIONS = {224: 2_923_335_408, 448: 2_924_220_144, 896: 2_927_759_088}


def paligemma_shapes(variant, res=224, **overrides):
  """name -> shape of a PaliGemma."""
  model = paligemma.make(variant, **overrides)
  image = jnp.zeros((1, res, res, 3))
  text = jnp.zeros((1, 3), jnp.int32)
  return shapes(model.init, image, text, text)


def shapes(init, *inputs):
  variables = jax.eval_shape(init, jax.random.key(0), *inputs)
  flat = tree.flatten(variables["params"])
  return {name: leaf.shape for name, leaf in flat.items()}


def count(shapes):
  return sum(math.prod(shape) for shape in shapes.values())


@pytest.mark.parametrize(
  ("table", "counts"),
  [
    (variants.VIT, VIT),
    (variants.GEMMA, GEMMA),
    (variants.PALIGEMMA, PALIGEMMA),
    (variants.SIGLIP, SIGLIP),
  ],
  ids=["VIT", "GEMMA", "PALIGEMMA", "SIGLIP"],
)
def test_no_variant_lacks_a_count(table, counts):
  assert list(table) == list(counts)


@pytest.mark.parametrize("variant", VIT)
def test_vit(variant):
  image = jnp.zeros((1, 224, 224, 3))
  found = tuple(
    count(shapes(vit.make(f"{variant}/{patch}").init, image))
    for patch in (14, 16)
  )
  assert found == VIT[variant]


@pytest.mark.parametrize("variant", GEMMA)
def test_gemma(variant):
  def from_tokens_to_logits(model, tokens):
    x = model.embed_tokens(tokens)
    return model.compute_logits(model(x, tokens == 0, tokens)[0])

  model = gemma.make(variant)
  init = functools.partial(model.init, method=from_tokens_to_logits)
  found = shapes(init, jnp.zeros((1, 3), jnp.int32))
  assert count(found) == GEMMA[variant]


@pytest.mark.parametrize("variant", PALIGEMMA)
def test_paligemma(variant):
  found = paligemma_shapes(variant)
  attention = {k: v for k, v in found.items() if "llm/layers/attn/" in k}
  assert (count(found), count(attention), len(found)) == PALIGEMMA[variant]


@pytest.mark.parametrize("variant", SIGLIP)
def test_siglip(variant):
  res = variants.SIGLIP[variant].res
  found = init.shapes(siglip.make(variant), res)
  assert sum(math.prod(x.shape) for x in found.values()) == SIGLIP[variant]


@pytest.mark.parametrize("res", RESOLUTIONS)
def test_resolution_is_in_the_position_embedding_alone(res):
  found = paligemma_shapes("paligemma_3b", res)
  assert count(found) == RESOLUTIONS[res]
  assert found["img/pos_embedding"] == (1, (res // 14) ** 2, 1152)


# Names and shapes of the published checkpoints at 224 pixels.
BLOCK = "img/Transformer/encoderblock"
ATTENTION = f"{BLOCK}/MultiHeadDotProductAttention_0"
PALIGEMMA_3B = {
  "img/embedding/kernel": (14, 14, 3, 1152),
  "img/embedding/bias": (1152,),
  "img/pos_embedding": (1, 256, 1152),
  f"{BLOCK}/LayerNorm_0/scale": (27, 1152),
  f"{BLOCK}/LayerNorm_0/bias": (27, 1152),
  f"{BLOCK}/LayerNorm_1/scale": (27, 1152),
  f"{BLOCK}/LayerNorm_1/bias": (27, 1152),
  f"{ATTENTION}/query/kernel": (27, 1152, 16, 72),
  f"{ATTENTION}/query/bias": (27, 16, 72),
  f"{ATTENTION}/key/kernel": (27, 1152, 16, 72),
  f"{ATTENTION}/key/bias": (27, 16, 72),
  f"{ATTENTION}/value/kernel": (27, 1152, 16, 72),
  f"{ATTENTION}/value/bias": (27, 16, 72),
  f"{ATTENTION}/out/kernel": (27, 16, 72, 1152),
  f"{ATTENTION}/out/bias": (27, 1152),
  f"{BLOCK}/MlpBlock_0/Dense_0/kernel": (27, 1152, 4304),
  f"{BLOCK}/MlpBlock_0/Dense_0/bias": (27, 4304),
  f"{BLOCK}/MlpBlock_0/Dense_1/kernel": (27, 4304, 1152),
  f"{BLOCK}/MlpBlock_0/Dense_1/bias": (27, 1152),
  "img/Transformer/encoder_norm/scale": (1152,),
  "img/Transformer/encoder_norm/bias": (1152,),
  "img/head/kernel": (1152, 2048),
  "img/head/bias": (2048,),
  "llm/embedder/input_embedding": (257_152, 2048),
  "llm/layers/attn/q_einsum/w": (18, 8, 2048, 256),
  "llm/layers/attn/kv_einsum/w": (18, 2, 1, 2048, 256),
  "llm/layers/attn/attn_vec_einsum/w": (18, 8, 256, 2048),
  "llm/layers/mlp/gating_einsum": (18, 2, 2048, 16_384),
  "llm/layers/mlp/linear": (18, 16_384, 2048),
  "llm/layers/pre_attention_norm/scale": (18, 2048),
  "llm/layers/pre_ffw_norm/scale": (18, 2048),
  "llm/final_norm/scale": (2048,),
}
PALIGEMMA2_3B = PALIGEMMA_3B | {
  "img/head/kernel": (1152, 2304),
  "img/head/bias": (2304,),
  "llm/embedder/input_embedding": (257_152, 2304),
  "llm/layers/attn/q_einsum/w": (26, 8, 2304, 256),
  "llm/layers/attn/kv_einsum/w": (26, 2, 4, 2304, 256),
  "llm/layers/attn/attn_vec_einsum/w": (26, 8, 256, 2304),
  "llm/layers/mlp/gating_einsum": (26, 2, 2304, 9216),
  "llm/layers/mlp/linear": (26, 9216, 2304),
  "llm/layers/pre_attention_norm/scale": (26, 2304),
  "llm/layers/post_attention_norm/scale": (26, 2304),
  "llm/layers/pre_ffw_norm/scale": (26, 2304),
  "llm/layers/post_ffw_norm/scale": (26, 2304),
  "llm/final_norm/scale": (2304,),
}


@pytest.mark.parametrize(
  ("variant", "published"),
  [("paligemma_3b", PALIGEMMA_3B), ("paligemma2_3b", PALIGEMMA2_3B)],
)
def test_names_and_shapes_are_those_of_the_checkpoints(variant, published):
  assert tree.compare(published, paligemma_shapes(variant)) == []


@pytest.mark.parametrize("variant", ["paligemma_3b", "paligemma2_3b"])
def test_loop_names_every_layer(variant):
  loop = {"scan": False}
  looped = paligemma_shapes(variant, img=loop, llm=loop)
  regroup = {"encoderblock": [], "layers": []}
  for name, shape in looped.items():
    for group, layers in regroup.items():
      if match := re.fullmatch(rf"(.*{group})[_/](\d+)/(.*)", name):
        layers.append((int(match[2]), f"{match[1]}/{match[3]}", shape))
  stacked = paligemma_shapes(variant)
  expected = {
    group: {
      (i, name, shape[1:])
      for name, shape in stacked.items()
      if f"/{group}/" in name
      for i in range(shape[0])
    }
    for group in regroup
  }
  assert {group: set(layers) for group, layers in regroup.items()} == expected
  assert count(looped) == count(stacked)


def test_fields_that_arrays_cannot_tell():
  # Published configurations of Gemma 2; PaliGemma 2 runs without final cap
  # and window.
  for name in ("gemma2_2b", "gemma2_9b", "gemma2_27b"):
    sizes = variants.GEMMA[name]
    assert sizes.attn_logits_softcap == 50.0
    assert sizes.final_logits_softcap == 30.0
    assert sizes.sliding_window == 4096
    assert sizes.post_norms
  assert variants.GEMMA["gemma2_27b"].query_scale == "width_per_head"
  assert variants.GEMMA["gemma2_9b"].query_scale == "head_dim"
  for name in ("paligemma2_3b", "paligemma2_10b", "paligemma2_28b"):
    llm = paligemma.make(name).llm
    assert llm.final_logits_softcap is llm.sliding_window is None
    assert llm.attn_logits_softcap == 50.0


def test_a_decoder_alone_has_no_image_tower():
  model = paligemma.make("gemma2_2b", dtype="bfloat16", lora={"rank": 3})
  assert model.img is None
  assert model.llm.vocab_size == variants.GEMMA_VOCAB_SIZE
  assert (model.llm.dtype, model.llm.lora.rank) == ("bfloat16", 3)
  assert model.llm.final_logits_softcap == 30.0  # unlike in PaliGemma 2
  assert paligemma.make("gemma_nano", vocab_size=29).llm.vocab_size == 29


def test_unknown_variant_names_the_nearest():
  with pytest.raises(
    ValueError,
    match=r'unknown variant "paligemma_3g", expected one of: .*'
    r'Did you mean "paligemma_3b"\?$',
  ):
    paligemma.make("paligemma_3g")
