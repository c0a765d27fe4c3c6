"""Sizes come out of shapes alone, whatever the layout."""

import numpy as np
import pytest

from paligemma.checkpoints import infer

ATTENTION = "img/Transformer/encoderblock/MultiHeadDotProductAttention_0"

# facts of the published PaliGemma 3B at 224 pixels, and PaliGemma 2 3B.
PALIGEMMA = {
  "img/embedding/kernel": (14, 14, 3, 1152),
  "img/pos_embedding": (1, 256, 1152),
  "img/Transformer/encoderblock/MlpBlock_0/Dense_0/kernel": (27, 1152, 4304),
  f"{ATTENTION}/query/kernel": (27, 1152, 16, 72),
  "llm/embedder/input_embedding": (257152, 2048),
  "llm/layers/attn/q_einsum/w": (18, 8, 2048, 256),
  "llm/layers/attn/kv_einsum/w": (18, 2, 1, 2048, 256),
  "llm/layers/mlp/linear": (18, 16384, 2048),
}
PALIGEMMA2 = PALIGEMMA | {
  "img/pos_embedding": (1, 4096, 1152),
  "llm/embedder/input_embedding": (257152, 2304),
  "llm/layers/attn/q_einsum/w": (26, 8, 2304, 256),
  "llm/layers/attn/kv_einsum/w": (26, 2, 4, 2304, 256),
  "llm/layers/mlp/linear": (26, 9216, 2304),
  "llm/layers/post_attention_norm/scale": (26, 2304),
}
IMG = {
  "width": 1152,
  "depth": 27,
  "mlp_dim": 4304,
  "num_heads": 16,
  "patch_size": 14,
  "res": 224,
  "scan": True,
}
LLM = {
  "width": 2048,
  "depth": 18,
  "mlp_dim": 16384,
  "num_heads": 8,
  "num_kv_heads": 1,
  "head_dim": 256,
  "vocab_size": 257152,
  "post_norms": False,
  "scan": True,
}


def without(flat, *names):
  return {name: x for name, x in flat.items() if name not in names}


def loop_shapes(stacked):
  """The names and shapes of loop layout, written out independently."""
  loop = {}
  for name, shape in stacked.items():
    if "/encoderblock/" in name:
      template = name.replace("/encoderblock/", "/encoderblock_{}/")
    elif "/layers/" in name:
      template = name.replace("/layers/", "/layers/{}/")
    else:
      loop[name] = shape
      continue
    for i in range(shape[0]):
      loop[template.format(i)] = shape[1:]
  return loop


def test_paligemma():
  assert infer.sizes(PALIGEMMA) == {"img": IMG, "llm": LLM}


def test_paligemma2():
  found = infer.sizes(PALIGEMMA2)
  assert found["img"] == IMG | {"res": 896}
  assert found["llm"] == LLM | {
    "width": 2304,
    "depth": 26,
    "mlp_dim": 9216,
    "num_kv_heads": 4,
    "post_norms": True,
  }


def test_arrays_do_as_well_as_shapes():
  arrays = {n: np.broadcast_to(0, shape) for n, shape in PALIGEMMA.items()}
  assert infer.sizes(arrays) == infer.sizes(PALIGEMMA)


def test_loop_layout():
  found = infer.sizes(loop_shapes(PALIGEMMA2))
  expected = infer.sizes(PALIGEMMA2)
  assert found["img"] == expected["img"] | {"scan": False}
  assert found["llm"] == expected["llm"] | {"scan": False}


def test_one_tower_stacked_the_other_not():
  mixed = loop_shapes(PALIGEMMA)
  mixed = {n: x for n, x in mixed.items() if n.startswith("img/")}
  mixed |= {n: x for n, x in PALIGEMMA.items() if n.startswith("llm/")}
  found = infer.sizes(mixed)
  assert (found["img"]["scan"], found["llm"]["scan"]) == (False, True)


def test_fused_qkv():
  fused = without(
    PALIGEMMA, "llm/layers/attn/q_einsum/w", "llm/layers/attn/kv_einsum/w"
  ) | {"llm/layers/attn/qkv_einsum/w": (18, 3, 16, 2048, 256)}
  expected = LLM | {"num_heads": 16, "num_kv_heads": 16}
  assert infer.sizes(fused)["llm"] == expected


def test_no_learned_positions():
  found = infer.sizes(without(PALIGEMMA, "img/pos_embedding"))
  assert found["img"] == IMG | {"res": None}


def test_everything_missing_is_listed():
  flat = without(
    PALIGEMMA, "llm/layers/attn/q_einsum/w", "llm/layers/mlp/linear"
  ) | {"llm/layers/mlp/linears": (18, 16384, 2048)}
  message = (
    "missing: llm/layers/mlp/linear, llm/layers/attn/q_einsum/w. "
    'Did you mean "llm/layers/mlp/linears"?'
  )
  with pytest.raises(ValueError) as e:
    infer.sizes(flat)
  assert str(e.value).endswith(message)


def test_what_tells_the_sizes_of_a_text_tower():
  with pytest.raises(ValueError) as e:
    infer.sizes({"txt/head/kernel": (3, 3)})
  block = "txt/Encoder_0/encoderblock"
  assert str(e.value) == (
    f"cannot tell the sizes of the model, missing: {block}/MlpBlock_0/Dense_0/"
    f"kernel, {block}/MultiHeadDotProductAttention_0/query/kernel, "
    "txt/Embed_0/embedding, txt/pos_embedding."
  )


@pytest.mark.parametrize("tower", ["img", "llm"])
def test_one_tower_alone(tower):
  alone = {n: x for n, x in PALIGEMMA.items() if n.startswith(tower)}
  assert infer.sizes(alone) == {tower: infer.sizes(PALIGEMMA)[tower]}
  message = 'no parameters under "img/", "txt/" or "llm/", found: text'
  with pytest.raises(ValueError, match=message):
    infer.sizes({"text/w": (3,)})


@pytest.mark.parametrize(
  ("name", "shape", "message"),
  [
    ("img/embedding/kernel", (14, 16, 3, 1152), "expected a square patch"),
    ("img/pos_embedding", (1, 255, 1152), "255 positions, expected a square"),
    ("llm/layers/mlp/linear", (5, 7), r"shape \(5, 7\), expected \(L, F, D\)"),
  ],
)
def test_odd_shapes(name, shape, message):
  with pytest.raises(ValueError, match=f"{name}: .*{message}"):
    infer.sizes(PALIGEMMA | {name: shape})


def test_layers_that_differ():
  loop = loop_shapes(PALIGEMMA)
  odd = loop | {"llm/layers/3/mlp/linear": (5, 7)}
  with pytest.raises(ValueError, match="llm/layers/mlp/linear: layers differ"):
    infer.sizes(odd)
  short = without(loop, "llm/layers/3/mlp/linear")
  message = "llm/layers/3/mlp/linear: missing, there are 18 layers"
  with pytest.raises(ValueError, match=message):
    infer.sizes(short)
