"""embed_images, embed_texts and classify of a SigLIP."""

import logging
import re

import jax
import numpy as np
import pytest
from PIL import Image

import paligemma
from paligemma import init, tree
from paligemma.data import image as image_lib
from paligemma.models import naflex, siglip, text_tower, vit
from paligemma.training import sharding
from scripts import predict

SIZES = {"width": 16, "depth": 1, "mlp_dim": 16, "num_heads": 2}
RNG = np.random.default_rng(0)
PICTURES = [
  RNG.integers(0, 256, (h, w, 3), np.uint8)
  for h, w in ((9, 5), (8, 8), (3, 30), (40, 7), (6, 6))
]
TEXTS = ["Red circle", "a blue-ish segment!", "", "what digit", "nine"]


@pytest.fixture(scope="module")
def tok(t5_model, tmp_path_factory):
  path = tmp_path_factory.mktemp("t5") / "spiece.model"
  path.write_bytes(t5_model)
  return paligemma.SiglipTokenizer(path)


def build(tok, **img):
  tower = naflex.Model if "grid" in img else vit.Model
  img = tower(patch_size=2, pool_type="map", **{**SIZES, **img})
  txt = text_tower.Model(
    vocab_size=tok.vocab_size, text_len=7, num_classes=16, **SIZES
  )
  model = siglip.Model(img, txt)
  rng = np.random.default_rng(1)
  flat = {
    name: 0.5 * rng.standard_normal(leaf.shape).astype(np.float32)
    for name, leaf in init.shapes(model, 6).items()
  }
  flat["b"] = np.float32([-1])
  return model, jax.tree.map(jax.numpy.asarray, tree.unflatten(flat))


@pytest.fixture(scope="module")
def square(tok):
  return build(tok)


@pytest.fixture(scope="module")
def flexible(tok):
  return build(tok, grid=3)


def apply(model, params, image, text):
  zimg, ztxt, _ = jax.jit(model.apply)({"params": params}, image, text)
  return ztxt if image is None else zimg


def test_images_are_resized_to_the_square_of_the_checkpoint(square):
  model, params = square
  found = paligemma.embed_images(model, params, PICTURES)
  pixels = np.stack([image_lib.reference(x, (6, 6)) for x in PICTURES])
  assert found.dtype == np.float32 and isinstance(found, np.ndarray)
  expected = apply(model, params, pixels, None)
  np.testing.assert_allclose(found, expected, atol=1e-6)


def test_naflex_keeps_the_aspect_ratio(flexible):
  model, params = flexible
  found = paligemma.embed_images(model, params, PICTURES)
  assert found.shape == (5, 16)
  # 9 x 5 pixels become 4 x 2 patches of 2 x 2 pixels.
  pixels = image_lib.reference(PICTURES[0], (8, 4))
  patches = np.zeros((1, 9, 12), np.float32)
  patches[0, :8] = pixels.reshape(4, 2, 2, 2, 3).swapaxes(1, 2).reshape(8, 12)
  kind, y, x = np.zeros((3, 1, 9), np.int32)
  kind[0, :8] = 1
  y[0, :8], x[0, :8] = np.divmod(np.arange(8), 2)
  expected = apply(model, params, (patches, kind, y, x), None)
  np.testing.assert_allclose(found[:1], expected, atol=1e-6)


def test_texts_are_canonical_and_padded(square, tok):
  model, params = square
  found = paligemma.embed_texts(model, params, tok, TEXTS)
  texts = ["red circle", "a blueish segment", "", "what digit", "nine"]
  tokens, _ = tok.encode(texts, 7)
  expected = apply(model, params, None, tokens)
  np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("which", ["square", "flexible"])
def test_batches_and_meshes_change_nothing(which, tok, request):
  model, params = request.getfixturevalue(which)
  images = paligemma.embed_images(model, params, PICTURES)
  texts = paligemma.embed_texts(model, params, tok, TEXTS)
  mesh = sharding.make_mesh(data=8)
  shardings = sharding.infer(tree.flatten(params), mesh)
  spread = tree.unflatten(
    {
      n: jax.device_put(x, shardings[n])
      for n, x in tree.flatten(params).items()
    }
  )
  for where, size in ((params, 2), (params, 1), (spread, 3)):
    found = paligemma.embed_images(model, where, PICTURES, batch_size=size)
    np.testing.assert_allclose(found, images, atol=1e-6)
    found = paligemma.embed_texts(model, where, tok, TEXTS, batch_size=size)
    np.testing.assert_allclose(found, texts, atol=1e-6)


def test_none_and_one(square, tok):
  model, params = square
  assert paligemma.embed_images(model, params, []).shape == (0, 16)
  assert paligemma.embed_texts(model, params, tok, []).shape == (0, 16)
  one = paligemma.embed_images(model, params, PICTURES[1])
  some = paligemma.embed_images(model, params, PICTURES[1:2])
  np.testing.assert_array_equal(one, some)
  one = paligemma.embed_texts(model, params, tok, "nine")
  some = paligemma.embed_texts(model, params, tok, ["nine"])
  np.testing.assert_array_equal(one, some)


def test_a_text_that_is_cut_is_said(square, tok, caplog):
  model, params = square
  long = "red circle " * 9
  with caplog.at_level(logging.WARNING):
    paligemma.embed_texts(model, params, tok, ["nine", long, long])
  (record,) = caplog.records
  assert record.message.startswith(
    "2 of 3 texts are longer than the 7 tokens of the text tower and cut, the "
    'first is "red circle red'
  )


NAMES = ["Red_circle", "digit, nine", "segment"]
TEMPLATES = ["A photo of {}.", "{}!"]


@pytest.mark.parametrize("has_bias", [True, False])
def test_classes_are_means_of_their_templates(square, tok, has_bias):
  model, params = square
  if not has_bias:
    model = model.clone(bias_init=None)
    params = {name: x for name, x in params.items() if name != "b"}
  found = paligemma.classify(
    model, params, tok, PICTURES, NAMES, templates=TEMPLATES
  )
  zimg = paligemma.embed_images(model, params, PICTURES)
  classes = []
  for name in ("red circle", "digit, nine", "segment"):
    tokens, _ = tok.encode([f"a photo of {name}", name], 7)
    mean = np.asarray(apply(model, params, None, tokens)).mean(axis=0)
    classes.append(mean / np.linalg.norm(mean))
  logits = zimg @ np.stack(classes).T * np.exp(np.asarray(params["t"]))
  if has_bias:
    expected = 1 / (1 + np.exp(-logits - np.asarray(params["b"])))
  else:
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
  assert found.shape == (5, 3)
  np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(
  ("names", "options", "message"),
  [
    ([], {}, "class_names is [], expected a list of names"),
    ("cat", {}, "class_names is 'cat', expected a list of names"),
    (["a", "..."], {}, "class_names[1] is empty: '...'"),
    (["a b", "A_b!"], {}, 'class_names[0] and class_names[1] are both "a b"'),
    (["a"], {"templates": []}, "templates is empty"),
    (["a"], {"templates": ["x"]}, 'templates[0] is "x", expected a text with'),
    (["a"], {"batch_size": 0}, "batch_size is 0, expected 1 or more"),
    (["a"], {"preprocessing": "no"}, 'unknown preprocessing "no"'),
  ],
)
def test_bad_classes(square, tok, names, options, message):
  model, params = square
  with pytest.raises(ValueError, match=re.escape(message)):
    paligemma.classify(model, params, tok, PICTURES, names, **options)


def test_bad_texts_and_tokenizers(square, tok, tokenizer):
  model, params = square

  def embed(*arguments):
    return paligemma.embed_texts(model, params, *arguments)

  with pytest.raises(ValueError, match=r"texts\[1\] is int, expected a text"):
    embed(tok, ["a", 3])
  with pytest.raises(ValueError, match="tok is a Tokenizer, expected a palig"):
    embed(tokenizer, ["a"])
  larger = model.clone(txt=model.txt.clone(vocab_size=32_000))
  with pytest.raises(
    ValueError, match=r"has \d+ pieces, but the text tower 32,000 rows; give th"
  ):
    paligemma.embed_texts(larger, params, tok, ["a"])
  rows = int(tok.encode(["nine"], 7)[0].max())
  smaller = model.clone(txt=model.txt.clone(vocab_size=rows))
  with pytest.raises(
    ValueError,
    match=f'text 0, "nine", has token {rows}, beyond the {rows} rows',
  ):
    paligemma.embed_texts(smaller, params, tok, ["nine"])


def test_a_paligemma_has_no_text_tower():
  model, params = paligemma.load("paligemma/assets/tiny.npz")
  with pytest.raises(ValueError, match="the model has no text tower to comp"):
    paligemma.embed_images(model, params, PICTURES)


def test_a_siglip_does_not_answer(square, tokenizer):
  with pytest.raises(ValueError, match="the model is a SigLIP, which compares"):
    paligemma.generate(*square, tokenizer, PICTURES[:1], "caption en")


def test_photos_are_not_asked_of_a_siglip(square, tokenizer, tmp_path):
  model, params = square
  paligemma.save(tmp_path / "siglip.npz", model, params)
  tokenizer.save(tmp_path / "pieces.model")
  Image.fromarray(PICTURES[0]).save(tmp_path / "1.png")
  with pytest.raises(ValueError, match=r"siglip.npz: holds img and txt, expec"):
    predict.predict(
      tmp_path / "siglip.npz",
      tmp_path / "pieces.model",
      tmp_path / "1.png",
      tmp_path / "y.jsonl",
      prompt="caption en",
    )
