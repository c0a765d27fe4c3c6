"""The public calls: load, ask; and that all is said about a wrong one."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import paligemma
from paligemma import tree
from paligemma.checkpoints import infer, npz
from paligemma.data import image as image_lib
from paligemma.data import sequence
from paligemma.models import paligemma as paligemma_model

RES, LIMIT = 28, 4
PROMPTS = ("what", "caption en", "count red dots", "detect", "what digit is")


def make(variant, **llm):
  return paligemma_model.make(
    variant,
    img=dict(width=12, depth=2, mlp_dim=20, num_heads=3),
    llm=dict(width=16, depth=2, mlp_dim=22, head_dim=10, **llm),
  )


def random_params(model):
  """Flat float32 parameters under which answers differ between prompts."""
  image = np.zeros((1, RES, RES, 3), np.float32)
  text = np.zeros((1, 2), np.int32)
  shapes = jax.eval_shape(model.init, jax.random.key(0), image, text, text)
  rng = np.random.default_rng(1)
  flat = {
    name: rng.normal(0, 0.3, leaf.shape).astype(np.float32)
    for name, leaf in tree.flatten(shapes["params"]).items()
  }
  # The table is tied to the logits: a large one makes each token repeat itself.
  flat["llm/embedder/input_embedding"] *= 0.2
  return flat


@pytest.fixture(scope="module")
def tokenizer():
  folder = paligemma.__path__[0]
  return paligemma.Tokenizer(f"{folder}/assets/tiny_tokenizer.model")


@pytest.fixture(scope="module")
def pictures():
  """Five pictures of different sizes, uint8[H, W, 3]."""
  rng = np.random.default_rng(0)
  return [
    rng.integers(0, 256, (19 + i, 41 - i, 3), np.uint8) for i in range(5)
  ]


@pytest.fixture(scope="module")
def gemma1(tmp_path_factory):
  """Path of a checkpoint, its model and its flat parameters."""
  return _saved(tmp_path_factory, make("paligemma_tiny"))


@pytest.fixture(scope="module")
def gemma2(tmp_path_factory):
  model = make("paligemma2_tiny", num_heads=6, num_kv_heads=2)
  return _saved(tmp_path_factory, model)


def _saved(tmp_path_factory, model):
  path = tmp_path_factory.mktemp("checkpoint") / "model.npz"
  flat = random_params(model)
  npz.save(path, flat)
  return path, model, flat


def test_public_names():
  assert sorted(paligemma.__all__) == ["Tokenizer", "generate", "load"]
  for name in paligemma.__all__:
    assert getattr(paligemma, name).__doc__


@pytest.mark.parametrize("which", ["gemma1", "gemma2"])
def test_the_model_is_read_off_its_arrays(request, which):
  path, expected, flat = request.getfixturevalue(which)
  model, params = paligemma.load(path)
  assert model.img.clone(remat_policy="nothing_saveable") == (
    expected.img.clone(variant_fields_equal(model.img, expected.img))
  )


