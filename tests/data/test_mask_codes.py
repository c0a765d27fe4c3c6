"""Two encoders, one answer: NumPy's codes are those of the model's codec."""

import pathlib
import pickle

import numpy as np
import pytest

from paligemma.checkpoints import npz
from paligemma.data import mask_codes
from paligemma.data import masks as masks_lib
from paligemma.models import mask_codec

GOLDEN = pathlib.Path(__file__).parents[1] / "goldens/mask_codec/mask_codec.npz"
ARRAYS = npz.load(GOLDEN)
PUBLISHED = (16, 32, 64, 128, 512)  # channels; 128 codes


def random_arrays(seed, channels=(3, 5, 7, 11, 13), codes=37):
  """Those of an encoder and its codebook, scaled to keep values near one."""
  rng = np.random.default_rng(seed)
  arrays = {}

  def add(layer, inputs, outputs, side):
    scale = np.sqrt(2 / (inputs * side**2))
    shape = (outputs, inputs, side, side)
    arrays[f"{layer}.weight"] = rng.normal(0, scale, shape)
    arrays[f"{layer}.bias"] = rng.normal(0, 0.2, outputs)

  inputs = 1
  for i, outputs in zip((0, 2, 4, 6), channels, strict=False):
    add(f"encoder.{i}", inputs, outputs, 4)
    inputs = outputs
  for block in (8, 9):
    for i, side in ((0, 3), (2, 3), (4, 1)):
      add(f"encoder.{block}.net.{i}", inputs, inputs, side)
  add("encoder.10", inputs, channels[-1], 1)
  arrays["_vq_vae._embedding"] = rng.normal(0, 1, (codes, channels[-1]))
  return {name: x.astype(np.float32) for name, x in arrays.items()}


@pytest.fixture
def encoder_of(tmp_path):
  """Writes arrays to a file and returns its encoder."""

  def write(arrays):
    path = tmp_path / f"{len(list(tmp_path.iterdir()))}.npz"
    np.savez(path, **arrays)
    return mask_codes.Encoder(path)

  return write


def random_masks(count, seed=0):
  """float32[count, 64, 64]: rectangles with soft noise."""
  rng = np.random.default_rng(seed)
  masks = np.zeros((count, 64, 64), np.float32)
  for mask in masks:
    (y0, y1), (x0, x1) = np.sort(rng.integers(0, 65, (2, 2)))
    mask[y0:y1, x0:x1] = 1
    mask[rng.random((64, 64)) < 0.1] = rng.random()
  return masks


def jax_latents(params, masks):
  """mask_codec.encode up to the codebook."""
  x = 2 * masks[..., None] - 1
  for layer in ("encoder.0", "encoder.2", "encoder.4", "encoder.6"):
    x = np.maximum(mask_codec._conv(params, layer, x, stride=2), 0)
  x = mask_codec._block(params, "encoder.8", x)
  x = mask_codec._block(params, "encoder.9", x)
  x = mask_codec._conv(params, "encoder.10", x)
  return np.asarray(x).reshape(len(x), 16, -1)


@pytest.mark.parametrize(
  ("channels", "codes"), [((3, 5, 7, 11, 13), 37), (PUBLISHED, 128)]
)
def test_equals_the_codec_in_jax(channels, codes, encoder_of):
  arrays = random_arrays(1, channels, codes)
  decoder = {n: x for n, x in ARRAYS.items() if n.startswith("decoder")}
  width = decoder["decoder.0.weight"].shape[0]
  decoder["decoder.0.weight"] = np.zeros((width, channels[-1], 1, 1))
  params = mask_codec.from_arrays(arrays | decoder)
  encoder = encoder_of(arrays)
  masks = random_masks(11)
  latents = encoder.latents(masks)
  assert latents.dtype == np.float32
  assert latents.std() > 0.3
  np.testing.assert_allclose(
    latents, jax_latents(params, masks), rtol=0, atol=1e-4
  )
  found = encoder.codes(masks)
  assert found.dtype == np.int32
  assert len(np.unique(found)) > 5
  np.testing.assert_array_equal(found, mask_codec.encode(params, masks))


def test_equals_torch():
  with np.load(GOLDEN) as golden:
    masks, codes = golden["masks"].astype(np.float32), golden["codes"]
  encoder = mask_codes.Encoder(GOLDEN)
  np.testing.assert_array_equal(encoder.codes(masks), codes)
  np.testing.assert_array_equal(encoder.codes(masks[1:]), codes[1:])


def test_codes_of_a_mask_in_its_box():
  mask = np.random.default_rng(0).random((101, 67)) < 0.5
  box = (12.7, 5, 96, 66.9)
  encoder = mask_codes.Encoder(str(GOLDEN))
  codes = encoder(mask, box)
  assert [type(code) for code in codes] == [int] * 16
  small = masks_lib.crop(mask, box)[None]
  params = mask_codec.from_arrays(ARRAYS)
  assert codes == tuple(np.asarray(mask_codec.encode(params, small))[0])
  assert encoder(mask, (0, 0, 50, 50)) != codes
  with pytest.raises(ValueError, match="covers no pixel"):
    encoder(mask, (3, 5, 3, 50))


def test_files_with_bare_and_prefixed_names(tmp_path, encoder_of):
  arrays = random_arrays(2)
  masks = random_masks(3)
  expected = encoder_of(arrays).codes(masks)
  np.savez(tmp_path / "bare.npz", **arrays)
  npz.save(tmp_path / "ours.npz", arrays)
  for name in ("bare.npz", "ours.npz"):
    found = mask_codes.Encoder(tmp_path / name).codes(masks)
    np.testing.assert_array_equal(found, expected)


def test_pickle_is_a_path():
  encoder = mask_codes.Encoder(GOLDEN)
  masks = random_masks(2)
  expected = encoder.codes(masks)  # read by now
  data = pickle.dumps(encoder)
  assert len(data) < 300
  np.testing.assert_array_equal(pickle.loads(data).codes(masks), expected)
  assert repr(encoder) == f"Encoder('{GOLDEN}')"


def test_nothing_is_read_before_it_is_used(tmp_path):
  encoder = mask_codes.Encoder(tmp_path / "none.npz")
  for _ in range(2):
    with pytest.raises(
      ValueError, match=r"none.npz: cannot read a mask codec:"
    ):
      encoder.codes(random_masks(1))


def test_bad_files(tmp_path):
  (tmp_path / "text.npz").write_text("hello")
  with pytest.raises(
    ValueError, match=r"text.npz: cannot read a mask codec"
  ) as e:
    mask_codes.Encoder(tmp_path / "text.npz").codes(random_masks(1))
  assert "\n" not in str(e.value)
  np.savez(tmp_path / "other.npz", a=np.ones(3))
  with pytest.raises(
    ValueError, match=r"other.npz: expected the arrays of .*; and \d+ more$"
  ):
    mask_codes.Encoder(tmp_path / "other.npz").codes(random_masks(1))


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"encoder.9.net.2.bias": None}, "found encoder.9.net.2.bias: missing$"),
    (
      {"encoder.2.weight": np.zeros((5, 3, 3, 3), np.float32)},
      r"encoder.2.weight: found shape \(5, 3, 3, 3\), expected \(5, 3, 4, 4\)$",
    ),
    (
      {"encoder.9.net.2.bias": np.zeros(7, np.float32)},
      r"encoder.9.net.2.bias: found shape \(7,\), expected \(11,\)$",
    ),
    (
      {"_vq_vae._embedding": np.zeros((13, 37), np.float32)},
      r"_vq_vae._embedding: found shape \(13, 37\), expected \(37, 13\)$",
    ),
    (
      {"encoder.10.bias": np.zeros(13, int)},
      "encoder.10.bias: int64, expected a float dtype$",
    ),
  ],
)
def test_malformed_arrays_are_named(change, message, encoder_of):
  arrays = random_arrays(4) | change
  arrays = {name: x for name, x in arrays.items() if x is not None}
  with pytest.raises(ValueError, match=rf"\d\.npz: expected .*{message}"):
    encoder_of(arrays).codes(random_masks(1))


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_arrays_of_any_float_dtype(dtype, encoder_of):
  arrays = random_arrays(5)
  rounded = {n: x.astype(dtype).astype(np.float32) for n, x in arrays.items()}
  masks = random_masks(3)
  np.testing.assert_array_equal(
    encoder_of({n: x.astype(dtype) for n, x in arrays.items()}).latents(masks),
    encoder_of(rounded).latents(masks),
  )


def test_bool_masks_and_wrong_shapes(encoder_of):
  encoder = encoder_of(random_arrays(6))
  inside = random_masks(3) > 0.5
  np.testing.assert_array_equal(
    encoder.codes(inside), encoder.codes(inside.astype(np.float32))
  )
  with pytest.raises(ValueError, match=r"have shape \(64, 64\), expected \(B"):
    encoder.codes(inside[0])
