"""Two towers: normalised embeddings, either input alone, text tower, NaFlex."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paligemma import tree
from paligemma.models import naflex, siglip, text_tower, vit

SIZES = {"width": 12, "depth": 2, "mlp_dim": 17, "num_heads": 3}
RNG = np.random.default_rng(0)
IMAGE = RNG.uniform(-1, 1, (5, 6, 10, 3)).astype("float32")
TEXT = RNG.integers(2, 31, (3, 7))


def build(img=None, txt=None, **fields):
  img = {"patch_size": 2, "pool_type": "map", **SIZES, **(img or {})}
  txt = {
    "vocab_size": 31,
    "text_len": 7,
    "num_classes": 12,
    **SIZES,
    **(txt or {}),
  }
  return siglip.Model(vit.Model(**img), text_tower.Model(**txt), **fields)


@functools.cache
def params_of(model):
  return random(model, IMAGE, TEXT)


def random(model, *inputs):
  """Random parameters, none of them at its neutral start."""
  shapes = jax.eval_shape(model.init, jax.random.key(0), *inputs)["params"]
  rng = np.random.default_rng(1)
  flat = {}
  for name, leaf in tree.flatten(shapes).items():
    offset = 1.0 if name.endswith("scale") else 0.0
    flat[name] = offset + 0.3 * rng.standard_normal(leaf.shape)
  return tree.unflatten({n: x.astype(np.float32) for n, x in flat.items()})


def apply(model, params, image, text):
  return jax.jit(model.apply)({"params": params}, image, text)


def test_embeddings_are_normalised_and_logits_have_temperature_and_bias():
  model = build()
  params = params_of(model)
  zimg, ztxt, out = apply(model, params, IMAGE, TEXT)
  assert (zimg.shape, ztxt.shape) == ((5, 12), (3, 12))
  np.testing.assert_allclose(jnp.linalg.norm(zimg, axis=1), 1, atol=1e-6)
  np.testing.assert_allclose(jnp.linalg.norm(ztxt, axis=1), 1, atol=1e-6)
  np.testing.assert_allclose(out["t"], np.exp(params["t"]), rtol=1e-6)
  np.testing.assert_allclose(out["b"], params["b"], rtol=1e-6)
  np.testing.assert_array_equal(out["t/parameter"], params["t"])
  for tower, z, head in (("img", zimg, "pre_logits"), ("txt", ztxt, "logits")):
    raw = out[f"{tower}/{head}"]
    norm = jnp.linalg.norm(raw, axis=1, keepdims=True)
    np.testing.assert_allclose(out[f"{tower}/norm"], norm, rtol=1e-6)
    np.testing.assert_allclose(z, raw / norm, atol=1e-6)


def test_either_input_may_be_missing():
  model = build()
  params = params_of(model)
  zimg, ztxt, _ = apply(model, params, IMAGE, TEXT)
  alone, nothing, of_image = apply(model, params, IMAGE, None)
  assert nothing is None and not any("txt" in name for name in of_image)
  np.testing.assert_allclose(alone, zimg, atol=1e-6)
  nothing, alone, of_text = apply(model, params, None, TEXT)
  assert nothing is None and not any("img" in name for name in of_text)
  np.testing.assert_allclose(alone, ztxt, atol=1e-6)
  assert {"t", "b"} < of_image.keys() & of_text.keys()


def test_starts_of_temperature_and_bias():
  model = build()
  params = jax.jit(model.init)(jax.random.key(0), IMAGE, TEXT)["params"]
  np.testing.assert_allclose(params["t"], [np.log(10)], rtol=1e-6)
  np.testing.assert_array_equal(params["b"], [-10])
  shapes = jax.eval_shape(
    build(bias_init=None).init, jax.random.key(0), IMAGE, TEXT
  )
  assert "b" not in shapes["params"]


def test_pixels_that_fill_no_patch_are_not_looked_at():
  model = build()
  params = params_of(model)
  more = np.pad(IMAGE, [(0, 0), (0, 1), (0, 1), (0, 0)], constant_values=7)
  np.testing.assert_array_equal(
    apply(model, params, more, None)[0], apply(model, params, IMAGE, None)[0]
  )


@pytest.mark.parametrize("size", [(1, 6), (6, 1)])
def test_images_smaller_than_a_patch(size):
  model, image = build(), np.zeros((2, *size, 3), np.float32)
  said = f"^images have {size[0]}x{size[1]} pixels, expected .* patch of 2x2"
  with pytest.raises(ValueError, match=said):
    model.apply({"params": params_of(model)}, image)


@pytest.mark.parametrize("pool", ["last", "first", "mean", "max", "map"])
def test_poolings_of_the_text_tower(pool):
  model = build(txt={"pool_type": pool}).txt
  params = random(model, TEXT)
  _, out = jax.jit(model.apply)({"params": params}, TEXT)
  x = np.asarray(out["transformed"])
  pooled = {
    "last": x[:, -1],
    "first": x[:, 0],
    "mean": x.mean(axis=1),
    "max": x.max(axis=1),
  }
  assert ("MAPHead_0" in params) == (pool == "map")
  if pool != "map":
    np.testing.assert_allclose(out["pre_logits"], pooled[pool], atol=1e-6)


def test_text_tower_looks_both_ways_and_at_padding():
  model = build(txt={"pool_type": "first"})
  params = random(model, IMAGE, TEXT)
  other = TEXT.copy()
  other[:, -1] = 1
  one, two = (apply(model, params, None, text)[1] for text in (TEXT, other))
  assert np.abs(one - two).max(axis=1).min() > 1e-4


def test_texts_of_another_length():
  model = build()
  params = params_of(model)
  for length in (6, 8):
    text = np.ones((2, length), np.int32)
    with pytest.raises(
      ValueError, match=f"texts have {length} tokens, expected 7: pad or cut"
    ):
      model.apply({"params": params}, None, text)


@pytest.mark.parametrize("pool", ["eos", "gap"])
def test_unknown_pooling_of_text(pool):
  with pytest.raises(
    ValueError, match=f'unknown text pool_type "{pool}", expected one of: first'
  ):
    jax.eval_shape(
      build(txt={"pool_type": pool}).init, jax.random.key(0), IMAGE, TEXT
    )


def test_make_knows_its_names():
  with pytest.raises(
    ValueError, match=r'unknown variant "siglip_b16_2224".*"siglip_b16_224"\?'
  ):
    siglip.make("siglip_b16_2224")
  with pytest.raises(
    ValueError, match=r'text tower field "pool".*"pool_type"\?'
  ):
    siglip.make("siglip_b16_224", txt={"pool": "last"})
  with pytest.raises(
    ValueError, match=r'image tower field "grit".*mean "grid"\?'
  ):
    siglip.make("siglip2_b16_naflex", img={"grit": 16})


@pytest.mark.parametrize("variant", ["siglip_b16_224", "siglip2_b16_naflex"])
def test_embeddings_of_two_sizes_are_refused(variant):
  with pytest.raises(
    ValueError, match=r"images have 24 features, of texts 768, which .*=24 ma"
  ):
    siglip.make(variant, img={"num_classes": 24})
  siglip.make(variant, img={"num_classes": 24}, txt={"num_classes": 24})


# NaFlex: rows and columns of five images, of which none fills all 12 patches.
GRIDS = ((1, 1), (2, 5), (5, 2), (3, 3), (1, 11))
PATCHES = 12


def patches(garbage=0.0):
  """A batch of the grids, with something in the padding."""
  z = np.full((len(GRIDS), PATCHES, 12), garbage, np.float32)
  kind = np.zeros((len(GRIDS), PATCHES), np.int32)
  y, x = (np.full_like(kind, 0 if garbage == 0 else 99) for _ in range(2))
  rng = np.random.default_rng(0)
  for i, (rows, columns) in enumerate(GRIDS):
    n = rows * columns
    z[i, :n] = rng.uniform(-1, 1, (n, 12))
    kind[i, :n] = 1
    y[i, :n], x[i, :n] = np.divmod(np.arange(n), columns)
  return z, kind, y, x


@functools.cache
def flexible(**fields):
  model = naflex.Model(patch_size=2, grid=4, **{**SIZES, **fields})
  return model, random(model, patches())


def test_resized_positions_are_those_of_jax_image_resize():
  positions = np.random.default_rng(0).standard_normal((4, 4, 3))
  _, _, y, x = patches()
  found = jax.jit(naflex.resized_positions)(positions.astype("f4"), y, x)
  for i, (rows, columns) in enumerate(GRIDS):
    expected = jax.image.resize(
      positions.astype("f4"), (rows, columns, 3), "bilinear", antialias=True
    )
    np.testing.assert_allclose(
      found[i, : rows * columns], expected.reshape(-1, 3), atol=1e-5
    )


@pytest.mark.parametrize("garbage", [1e4, np.nan])
def test_naflex_reads_no_padding(garbage):
  model, params = flexible()
  clean, _ = jax.jit(model.apply)({"params": params}, patches())
  found, _ = jax.jit(model.apply)({"params": params}, patches(garbage))
  np.testing.assert_array_equal(found, clean)


def test_naflex_gives_padding_no_gradient():
  model, params = flexible()
  z, *rest = patches()

  def loss(z):
    return jnp.sum(jnp.sin(model.apply({"params": params}, (z, *rest))[0]))

  gradient = np.abs(jax.jit(jax.grad(loss))(z)).max(axis=2)
  np.testing.assert_array_equal(gradient > 0, rest[0] == 1)


def test_naflex_does_not_depend_on_the_order_or_number_of_patches():
  model, params = flexible()
  expected, _ = jax.jit(model.apply)({"params": params}, patches())
  order = np.random.default_rng(0).permutation(PATCHES)
  shuffled = tuple(x[:, order] for x in patches())
  found, _ = jax.jit(model.apply)({"params": params}, shuffled)
  np.testing.assert_allclose(found, expected, atol=1e-5)
  longer = tuple(
    np.pad(x, [(0, 0), (0, 5)] + [(0, 0)] * (x.ndim - 2)) for x in patches()
  )
  found, _ = jax.jit(model.apply)({"params": params}, longer)
  np.testing.assert_allclose(found, expected, atol=1e-5)


def test_naflex_of_a_full_square_is_the_plain_tower():
  model, params = flexible()
  image = np.random.default_rng(0).uniform(-1, 1, (2, 8, 8, 3)).astype("f4")
  z = image.reshape(2, 4, 2, 4, 2, 3).swapaxes(2, 3).reshape(2, 16, 12)
  y, x = (np.tile(i.ravel(), (2, 1)) for i in np.mgrid[:4, :4])
  found, _ = jax.jit(model.apply)({"params": params}, (z, y * 0 + 1, y, x))
  kernel = params["embedding"]["kernel"].reshape(2, 2, 3, 12)
  plain = {
    **params,
    "embedding": {**params["embedding"], "kernel": kernel},
    "pos_embedding": params["pos_embedding"].reshape(1, 16, 12),
  }
  tower = vit.Model(patch_size=2, pool_type="map", **SIZES)
  expected, _ = jax.jit(tower.apply)({"params": plain}, image)
  np.testing.assert_allclose(found, expected, atol=1e-5)


def test_naflex_head_and_tokens():
  model, params = flexible(num_classes=5)
  z, out = jax.jit(model.apply)({"params": params}, patches())
  assert z.shape == (5, 5) and out["pre_logits"].shape == (5, 12)
  model, params = flexible(pool_type="none")
  z, _ = jax.jit(model.apply)({"params": params}, patches())
  assert z.shape == (5, PATCHES, 12) and "MAPHead_0" not in params
  with pytest.raises(ValueError, match=re.escape('unknown pool_type "gap"')):
    flexible(pool_type="gap")


def test_siglip_takes_the_tuple_of_naflex():
  img, params = flexible()
  model = build()
  model = model.clone(img=img)
  params = {**params_of(build()), "img": params}
  zimg, _, _ = apply(model, params, patches(), None)
  raw, _ = jax.jit(img.apply)({"params": params["img"]}, patches())
  norm = jnp.linalg.norm(raw, axis=1, keepdims=True)
  np.testing.assert_allclose(zimg, raw / norm, atol=1e-6)
