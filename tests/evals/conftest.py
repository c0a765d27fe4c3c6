"""A small real model and a source of pictures for the evaluators."""

import io
import pathlib

import jax
import numpy as np
import pytest
from PIL import Image

from paligemma import init, tree
from paligemma.data import pairs, preprocess
from paligemma.data import tokenizer as tokenizer_lib
from paligemma.data.siglip_tokenizer import SiglipTokenizer
from paligemma.models import paligemma as paligemma_model
from paligemma.models import siglip as siglip_model
from paligemma.models import text_tower, vit
from paligemma.training import sharding

ASSETS = pathlib.Path(paligemma_model.__file__).parents[1] / "assets"


@pytest.fixture(scope="session")
def tokenizer():
  return tokenizer_lib.Tokenizer(ASSETS / "tiny_tokenizer.model")


@pytest.fixture(scope="session")
def examples():
  """Eleven examples, no two alike, with prompts of different lengths."""

  def png(rng):
    file = io.BytesIO()
    pixels = rng.integers(0, 256, (28, 28, 3), np.uint8)
    Image.fromarray(pixels).save(file, format="PNG")
    return file.getvalue()

  rng = np.random.default_rng(0)
  return [
    {
      "image": png(rng),
      "prefix": "count " + "red " * (i % 3) + f"{i}",
      "suffix": f"{i} dots" * (1 + i % 2),
      "question_id": np.int64(100 + i),
      "pixels": np.zeros(2),
      "_image_path": f"{i}.png",
      "_where": f"x.jsonl:{i + 1}",
    }
    for i in range(11)
  ]


@pytest.fixture(scope="session")
def prompts(tokenizer):
  """The evaluation layout."""
  return preprocess.Preprocess(tokenizer, res=28, text_len=31, train=False)


@pytest.fixture(scope="session")
def supervised(tokenizer):
  """The training layout."""
  return preprocess.Preprocess(tokenizer, res=28, text_len=41, train=True)


@pytest.fixture(scope="session")
def model(tokenizer):
  return paligemma_model.make(
    "paligemma_tiny",
    vocab_size=tokenizer.vocab_size,
    img={"width": 12, "depth": 1, "mlp_dim": 20, "num_heads": 3},
    llm={"width": 28, "depth": 2, "mlp_dim": 44, "head_dim": 10},
  )


@pytest.fixture(scope="session")
def params(model):
  """Random parameters under which predictions differ between examples."""
  text = np.zeros((1, 2), np.int32)
  image = np.zeros((1, 28, 28, 3), np.float32)
  shapes = jax.eval_shape(model.init, jax.random.key(0), image, text, text)
  rng = np.random.default_rng(1)
  params = jax.tree.map(
    lambda x: rng.normal(0, 0.3, x.shape).astype(np.float32), shapes["params"]
  )
  # The table is tied to the logits: a large one makes each token repeat itself.
  params["llm"]["embedder"]["input_embedding"] *= 0.2
  return params


@pytest.fixture(scope="session")
def one_device():
  return sharding.make_mesh(devices=jax.devices()[:1])


@pytest.fixture(scope="session")
def eight_devices():
  return sharding.make_mesh(data=4, model=2)


@pytest.fixture(scope="session")
def siglip_tok(t5_model, tmp_path_factory):
  path = tmp_path_factory.mktemp("t5") / "spiece.model"
  path.write_bytes(t5_model)
  return SiglipTokenizer(path)


@pytest.fixture(scope="session")
def alone(siglip_tok):
  """The layout without captions."""
  return pairs.Pairs(siglip_tok, res=28, text_len=9, train=False, texts="plain")


@pytest.fixture(scope="session")
def siglip(siglip_tok):
  """A random SigLIP and its parameters, whose embeddings differ."""
  sizes = {"width": 12, "depth": 1, "mlp_dim": 20, "num_heads": 3}
  model = siglip_model.Model(
    vit.Model(patch_size=14, pool_type="map", **sizes),
    text_tower.Model(
      vocab_size=siglip_tok.vocab_size, text_len=9, num_classes=12, **sizes
    ),
  )
  rng = np.random.default_rng(3)
  flat = {
    name: rng.normal(0, 0.5, leaf.shape).astype(np.float32)
    for name, leaf in init.shapes(model, 28).items()
  }
  return model, tree.unflatten(flat)
