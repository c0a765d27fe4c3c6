"""A Gemma and a SigLIP of transformers compute the same here."""

import jax
import numpy as np
import pytest

import paligemma
from paligemma.checkpoints import formats
from paligemma.decoding import decode

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from tests.parity.transformers_models import STYLES, random_model  # noqa: E402

BOUND = 1e-4


@pytest.fixture(scope="module", params=STYLES)
def theirs(request):
  window = 3 if request.param.startswith("paligemma2") else None
  return random_model(request.param, seed=5, sliding_window=window)


def as_gemma(theirs):
  """The decoder of a PaliGemma as a causal language model of its own."""
  import transformers

  config = theirs.config.text_config
  config._attn_implementation = "eager"
  gemma = transformers.AutoModelForCausalLM.from_config(
    config, attn_implementation="eager"
  ).eval()
  gemma.model.load_state_dict(theirs.model.language_model.state_dict())
  gemma.tie_weights()
  return gemma


def test_gemma_on_text(theirs, tmp_path, agree):
  gemma = as_gemma(theirs)
  gemma.save_pretrained(tmp_path)
  model, params = paligemma.load(tmp_path)
  assert model.img is None
  text = np.random.default_rng(0).integers(3, 60, (2, 11))
  ours, _ = jax.jit(model.apply)({"params": params}, None, text, text * 0 + 1)
  with torch.no_grad():
    expected = gemma(torch.from_numpy(text)).logits.numpy()
  agree("logits, Gemma alone", ours, expected, BOUND)

  prompt = text[:, :7]
  expected = gemma.generate(
    torch.from_numpy(prompt),
    max_new_tokens=6,
    do_sample=False,
    eos_token_id=model.llm.vocab_size,
    pad_token_id=0,
  ).numpy()[:, 7:]
  decoded = decode.generate(
    model,
    params,
    {
      "text": prompt.astype(np.int32),
      "mask_ar": np.ones(prompt.shape, np.int32),
      "mask_input": np.ones(prompt.shape, bool),
    },
    max_decode_len=6,
    eos_id=model.llm.vocab_size,
  )
  np.testing.assert_array_equal(decoded.tokens, expected)


def test_gemma_from_here(theirs, tmp_path, agree):
  gemma = as_gemma(theirs)
  gemma.save_pretrained(tmp_path / "there")
  model, params = paligemma.load(tmp_path / "there")
  paligemma.save(tmp_path / "here", model, params, format="huggingface")
  back = (
    type(gemma)
    .from_pretrained(tmp_path / "here", attn_implementation="eager")
    .eval()
  )
  text = torch.from_numpy(np.random.default_rng(0).integers(3, 60, (2, 11)))
  with torch.no_grad():
    expected, found = (x(text).logits.numpy() for x in (gemma, back))
  agree("logits, Gemma alone from here", found, expected, BOUND)
  theirs, ours = (x.state_dict() for x in (gemma, back))
  assert theirs.keys() == ours.keys()
  assert all(torch.equal(theirs[name], ours[name]) for name in theirs)


def test_siglip_and_gemma_meet(theirs, tmp_path, agree):
  tower = theirs.model.vision_tower
  tower.save_pretrained(tmp_path / "siglip")
  as_gemma(theirs).save_pretrained(tmp_path / "gemma")
  paths = {"img": tmp_path / "siglip", "llm": tmp_path / "gemma"}
  checkpoint = formats.open(paths)
  assert "img/head/kernel" in checkpoint.created
  model, params = paligemma.load(paths)
  side = theirs.config.vision_config.image_size
  image = np.random.default_rng(0).uniform(-1, 1, (2, side, side, 3))
  image = image.astype(np.float32)
  _, out = model.apply({"params": params}, image, method="embed_image")
  pixels = torch.from_numpy(image.transpose(0, 3, 1, 2).copy())
  with torch.no_grad():
    expected = tower(pixels).last_hidden_state.numpy()
  agree("image features, SigLIP alone", out["img/pre_logits"], expected, BOUND)
