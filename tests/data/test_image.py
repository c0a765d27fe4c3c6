"""Resizing against its definition, and the ways to the model's input."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paligemma.data import image as image_lib

GOLDENS = pathlib.Path(__file__).parents[1] / "goldens" / "preprocessing"
TOLERANCE = 1e-3  # of 255
SIZES = [  # (H, W) -> (height, width): down, up, one of each, extreme, equal
  ((31, 43), (7, 11)),
  ((7, 11), (31, 43)),
  ((29, 5), (13, 17)),
  ((1, 101), (3, 1)),
  ((13, 11), (13, 11)),
]


def pixels(height, width, seed=0):
  rng = np.random.default_rng(seed)
  return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


def triangle(x):
  return max(0.0, 1.0 - abs(x))


def keys(x, a=-0.5):
  x = abs(x)
  if x < 1:
    return (a + 2) * x**3 - (a + 3) * x**2 + 1
  if x < 2:
    return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
  return 0.0


def slow_axis(values, new_length, kernel, antialias):
  """Filters the first axis, one weight at a time, from the definition."""
  length = len(values)
  scale = length / new_length
  widen = max(1.0, scale) if antialias else 1.0
  result = []
  for i in range(new_length):
    centre = (i + 0.5) * scale
    total, norm = np.zeros(values.shape[1:]), 0.0
    for j in range(length):
      weight = kernel((j + 0.5 - centre) / widen)
      total += weight * values[j]
      norm += weight
    result.append(total / norm)
  return np.stack(result)


def slow_resize(image, size, kernel, antialias):
  rows = slow_axis(image.astype(np.float64), size[0], kernel, antialias)
  columns = slow_axis(rows.swapaxes(0, 1), size[1], kernel, antialias)
  return columns.swapaxes(0, 1)


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize(
  ("method", "kernel"), [("bilinear", triangle), ("bicubic", keys)]
)
@pytest.mark.parametrize(("old", "new"), SIZES)
def test_resize_follows_the_definition(old, new, method, kernel, antialias):
  image = pixels(*old)
  result = image_lib.resize(image, new, method, antialias)
  assert result.shape == (*new, 3)
  assert result.dtype == np.float32
  expected = slow_resize(image, new, kernel, antialias)
  np.testing.assert_allclose(result, expected, rtol=0, atol=TOLERANCE)


SIDES = st.sampled_from([1, 2, 3, 4, 5, 7, 8, 11, 16, 23, 37, 53, 97])


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
  st.tuples(SIDES, SIDES),
  st.tuples(SIDES, SIDES),
  st.sampled_from([1, 3, 4]),
  st.sampled_from([np.uint8, np.float32, np.float64]),
  st.sampled_from([("bilinear", triangle), ("bicubic", keys)]),
  st.booleans(),
)
def test_resize_is_the_product_of_dense_filters(
  old, new, channels, dtype, filter, antialias
):
  """Any sizes, however the blocks fall, within a 1000th of a level of 255."""
  method, kernel = filter
  rng = np.random.default_rng(2)
  image = rng.uniform(0, 255, (*old, channels)).astype(dtype)
  result = image_lib.resize(image, new, method, antialias)
  expected = slow_resize(image, new, kernel, antialias)
  np.testing.assert_allclose(result, expected, rtol=0, atol=1e-3)


def test_resize_leaves_its_input_alone():
  image = pixels(13, 11).astype(np.float32)
  before = image.copy()
  image_lib.resize(image, (5, 7))
  np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize("method", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("old", "new"), SIZES)
def test_resize_agrees_with_jax(old, new, method):
  image = pixels(*old, seed=1)
  expected = jax.image.resize(
    jnp.asarray(image, jnp.float32), (*new, 3), method, antialias=True
  )
  result = image_lib.resize(image, new, method)
  np.testing.assert_allclose(result, expected, rtol=0, atol=TOLERANCE)


def test_resize_to_the_same_size_changes_nothing():
  image = pixels(13, 11)
  np.testing.assert_array_equal(image_lib.resize(image, (13, 11)), image)


def test_resize_of_a_constant_is_constant():
  image = np.full((37, 5, 3), 255, np.uint8)
  result = image_lib.resize(image, (11, 23), "bicubic")
  np.testing.assert_allclose(result, 255, rtol=1e-6)


def test_unknown_resize_method():
  with pytest.raises(ValueError, match='Did you mean "bilinear"'):
    image_lib.resize(pixels(3, 3), (2, 2), "bilinaer")


def test_model_range():
  image = np.array([0, 255, 51], np.uint8)
  result = image_lib.to_model_range(image)
  assert result.dtype == np.float32
  np.testing.assert_allclose(result, [-1, 1, -0.6], rtol=1e-6)
  unit = image_lib.to_model_range(image, 0.0, 1.0)
  np.testing.assert_allclose(unit, [0, 1, 0.2], rtol=1e-6)


@pytest.fixture(scope="module")
def goldens():
  with np.load(GOLDENS / "preprocessing.npz") as file:
    return dict(file)


GOLDEN_PICTURES = range(4)


def test_every_golden_picture_is_compared(goldens):
  found = {name.split("/")[0] for name in goldens if name.endswith("/picture")}
  assert found == set(map(str, GOLDEN_PICTURES))


@pytest.mark.parametrize("i", GOLDEN_PICTURES)
@pytest.mark.parametrize(("name", "bound"), [("hf", 5e-7), ("reference", 1e-5)])
def test_equals_transformers_and_tensorflow(goldens, name, bound, i):
  expected = goldens[f"{i}/{name}"]
  preprocess = image_lib.PREPROCESSING[name]
  result = preprocess(goldens[f"{i}/picture"], expected.shape[:2])
  assert result.dtype == np.float32
  assert expected.min() < -0.7 and expected.max() > 0.7
  np.testing.assert_allclose(result, expected, rtol=0, atol=bound)


@pytest.mark.parametrize("i", GOLDEN_PICTURES)
def test_big_vision_truncates_the_reference(goldens, i):
  theirs = goldens[f"{i}/big_vision"]
  ours = image_lib.reference(goldens[f"{i}/picture"], theirs.shape[:2])
  cut = (ours + 1) * 127.5 - theirs
  assert cut.min() > -1e-3 and cut.max() < 1 + 1e-3
  assert 0.4 < cut.mean() < 0.6


@pytest.mark.parametrize("old", [(41, 59), (13, 11)])
def test_hf_rounds_and_clips_bicubic(old):
  """The two definitions of the filter agree up to the rounding to uint8."""
  image, size = pixels(*old) // 2 + 64, (19, 23)  # too far in to be clipped
  hf = (image_lib.hf(image, size) + 1) * 127.5
  np.testing.assert_allclose(hf, hf.round(), rtol=0, atol=1e-4)
  exact = (image_lib.bicubic(image, size) + 1) * 127.5
  np.testing.assert_allclose(hf, exact, rtol=0, atol=2)
  edges = np.zeros((31, 31, 3), np.uint8)
  edges[7:23, 7:23] = 255
  assert np.abs(image_lib.hf(edges, size)).max() == 1
  assert np.abs(image_lib.bicubic(edges, size)).max() > 1.05


def test_preprocessing_of_a_constant_is_its_value():
  for value in (0, 51, 255):
    image = np.full((13, 31, 3), value, np.uint8)
    for name, preprocess in image_lib.PREPROCESSING.items():
      result = preprocess(image, (7, 5))
      assert result.shape == (7, 5, 3) and result.dtype == np.float32
      np.testing.assert_allclose(
        result, value / 127.5 - 1, rtol=0, atol=1e-6, err_msg=name
      )
