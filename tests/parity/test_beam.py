"""Beam search finds what that of transformers finds.

Where both mean the same: early_stopping="never" and no length penalty, which
the two define differently.
"""

import numpy as np
import pytest

import paligemma
from paligemma.decoding import decode

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from tests.parity.transformers_models import STYLES, random_model  # noqa: E402

BOUND = 1e-4
BEAMS, NEW_TOKENS = 4, 8
TEXT_LEN = 5


@pytest.fixture(scope="module", params=STYLES)
def models(request, tmp_path_factory):
  theirs = random_model(request.param, seed=5)
  folder = tmp_path_factory.mktemp("theirs")
  theirs.save_pretrained(folder)
  return theirs, *paligemma.load(folder)


def make_prompts(theirs, vocab_size):
  rng = np.random.default_rng(0)
  size = theirs.config.vision_config.image_size
  tokens = np.setdiff1d(np.arange(3, vocab_size), theirs.config.image_token_id)
  text = rng.choice(tokens, (3, TEXT_LEN)).astype(np.int32)
  return {
    "image": rng.uniform(-1, 1, (3, size, size, 3)).astype(np.float32),
    "text": text,
    "mask_ar": np.zeros_like(text),
    "mask_input": np.ones_like(text, bool),
  }


def search_here(model, params, prompts, eos_id):
  return decode.generate(
    model,
    params,
    prompts,
    max_decode_len=NEW_TOKENS,
    sampler=f"beam({BEAMS})",
    num_answers=BEAMS,
    eos_id=eos_id,
    pad_id=eos_id,  # what theirs fills up with, since its pad_token_id is 0
  )


@torch.no_grad()
def search_there(theirs, prompts, vocab_size, eos_id):
  """Tokens int[B, N, L] and scores float[B, N]."""
  vision = theirs.config.vision_config
  batch = len(prompts["text"])
  image_len = (vision.image_size // vision.patch_size) ** 2
  image_ids = np.full((batch, image_len), theirs.config.image_token_id)
  ids = np.concatenate([image_ids, prompts["text"]], axis=1)
  rows = theirs.config.text_config.vocab_size
  found = theirs.generate(
    pixel_values=torch.tensor(prompts["image"].transpose(0, 3, 1, 2)),
    input_ids=torch.tensor(ids).long(),
    attention_mask=torch.ones(ids.shape).long(),
    token_type_ids=torch.zeros(ids.shape).long(),
    max_new_tokens=NEW_TOKENS,
    do_sample=False,
    num_beams=BEAMS,
    num_return_sequences=BEAMS,
    length_penalty=0.0,
    early_stopping="never",
    eos_token_id=eos_id,
    suppress_tokens=list(range(vocab_size, rows)) or None,
    renormalize_logits=True,  # without the rows that only fill up their table
    return_dict_in_generate=True,
    output_scores=True,
  )
  tokens = np.asarray(found.sequences)[:, ids.shape[1] :]
  tokens = np.pad(tokens, [(0, 0), (0, NEW_TOKENS - tokens.shape[1])])
  scores = np.asarray(found.sequences_scores)
  return tokens.reshape(batch, BEAMS, -1), scores.reshape(batch, BEAMS)


def test_answers_that_are_cut(models, agree):
  theirs, model, params = models
  vocab_size = model.llm.vocab_size
  prompts = make_prompts(theirs, vocab_size)
  ours = search_here(model, params, prompts, -1)
  tokens, scores = search_there(theirs, prompts, vocab_size, None)
  np.testing.assert_array_equal(ours.tokens, tokens)
  agree("scores of beams", ours.score, scores, BOUND)


def test_answers_that_end(models, agree):
  """Theirs are among ours in that order; others of theirs are cut answers."""
  theirs, model, params = models
  vocab_size = model.llm.vocab_size
  prompts = make_prompts(theirs, vocab_size)
  first = np.asarray(search_here(model, params, prompts, -1).tokens)
  lengths = []
  for eos_id in np.unique(first[:, :, 1:]).tolist():
    ours = search_here(model, params, prompts, eos_id)
    tokens, scores = search_there(theirs, prompts, vocab_size, eos_id)
    for row, ended in enumerate(np.any(tokens == eos_id, axis=2)):
      number = ended.sum()
      found = ours.tokens[row, :number]
      np.testing.assert_array_equal(found, tokens[row, ended])
      if number:
        score = ours.score[row, :number]
        agree("scores of beams", score, scores[row, ended], BOUND)
      lengths += ours.num_tokens[row, :number].tolist()
  assert len(lengths) > 10 and len(set(lengths)) > 3
