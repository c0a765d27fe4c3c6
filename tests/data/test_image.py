"""Decoding of every kind of file, and resizing against its definition."""

import functools
import io
import math
import pathlib
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

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


def encode(picture, kind="PNG", **options):
  data = io.BytesIO()
  picture.save(data, kind, **options)
  return data.getvalue()


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
  ours = (image_lib.reference_uint8(picture, size) + 1) * 127.5
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


@pytest.mark.parametrize("options", [{}, {"lossless": True}])
def test_decode_is_exact_for_lossless_files(options):
  image = pixels(5, 7)
  kind = "WEBP" if options else "PNG"
  result = image_lib.decode(encode(Image.fromarray(image), kind, **options))
  assert result.dtype == np.uint8
  np.testing.assert_array_equal(result, image)


def test_decode_jpeg():
  smooth = np.broadcast_to(np.arange(0, 230, 10)[:, None, None], (23, 17, 3))
  picture = Image.fromarray(smooth.astype(np.uint8))
  result = image_lib.decode(encode(picture, "JPEG", quality=95))
  np.testing.assert_allclose(result.astype(int), smooth, rtol=0, atol=8)


def test_decode_grayscale_and_one_bit():
  gray = pixels(5, 7)[:, :, 0]
  result = image_lib.decode(encode(Image.fromarray(gray)))
  np.testing.assert_array_equal(result, np.stack([gray] * 3, axis=-1))
  bits = Image.fromarray(gray > 127)
  assert bits.mode == "1"
  result = image_lib.decode(encode(bits))
  np.testing.assert_array_equal(result[:, :, 1], (gray > 127) * 255)


def test_decode_sixteen_bits_keeps_the_high_byte():
  deep = np.array([[0, 255, 256], [0x1234, 0xFF00, 0xFFFF]], np.uint16)
  picture = Image.fromarray(deep)
  assert picture.mode == "I;16"
  result = image_lib.decode(encode(picture))
  expected = np.array([[0, 0, 1], [0x12, 0xFF, 0xFF]])
  np.testing.assert_array_equal(result, np.stack([expected] * 3, axis=-1))


def test_decode_palette():
  picture = Image.fromarray(pixels(5, 7)).quantize(11)
  assert picture.mode == "P"
  result = image_lib.decode(encode(picture))
  np.testing.assert_array_equal(result, np.asarray(picture.convert("RGB")))


def test_transparency_is_laid_over_white():
  rgba = np.zeros((1, 3, 4), np.uint8)  # black: nothing, half, opaque
  rgba[0, :, 3] = 0, 128, 255
  result = image_lib.decode(encode(Image.fromarray(rgba)))
  np.testing.assert_array_equal(result[0, :, 2], [255, 127, 0])
  result = image_lib.decode(encode(Image.fromarray(rgba).convert("LA")))
  np.testing.assert_array_equal(result[0, :, 0], [255, 127, 0])


def test_palette_with_a_transparent_entry():
  picture = Image.new("P", (3, 1))
  picture.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
  picture.putdata([0, 1, 2])
  result = image_lib.decode(encode(picture, transparency=1))
  np.testing.assert_array_equal(
    result[0], [[10, 20, 30], [255, 255, 255], [70, 80, 90]]
  )


def test_decode_cmyk_jpeg():
  picture = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
  result = image_lib.decode(encode(picture, "JPEG", quality=95))
  np.testing.assert_allclose(result[3, 3], [255, 0, 0], rtol=0, atol=4)


# The stored picture that a viewer turns upright, by orientation tag.
STORED = {
  1: lambda x: x,
  2: lambda x: x[:, ::-1],
  3: lambda x: x[::-1, ::-1],
  4: lambda x: x[::-1],
  5: lambda x: x.swapaxes(0, 1),
  6: lambda x: np.rot90(x, 1),
  7: lambda x: x[::-1, ::-1].swapaxes(0, 1),
  8: lambda x: np.rot90(x, -1),
}


@pytest.mark.parametrize("orientation", STORED)
def test_exif_orientation_is_applied(orientation):
  upright = pixels(3, 5)
  stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](upright)))
  exif = Image.Exif()
  exif[0x0112] = orientation
  result = image_lib.decode(encode(stored, exif=exif))
  np.testing.assert_array_equal(result, upright)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("part", [0.3, 0.6, 0.95])
def test_truncated_files(kind, part):
  data = encode(Image.fromarray(pixels(67, 71)), kind)
  data = data[: int(len(data) * part)]
  with pytest.raises(ValueError, match=r"^a\.jsonl:7: .*") as info:
    image_lib.decode(data, where="a.jsonl:7")
  assert "\n" not in str(info.value)
  assert str(len(data)) in str(info.value)


def test_damaged_bytes_never_escape_as_another_error():
  data = bytearray(encode(Image.fromarray(pixels(11, 13)), "PNG"))
  rng = np.random.default_rng(0)
  refused = 0
  for _ in range(200):
    damaged = bytearray(data)
    for position in rng.integers(8, len(data), 3):
      damaged[position] ^= 1 << rng.integers(8)
    try:
      image_lib.decode(bytes(damaged))
    except ValueError as error:
      assert str(error).startswith("image: ") and "\n" not in str(error)
      refused += 1
  assert refused > 100


@pytest.mark.parametrize(
  "data", [b"", b"<html>\nno such page</html>", b"GIF89a"]
)
def test_not_an_image(data):
  with pytest.raises(
    ValueError, match=r"x\.png: not a readable JPEG, PNG or"
  ) as info:
    image_lib.decode(data, where="x.png")
  assert "\n" not in str(info.value)


def header_of(width, height):
  """A PNG that claims a size; nothing but the claim is read."""
  data = bytearray(encode(Image.new("L", (1, 1))))
  data[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
  data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
  return bytes(data)


@pytest.mark.parametrize("size", [(10_000, 10_000), (60_000, 60_000)])
def test_bombs_are_refused_by_their_size(size):
  with pytest.raises(ValueError, match=r"x\.png: image is too large") as info:
    image_lib.decode(header_of(*size), where="x.png")
  assert "\n" not in str(info.value)


def test_max_pixels():
  data = encode(Image.new("L", (101, 103)))
  image_lib.decode(data, max_pixels=101 * 103)
  with pytest.raises(
    ValueError, match="too large: 101x103 pixels, at most 10402 "
  ):
    image_lib.decode(data, max_pixels=101 * 103 - 1)


@pytest.mark.parametrize("size", [(0, 5), (5, 0)])
def test_empty_image(size):
  with pytest.raises(ValueError, match=r"x\.png: not a readable"):
    image_lib.decode(header_of(*size), where="x.png")
