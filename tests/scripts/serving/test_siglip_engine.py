"""A SigLIP embeds pictures and texts over HTTP, and answers nothing."""

import jax
import numpy as np
import openai
import pytest

import paligemma
from paligemma import init, tree
from paligemma.models import siglip, text_tower, vit
from scripts.serving import siglip_engine
from tests.scripts.serving import conftest

SIZES = {"width": 16, "depth": 1, "mlp_dim": 16, "num_heads": 2}
TEXTS = ["a red circle", "what digit"]


@pytest.fixture(scope="module")
def loaded(t5_model, tmp_path_factory):
  path = tmp_path_factory.mktemp("t5") / "spiece.model"
  path.write_bytes(t5_model)
  tok = paligemma.SiglipTokenizer(path)
  model = siglip.Model(
    vit.Model(patch_size=2, pool_type="map", **SIZES),
    text_tower.Model(
      vocab_size=tok.vocab_size, text_len=7, num_classes=16, **SIZES
    ),
  )
  rng = np.random.default_rng(1)
  flat = {
    name: jax.numpy.asarray(0.5 * rng.standard_normal(leaf.shape), "float32")
    for name, leaf in init.shapes(model, 6).items()
  }
  return model, tree.unflatten(flat), tok


def test_embeddings(loaded, make_served, data_uri, png):
  engine = siglip_engine.SiglipEngine(*loaded)
  with (
    conftest.running(make_served(engine, sees=False)) as server,
    openai.OpenAI(
      base_url=f"{server.address}/v1", api_key="none", max_retries=0
    ) as client,
  ):
    found = client.embeddings.create(model="tiny", input=[data_uri, *TEXTS])
    picture, *texts = (x.embedding for x in found.data)
    model, params, tok = loaded
    expected = paligemma.embed_images(model, params, [png])
    np.testing.assert_allclose(picture, expected[0], atol=1e-6)
    expected = paligemma.embed_texts(model, params, tok, TEXTS)
    np.testing.assert_allclose(texts, expected, atol=1e-6)
    with pytest.raises(openai.BadRequestError, match="expected /v1/embeddings"):
      client.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": "a"}]
      )
