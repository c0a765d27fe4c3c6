"""The mask codec equals PyTorch's, run once by make_mask_codec.py."""

import pathlib

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from paligemma.checkpoints import npz
from paligemma.data import location
from paligemma.data import masks as masks_lib
from paligemma.models import mask_codec
from tests import typecheck

GOLDEN = pathlib.Path(__file__).parents[1] / "goldens/mask_codec/mask_codec.npz"
ARRAYS = npz.load(GOLDEN)  # what lies under params/, as in vae-oid.npz
PARAMS = mask_codec.from_arrays(ARRAYS)


@pytest.fixture(scope="module")
def golden():
  with np.load(GOLDEN) as file:
    masks = file["masks"].astype(np.float32)
    return masks, file["codes"].astype(np.int32), file["decoded"]


def test_encode_equals_torch(golden):
  masks, codes, _ = golden
  found = mask_codec.encode(PARAMS, masks)
  assert found.dtype == jnp.int32
  np.testing.assert_array_equal(found, codes)


def test_decode_equals_torch(golden):
  _, codes, decoded = golden
  assert 0.05 < decoded.std() < 1
  found = mask_codec.decode(PARAMS, codes)
  assert found.dtype == jnp.float32
  # float32 against float64, values of order one.
  np.testing.assert_allclose(found, decoded, rtol=0, atol=1e-5)


def test_rows_of_a_batch_are_independent(golden):
  masks, codes, decoded = golden
  np.testing.assert_array_equal(mask_codec.encode(PARAMS, masks[1:]), codes[1:])
  np.testing.assert_allclose(
    mask_codec.decode(PARAMS, codes[1:]), decoded[1:], rtol=0, atol=1e-5
  )


def test_bool_masks_are_zeros_and_ones(golden):
  inside = golden[0] > 0.5
  np.testing.assert_array_equal(
    mask_codec.encode(PARAMS, inside),
    mask_codec.encode(PARAMS, inside.astype(np.float32)),
  )


def test_a_code_out_of_range_makes_its_mask_nan(golden):
  codes = np.repeat(golden[1][:1], 3, axis=0)
  codes[0, 5] = len(ARRAYS["_vq_vae._embedding"])
  codes[2, 0] = -1
  found = np.isnan(mask_codec.decode(PARAMS, codes))
  assert found.any(axis=(1, 2)).tolist() == [True, False, True]
  assert found.all(axis=(1, 2)).tolist() == [True, False, True]


@pytest.mark.parametrize(
  "dtype", [np.float16, np.float32, np.float64, ml_dtypes.bfloat16]
)
def test_arrays_of_any_float_dtype(dtype):
  params = mask_codec.from_arrays(
    {name: x.astype(dtype) for name, x in ARRAYS.items()}
  )
  assert {x.dtype for x in params.values()} == {np.dtype("float32")}
  kernel = np.asarray(params["decoder.6.weight"])
  expected = ARRAYS["decoder.6.weight"].astype(dtype).astype(np.float32)
  assert kernel.shape == (4, 4, 23, 17)
  np.testing.assert_array_equal(kernel[1, 2, 3, 5], expected[5, 3, 1, 2])


def test_moving_averages_may_be_absent():
  kept = {name: x for name, x in ARRAYS.items() if "_ema_" not in name}
  assert len(kept) == len(ARRAYS) - 2
  assert PARAMS.keys() == mask_codec.from_arrays(kept).keys() == kept.keys()


def test_codes_go_through_text_and_back_into_the_image():
  size, box = (101, 67), (13, 5, 96, 67)
  mask = np.random.default_rng(0).random(size) < 0.5
  small = masks_lib.crop(mask, box)
  codes = np.asarray(mask_codec.encode(PARAMS, small[None]))
  text = location.encode([location.Object(box, "cat", codes[0])], size)
  (found,) = location.parse(text, size)
  decoded = mask_codec.decode(PARAMS, np.array([found.codes]))
  pasted = masks_lib.paste(decoded[0], found.box, size)
  expected = masks_lib.paste(mask_codec.decode(PARAMS, codes)[0], box, size)
  assert pasted.any()
  np.testing.assert_array_equal(pasted, expected)


def test_the_published_sizes_fit():
  # Full size, without a file: channels 16..128, 128 codes of 512.
  channels = {3: 16, 5: 32, 7: 64, 11: 128, 13: 512, 37: 128}
  channels |= {19: 128, 17: 128, 23: 64, 2: 32, 29: 16}
  arrays = {}
  for name, x in ARRAYS.items():
    kernel = x.shape[2:]
    widths = [channels.get(n, n) for n in x.shape[: x.ndim - len(kernel)]]
    arrays[name] = np.zeros((*widths, *kernel), np.float32)
  params = mask_codec.from_arrays(arrays)
  assert params["_vq_vae._embedding"].shape == (128, 512)
  masks = jax.ShapeDtypeStruct((5, 64, 64), jnp.float32)
  codes = jax.eval_shape(mask_codec.encode, params, masks)
  assert codes.shape == (5, 16)
  decoded = jax.eval_shape(mask_codec.decode, params, codes)
  assert decoded.shape == (5, 64, 64)


def change(name, value):
  return {**ARRAYS, name: value}


@pytest.mark.parametrize(
  ("arrays", "message"),
  [
    ({}, r"^vae.npz: .*found _vq_vae._embedding: missing; .*; and \d+ more$"),
    (
      {k: x for k, x in ARRAYS.items() if k != "decoder.4.bias"},
      "found decoder.4.bias: missing$",
    ),
    (
      {k.replace("10.b", "11.b"): x for k, x in ARRAYS.items()},
      r'encoder.11.bias: unexpected. Did you mean "encoder.10.bias"\?',
    ),
    (
      change("decoder.4.weight", ARRAYS["decoder.4.weight"].swapaxes(0, 1)),
      r"decoder.4.weight: found shape \(17, 19, 4, 4\), "
      r"expected \(19, 17, 4, 4\)$",
    ),
    (
      change("encoder.9.net.2.bias", np.zeros(7, np.float32)),
      r"encoder.9.net.2.bias: found shape \(7,\), expected \(11,\)$",
    ),
    (
      change("decoder.12.bias", np.zeros((), np.float32)),
      r"decoder.12.bias: found shape \(\), expected \(1,\)$",
    ),
    (
      change("decoder.12.weight", np.zeros((2, 29, 1, 1), np.float32)),
      r"decoder.12.weight: found shape \(2, 29, 1, 1\), "
      r"expected \(1, 29, 1, 1\)$",
    ),
    (
      {
        **change("decoder.12.weight", np.zeros((2, 29, 1, 1), np.float32)),
        "decoder.12.bias": np.zeros(2, np.float32),
      },
      r"decoder.12.bias: found shape \(2,\), expected \(1,\); decoder.12.wei",
    ),
    (
      change("_vq_vae._embedding", np.zeros((37, 12), np.float32)),
      r"_vq_vae._embedding: found shape \(37, 12\), expected \(34, 13\)$",
    ),
    (
      change("_vq_vae._embedding", np.zeros((0, 13), np.float32)),
      r"_vq_vae._embedding: found shape \(0, 13\), expected \(1, 13\)$",
    ),
    (
      change("encoder.0.bias", np.zeros(3, np.int32)),
      "encoder.0.bias: int32, expected a float dtype$",
    ),
  ],
)
def test_every_array_is_accounted_for(arrays, message):
  with pytest.raises(ValueError, match=message):
    mask_codec.from_arrays(arrays, "vae.npz")


@pytest.mark.parametrize(
  ("masks", "found"),
  [
    (np.zeros((2, 64, 64, 1), np.float32), r"float32\[2, 64, 64, 1\]"),
    (np.zeros((64, 64), np.float32), r"float32\[64, 64\]"),
    (np.zeros((2, 64, 63), bool), r"bool\[2, 64, 63\]"),
    (np.zeros((2, 64, 64), np.uint8), r"uint8\[2, 64, 64\]"),
  ],
)
@typecheck.off()
def test_masks_of_another_kind(masks, found):
  message = rf"masks are {found}, expected bool or float\[B, 64, 64\]"
  with pytest.raises(ValueError, match=message):
    mask_codec.encode(PARAMS, masks)


@pytest.mark.parametrize(
  ("codes", "found"),
  [
    (np.zeros((2, 15), np.int32), r"int32\[2, 15\]"),
    (np.zeros(16, np.int32), r"int32\[16\]"),
    (np.zeros((2, 16), np.float32), r"float32\[2, 16\]"),
  ],
)
@typecheck.off()
def test_codes_of_another_kind(codes, found):
  message = rf"codes are {found}, expected int\[B, 16\]"
  with pytest.raises(ValueError, match=message):
    mask_codec.decode(PARAMS, codes)
