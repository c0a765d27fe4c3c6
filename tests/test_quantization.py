"""Rounding to 8 and 4 bits, against NumPy and what the model has."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paligemma import init, quantization
from paligemma.models import paligemma as paligemma_model

BLOCK = "img/Transformer/encoderblock"
ATTENTION = f"{BLOCK}/MultiHeadDotProductAttention_0"
# Name -> shape of the stack, and the axes that products sum over, outermost
# first, as the einsums of the models say.
MATRICES = {
  "llm/embedder/input_embedding": ((13, 130), [1]),
  "llm/layers/attn/q_einsum/w": ((3, 5, 7, 6), [2]),
  "llm/layers/attn/kv_einsum/w": ((3, 2, 1, 11, 6), [3]),
  "llm/layers/attn/qkv_einsum/w": ((2, 3, 5, 7, 4), [3]),
  "llm/layers/attn/attn_vec_einsum/w": ((3, 5, 7, 22), [1, 2]),
  "llm/layers/mlp/gating_einsum": ((3, 2, 192, 10), [2]),
  "llm/layers/mlp/linear": ((3, 11, 14), [1]),
  f"{ATTENTION}/query/kernel": ((3, 7, 5, 6), [1]),
  f"{ATTENTION}/key/kernel": ((2, 22, 5, 4), [1]),
  f"{ATTENTION}/value/kernel": ((2, 13, 3, 4), [1]),
  f"{ATTENTION}/out/kernel": ((3, 5, 7, 22), [1, 2]),
  f"{BLOCK}/MlpBlock_0/Dense_0/kernel": ((3, 35, 22), [1]),
  f"{BLOCK}/MlpBlock_0/Dense_1/kernel": ((3, 34, 14), [1]),
  "img/head/kernel": ((66, 10), [0]),
}
# Largest divisor up to 64 of the length of the last axis that is summed over.
TILES = {130: 26, 192: 64, 35: 35, 34: 34, 66: 33, 7: 7, 11: 11, 22: 22, 13: 13}

# arXiv:2305.14314, appendix E.
NF4 = [
  -1.0,
  -0.6961928009986877,
  -0.5250730514526367,
  -0.39491748809814453,
  -0.28444138169288635,
  -0.18477343022823334,
  -0.09105003625154495,
  0.0,
  0.07958029955625534,
  0.16093020141124725,
  0.24611230194568634,
  0.33791524171829224,
  0.44070982933044434,
  0.5626170039176941,
  0.7229568362236023,
  1.0,
]


def matrix(name):
  shape, axes = MATRICES[name]
  rng = np.random.default_rng(len(name))
  x = rng.standard_normal(shape).astype(np.float32)
  # Outputs of very different sizes: a scale that they shared would show.
  outputs = [1 if i in axes else size for i, size in enumerate(shape)]
  return x * np.exp(2 * rng.standard_normal(outputs)).astype(np.float32)


def groups(name, kind):
  """Index tuples of the numbers that share a scale."""
  shape, axes = MATRICES[name]
  lengths = [1] * len(shape)
  if kind == "int8":
    for axis in axes:
      lengths[axis] = shape[axis]
  else:
    lengths[axes[-1]] = TILES[shape[axes[-1]]]
  counts = [n // length for n, length in zip(shape, lengths, strict=True)]
  for at in np.ndindex(*counts):
    yield (
      at,
      tuple(
        slice(i * length, (i + 1) * length)
        for i, length in zip(at, lengths, strict=True)
      ),
    )


def reference(name, x, kind):
  """Scales by index, and what the matrix becomes."""
  scales, rounded = {}, np.empty_like(x)
  for at, where in groups(name, kind):
    largest = np.abs(x[where]).max()
    if kind == "nf4":
      scales[at] = largest
      steps = np.abs(x[where][..., None] / largest - np.array(NF4, np.float32))
      rounded[where] = np.array(NF4, np.float32)[steps.argmin(-1)] * largest
    else:
      top = {"int8": 127, "int4": 7}[kind]
      scales[at] = largest / (top + 0.5)
      values = np.clip(np.rint(x[where] / scales[at]), -top - 1, top)
      rounded[where] = values * scales[at]
  return scales, rounded


@pytest.mark.parametrize("kind", quantization.KINDS)
@pytest.mark.parametrize("name", MATRICES)
def test_rounds_as_numpy(name, kind):
  x = matrix(name)
  found = quantization.quantize(name, x, kind)
  scales, expected = reference(name, x, kind)
  assert found["scale"].dtype == np.float32
  assert found["scale"].size == len(scales)
  for at, scale in scales.items():
    np.testing.assert_allclose(found["scale"][at], scale, rtol=1e-6)
  back = np.asarray(quantization.dequantize(found, np.float32))
  far = ~np.isclose(back, expected, rtol=1e-5, atol=0)
  for at, where in groups(name, kind):
    # In the middle between two, as the largest of all is, it may go either way.
    levels = np.array(NF4) if kind == "nf4" else np.arange(-128, 128)
    middles = (levels[1:] + levels[:-1]) / 2
    ratios = (x[where] / scales[at])[far[where]]
    nearest = np.abs(ratios[:, None] - middles).min(-1)
    assert np.all(nearest < 1e-3), (at, ratios)
  step = {"int8": 0.5, "int4": 0.5, "nf4": (1 - 0.6961928) / 2}[kind]
  for at, where in groups(name, kind):
    error = np.abs(back - x)[where].max()
    assert error <= step * scales[at] * (1 + 1e-4), (at, error)


@pytest.mark.parametrize("kind", quantization.KINDS)
@pytest.mark.parametrize("name", MATRICES)
def test_shapes_are_those_of_the_arrays(name, kind):
  x = matrix(name)
  found = quantization.quantize(name, x, kind)
  expected = quantization.shapes(name, x.shape, kind)
  assert jax.eval_shape(lambda: found) == expected
  assert quantization.kind_of(found) == kind
  assert quantization.full_shape(kind, found[kind]) == x.shape
  for last in (kind, "scale"):
    assert quantization.split(f"{name}/{last}") == (name, last)


@pytest.mark.parametrize("kind", quantization.KINDS)
@pytest.mark.parametrize(
  "name", [n for n in MATRICES if len(MATRICES[n][0]) > 3]
)
def test_a_layer_by_itself_is_that_of_the_stack(name, kind):
  x = matrix(name)
  stack = quantization.quantize(name, x, kind)
  alone = name.replace("layers/", "layers/1/")
  alone = alone.replace("encoderblock/", "encoderblock_1/")
  one = quantization.quantize(alone, x[1], kind)
  for part, array in one.items():
    np.testing.assert_array_equal(array, stack[part][1])


def test_two_numbers_lie_in_a_byte():
  name = "llm/embedder/input_embedding"
  x = np.array([[7.5, -6, 1, 0, 2, -3, -1, 4]], np.float32)
  found = quantization.quantize(name, x, "int4")
  assert found["int4"].dtype == np.uint8
  # Two's complement, the second half of the row in the upper four bits.
  np.testing.assert_array_equal(found["int4"], [[0x27, 0xDA, 0xF1, 0x40]])
  np.testing.assert_array_equal(found["scale"], [[1.0]])


@pytest.mark.parametrize("kind", quantization.KINDS)
def test_zeros_stay_zeros(kind):
  name = "llm/layers/mlp/linear"
  found = quantization.quantize(name, np.zeros((2, 3, 4), np.float32), kind)
  assert np.all(found["scale"] > 0)
  back = quantization.dequantize(found, np.float32)
  np.testing.assert_array_equal(back, np.zeros((2, 3, 4)))


@pytest.mark.parametrize("kind", quantization.KINDS)
def test_rounds_from_float32_whatever_the_dtype(kind):
  name = "llm/layers/mlp/linear"
  half = matrix(name).astype(jnp.bfloat16)
  found = quantization.quantize(name, half, kind)
  expected = quantization.quantize(name, half.astype(np.float32), kind)
  jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize("scan", [True, False])
@pytest.mark.parametrize("variant", ["paligemma_3b", "paligemma2_28b"])
def test_every_matrix_and_nothing_else(variant, scan):
  layout = dict(scan=scan)
  model = paligemma_model.make(variant, img=layout, llm=layout)
  shapes = init.shapes(model, 224)
  kept = {n for n in shapes if quantization.summed_axes(n) is None}
  ends = ("/bias", "norm/scale", "LayerNorm_0/scale", "LayerNorm_1/scale")
  others = {n for n in shapes if n.endswith(ends)}
  assert kept == others | {"img/embedding/kernel", "img/pos_embedding"}
  rounded = sum(shapes[n].size for n in shapes.keys() - kept)
  assert rounded / sum(x.size for x in shapes.values()) > 0.998
  for name in shapes.keys() - kept:
    quantization.shapes(name, shapes[name].shape, "int4")


def test_a_norm_is_no_half_of_a_matrix():
  for name in (
    "llm/final_norm/scale",
    "img/pos_embedding",
    "int8",
    "head/int8",
  ):
    assert quantization.split(name) is None
  assert quantization.split("img/head/kernel/int8") == (
    "img/head/kernel",
    "int8",
  )


def test_errors():
  name = "llm/layers/mlp/linear"
  with pytest.raises(
    ValueError, match=r'unknown quantization "int5", expected'
  ):
    quantization.shapes(name, (2, 3, 4), "int5")
  message = (
    r"llm/layers/mlp/linear: shape \(2, 3, 5\), nf4 needs a last axis of"
  )
  with pytest.raises(ValueError, match=message):
    quantization.shapes(name, (2, 3, 5), "nf4")
  assert quantization.shapes(name, (2, 3, 5), "int8")["int8"].shape == (2, 3, 5)
