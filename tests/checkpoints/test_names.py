"""Tensors of another program, by a table of names."""

import numpy as np
import pytest

from paligemma.checkpoints import names

TABLE = (
  *names.under(
    "llm/layers/",
    "blocks.*.",
    (
      ("attn/q_einsum", "(N H) D", "q"),
      ("attn/kv_einsum", "(K H) D", "k", "v"),
      ("attn/qkv_einsum", "(N H) D", "q", "k", "v"),
      ("post_ffw_norm", "D", "norm"),
    ),
  ),
  ("llm/embedder/input_embedding", "V D", "table"),
)
LLM = {"L": 2, "D": 3, "N": 4, "K": 1, "H": 5, "V": 7, "F": 11}
IMG = {"L": 1, "D": 6, "N": 2, "H": 3, "P": 4, "h": 2, "w": 2, "C": 3}


def spell(name, layer, is_bias):
  return f"{name.replace('*', str(layer))}{' bias' if is_bias else ''}"


def listed(table, sizes, **options):
  return [
    (x.key, x.leaf.rpartition("/")[2], x.at, x.their_shape, x.our_shape)
    for x in names.entries(table, sizes, spell, **options)
  ]


def test_layers_and_parts():
  assert listed(TABLE, LLM) == [
    ("blocks.0.q", "w", (0,), (20, 3), (4, 3, 5)),
    ("blocks.1.q", "w", (1,), (20, 3), (4, 3, 5)),
    ("blocks.0.k", "w", (0, 0), (5, 3), (1, 3, 5)),
    ("blocks.0.v", "w", (0, 1), (5, 3), (1, 3, 5)),
    ("blocks.1.k", "w", (1, 0), (5, 3), (1, 3, 5)),
    ("blocks.1.v", "w", (1, 1), (5, 3), (1, 3, 5)),
    ("table", "input_embedding", (), (7, 3), (7, 3)),
  ]


def test_as_many_key_heads_as_heads_are_fused_and_post_norms_are_asked_for():
  found = listed(TABLE, LLM | {"K": 4, "L": 1}, when=["post_norms"])
  assert found == [
    ("blocks.0.q", "w", (0, 0), (20, 3), (4, 3, 5)),
    ("blocks.0.k", "w", (0, 1), (20, 3), (4, 3, 5)),
    ("blocks.0.v", "w", (0, 2), (20, 3), (4, 3, 5)),
    ("blocks.0.norm", "scale", (0,), (3,), (3,)),
    ("table", "input_embedding", (), (7, 3), (7, 3)),
  ]


@pytest.mark.parametrize(("axes", "output"), [("(N H) D", 0), ("D (N H)", -1)])
def test_a_bias_has_the_axis_of_the_outputs(axes, output):
  stem = "img/Transformer/encoderblock/MultiHeadDotProductAttention_0/query"
  sizes = IMG | {"N": 1, "H": 5}
  kernel, bias = listed([(stem, axes, "q")], sizes, output_axis=output)
  assert kernel[4] == (6, 1, 5)
  assert sorted(kernel[3]) == [5, 6]
  assert bias == ("q bias", "bias", (0,), (5,), (1, 5))


def test_an_axis_of_length_one_is_a_part():
  table = [("img/pos_embedding", "P D", "positions")]
  assert listed(table, IMG) == [
    ("positions", "pos_embedding", (0,), (4, 6), (4, 6))
  ]


def test_there_and_back():
  tensors = {
    x.key: np.arange(x.their_shape[0] * 3).reshape(x.their_shape) + i * 1000.0
    for i, x in enumerate(names.entries(TABLE, LLM, spell))
  }
  entries = list(names.entries(TABLE, LLM, spell))
  leaves = names.leaves(entries, tensors)
  assert {n: x.shape for n, x in leaves.items()} == names.leaf_shapes(entries)
  kv = leaves["llm/layers/attn/kv_einsum/w"].read()
  assert kv.shape == (2, 2, 1, 3, 5)
  for head_dim in range(5):
    for width in range(3):
      there = tensors["blocks.1.v"][head_dim, width]
      assert kv[1, 1, 0, width, head_dim] == there
  for x in entries:
    part = leaves[x.leaf].read()[x.at]
    np.testing.assert_array_equal(x.to_theirs(part), tensors[x.key])


def test_sizes_of_a_tower():
  fields = dict(width=6, depth=1, mlp_dim=9, num_heads=2, patch_size=14)
  found = names.letters("img", fields)
  assert found == {
    **dict(D=6, L=1, F=9, N=2, h=14, w=14, H=3, M=6, C=3, Z=588),
    **dict(E=None, y=None, x=None),
  }
  fields = dict(fields, vocab_size=31, text_len=5, num_classes=7)
  found = names.letters("txt", fields)
  assert found == dict(D=6, L=1, F=9, N=2, H=3, V=31, T=5, E=7)
