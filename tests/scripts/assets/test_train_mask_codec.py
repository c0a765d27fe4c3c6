"""A short training makes a codec that gives masks back better than at first."""

import jax
import numpy as np
import pytest

import paligemma
from paligemma.models import mask_codec
from scripts import make_digits
from scripts.assets import train_mask_codec


@pytest.fixture
def small(monkeypatch):
  monkeypatch.setattr(train_mask_codec, "BATCH_SIZE", 7)
  monkeypatch.setattr(train_mask_codec, "NUM_MASKS", 29)
  monkeypatch.setattr(train_mask_codec, "NUM_TEST_MASKS", 29)


def _masks(number, seed=0):
  scans, _ = make_digits.load_scans()
  rng = np.random.default_rng(seed)
  return train_mask_codec.draw_masks(scans, number, rng)


def test_masks_fill_their_box():
  masks = _masks(11)
  assert masks.shape == (11, 64, 64) and masks.dtype == np.float32
  assert masks.min() >= 0 and masks.max() <= 1
  inside = masks > 0.5
  # Of each side of the box something is inside, bent by smooth edges.
  for edge in (
    inside[:, :6],
    inside[:, -6:],
    inside[..., :6],
    inside[..., -6:],
  ):
    assert edge.any((1, 2)).all()
  assert 0.1 < inside.mean() < 0.9


def test_random_layers_keep_the_variance():
  params = train_mask_codec.random_codec(np.random.default_rng(0))
  latents = mask_codec.to_latents(params, _masks(11))
  assert latents.shape == (11, 4, 4, train_mask_codec.CODE)
  decoded = mask_codec.from_latents(params, latents)
  assert decoded.shape == (11, 64, 64)
  for x in (latents, decoded):
    assert 0.1 < float(np.std(x)) < 10


def test_k_means_finds_heaps(monkeypatch):
  monkeypatch.setattr(train_mask_codec, "CODES", 3)
  heaps = np.array([[0, 0], [9, 1], [-5, 7]], np.float32)
  rng = np.random.default_rng(1)
  x = heaps.repeat(50, 0) + rng.normal(0, 0.1, (150, 2)).astype(np.float32)
  for seed in range(20):
    found = train_mask_codec.k_means(x, np.random.default_rng(seed))
    near = np.linalg.norm(found[:, None] - heaps, axis=-1).min(0)
    if near.max() < 0.1:
      return
  pytest.fail("no seed of 20 finds all heaps")


def test_gradients_reach_encoder_codebook_and_decoder():
  params = train_mask_codec.random_codec(np.random.default_rng(0))
  latents = np.asarray(mask_codec.to_latents(params, _masks(11)))
  rows = latents.reshape(-1, train_mask_codec.CODE)[: train_mask_codec.CODES]
  params[mask_codec.CODEBOOK] = jax.numpy.asarray(rows)
  gradient = jax.jit(jax.grad(train_mask_codec.codec_loss))(
    params, _masks(7, seed=1)
  )
  assert gradient.keys() == params.keys()
  for name, x in gradient.items():
    assert np.isfinite(x).all() and np.any(x), name


def test_training_makes_it_better(small, tmp_path):
  iou = {}
  for steps in (1, 40):
    path = tmp_path / f"{steps}.npz"
    iou[steps], used = train_mask_codec.train_mask_codec(
      path, steps=steps, seed=0
    )
    assert 1 <= used <= 128
  assert iou[40] > iou[1] + 0.1
  params = paligemma.load_mask_codec(path)
  assert params[mask_codec.CODEBOOK].shape == (128, 16)
  decoded = mask_codec.decode(params, mask_codec.encode(params, _masks(5)))
  assert decoded.shape == (5, 64, 64)


def test_a_seed_gives_the_same_file(small, tmp_path):
  files = {}
  for name, seed in (("a", 3), ("b", 3), ("c", 5)):
    path = tmp_path / f"{name}.npz"
    train_mask_codec.train_mask_codec(path, steps=2, seed=seed)
    with np.load(path) as file:
      files[name] = {key: file[key].tobytes() for key in file.files}
  assert files["a"] == files["b"] != files["c"]
