import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paligemma import tree
from paligemma.checkpoints import quantized_leaves
from paligemma.models import paligemma as paligemma_model

IN_FLOAT32 = {
  "img/Transformer/encoder_norm/bias",
  "img/Transformer/encoder_norm/scale",
  "img/Transformer/encoderblock/LayerNorm_0/bias",
  "img/Transformer/encoderblock/LayerNorm_0/scale",
  "img/Transformer/encoderblock/LayerNorm_1/bias",
  "img/Transformer/encoderblock/LayerNorm_1/scale",
  "img/Transformer/encoderblock/MlpBlock_0/Dense_0/bias",
  "img/Transformer/encoderblock/MlpBlock_0/Dense_1/bias",
  "img/embedding/bias",
  "img/embedding/kernel",
  "img/head/bias",
  "img/pos_embedding",
  "llm/final_norm/scale",
  "llm/layers/post_attention_norm/scale",
  "llm/layers/post_ffw_norm/scale",
  "llm/layers/pre_attention_norm/scale",
  "llm/layers/pre_ffw_norm/scale",
} | {
  f"img/Transformer/encoderblock/MultiHeadDotProductAttention_0/{part}/bias"
  for part in ("query", "key", "value", "out")
}


@pytest.fixture(scope="module")
def shapes():
  model = paligemma_model.make("paligemma2_3b")
  text = np.zeros((1, 2), np.int32)
  image = np.zeros((1, 224, 224, 3), np.float32)
  params = jax.eval_shape(model.init, jax.random.key(0), image, text, text)
  return tree.flatten(params["params"])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", jnp.bfloat16])
def test_matrices_alone_are_stored_in_half_precision(shapes, dtype):
  found = quantized_leaves.storage_dtypes(shapes, dtype)
  assert list(found) == list(shapes)
  assert {n for n, d in found.items() if d == jnp.float32} == IN_FLOAT32
  assert {d for n, d in found.items() if n not in IN_FLOAT32} == {
    jnp.dtype(dtype)
  }


def test_what_stays_in_float32_is_small(shapes):
  found = quantized_leaves.storage_dtypes(shapes, "bfloat16")
  sizes = {name: leaf.size for name, leaf in shapes.items()}
  kept = sum(sizes[name] for name in IN_FLOAT32)
  assert kept < 1e-3 * sum(sizes.values())
  assert found["llm/embedder/input_embedding"] == jnp.bfloat16


def test_float32_is_float32_throughout(shapes):
  assert set(quantized_leaves.storage_dtypes(shapes, "float32").values()) == {
    jnp.dtype("float32")
  }


def test_one_tower_alone_and_layers_apart():
  names = [
    "llm/layers/11/attn/q_einsum/w",
    "llm/layers/11/pre_ffw_norm/scale",
    "scale",
  ]
  found = quantized_leaves.storage_dtypes(names, "bfloat16")
  assert list(found.values()) == [jnp.bfloat16, jnp.float32, jnp.float32]


def test_adapters_stay_in_float32():
  name = "llm/layers/attn/lora_q/a"
  assert quantized_leaves.storage_dtypes([name], "float16") == {
    name: jnp.float32
  }
