"""Resizing against its definition, and the ways to the model's input."""

import functools
import math
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


def lanczos(lobes, x):
  x = abs(x)
  if x >= lobes:
    return 0.0
  if x < 1e-9:
    return 1.0
  wave = math.sin(math.pi * x) * math.sin(math.pi * x / lobes)
  return lobes * wave / (math.pi * x) ** 2


FILTERS = {
  "bilinear": triangle,
  "bicubic": keys,
  "lanczos3": functools.partial(lanczos, 3),
  "lanczos5": functools.partial(lanczos, 5),
}


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
@pytest.mark.parametrize(("method", "kernel"), FILTERS.items())
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
  st.sampled_from(sorted(FILTERS.items())),
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


def test_the_model_range_can_be_made_in_place():
  image = pixels(13, 11).astype(np.float32)
  expected = image_lib.to_model_range(image)
  assert image_lib.to_model_range(image, out=image) is image
  np.testing.assert_array_equal(image, expected)
  assert -1 <= image.min() < -0.9 and 0.9 < image.max() <= 1


def covered(values, new_length):
  """The mean of every interval of the first axis, old pixel by old pixel."""
  scale = len(values) / new_length
  result = []
  for i in range(new_length):
    start, stop = i * scale, (i + 1) * scale
    shares = [
      max(0.0, min(stop, j + 1) - max(start, j)) for j in range(len(values))
    ]
    result.append(np.tensordot(shares, values, axes=1) / scale)
  return np.stack(result)


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize(("old", "new"), SIZES)
def test_area_is_the_mean_of_what_a_pixel_covers(old, new, antialias):
  image = pixels(*old)
  rows = covered(image.astype(np.float64), new[0])
  expected = covered(rows.swapaxes(0, 1), new[1]).swapaxes(0, 1)
  result = image_lib.resize(image, new, "area", antialias)
  np.testing.assert_allclose(result, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize(("old", "new"), [*SIZES, ((8, 6), (4, 3))])
def test_nearest_takes_the_pixel_at_the_centre(old, new, antialias):
  image = pixels(*old)
  result = image_lib.resize(image, new, "nearest", antialias)
  # Between two pixels it is the later one, as in TensorFlow.
  rows, columns = (
    np.floor((np.arange(n) + 0.5) * o / n).astype(int)
    for o, n in zip(old, new, strict=True)
  )
  np.testing.assert_array_equal(result, image[rows][:, columns])


@pytest.mark.parametrize("method", FILTERS)
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
def test_equals_the_uint8_of_big_vision(goldens, i):
  theirs = goldens[f"{i}/big_vision"]
  picture, size = goldens[f"{i}/picture"], theirs.shape[:2]
  ours = (image_lib.PREPROCESSING["reference_uint8"](picture, size) + 1) * 127.5
  assert np.abs(ours - ours.round()).max() < 1e-4
  exact = image_lib.resize(picture, size)
  decided = np.abs(exact - exact.round()) > 1e-4  # else rounding decides
  assert decided.mean() > 0.9
  np.testing.assert_array_equal(ours.round()[decided], theirs[decided])
  # Half a level darker than without.
  cut = (image_lib.reference(picture, size) + 1) * 127.5 - ours
  assert 0.4 < cut.mean() < 0.6


@pytest.mark.parametrize("name", ["aliased", "aliased_uint8"])
def test_without_antialiasing_a_new_pixel_sees_two_old_ones_a_side(name):
  image = pixels(40, 60)
  result = (image_lib.PREPROCESSING[name](image, (8, 12)) + 1) * 127.5
  pairs = image.astype(np.float64)[2::5, 2::5]  # the centres are pixels
  np.testing.assert_allclose(result, pairs, rtol=0, atol=1e-3)
  image = pixels(4, 4)[:, :, :1].repeat(3, axis=2)
  halves = image.astype(np.float64).reshape(2, 2, 2, 2, 3).mean(axis=(1, 3))
  result = (image_lib.PREPROCESSING[name](image, (2, 2)) + 1) * 127.5
  cut = np.floor(halves) if name.endswith("uint8") else halves
  np.testing.assert_allclose(result, cut, rtol=0, atol=1e-3)


@pytest.mark.parametrize("old", [(41, 59), (13, 11)])
def test_hf_rounds_and_clips_bicubic(old):
  """The two definitions of the filter agree up to the rounding to uint8."""
  image, size = pixels(*old) // 2 + 64, (19, 23)  # too far in to be clipped
  hf = (image_lib.hf(image, size) + 1) * 127.5
  np.testing.assert_allclose(hf, hf.round(), rtol=0, atol=1e-4)
  exact = (image_lib.PREPROCESSING["bicubic"](image, size) + 1) * 127.5
  np.testing.assert_allclose(hf, exact, rtol=0, atol=2)
  edges = np.zeros((31, 31, 3), np.uint8)
  edges[7:23, 7:23] = 255
  assert np.abs(image_lib.hf(edges, size)).max() == 1
  assert np.abs(image_lib.PREPROCESSING["bicubic"](edges, size)).max() > 1.05


def test_preprocessing_of_a_constant_is_its_value():
  for value in (0, 51, 255):
    image = np.full((13, 31, 3), value, np.uint8)
    for name, preprocess in image_lib.PREPROCESSING.items():
      result = preprocess(image, (7, 5))
      assert result.shape == (7, 5, 3) and result.dtype == np.float32
      np.testing.assert_allclose(
        result, value / 127.5 - 1, rtol=0, atol=1e-6, err_msg=name
      )
