"""Texts for SigLIP: canonical, one length, sticky eos, padding."""

import io
import pickle
import re

import numpy as np
import pytest
import sentencepiece

from paligemma.data.siglip_tokenizer import SiglipTokenizer, canonicalize


@pytest.fixture(scope="session")
def gemma(sentencepiece_model, tmp_path_factory):
  path = tmp_path_factory.mktemp("gemma") / "tokenizer.model"
  path.write_bytes(sentencepiece_model)
  return SiglipTokenizer(path)


@pytest.fixture(scope="session")
def t5(t5_model, tmp_path_factory):
  path = tmp_path_factory.mktemp("t5") / "spiece.model"
  path.write_bytes(t5_model)
  return SiglipTokenizer(path.parent)


def engine(data):
  return sentencepiece.SentencePieceProcessor(model_proto=data)


@pytest.mark.parametrize(
  ("text", "keep", "expected"),
  [
    ("A photo of {}, zoomed-in!", "", "a photo of zoomedin"),
    ("A photo of {}, zoomed-in!", "{}", "a photo of {} zoomedin"),
    ("  Two\n\tlines ", "", "two lines"),
    ("snake_case", "", "snakecase"),
    ("Grand Piano, (wooden)", ",", "grand piano, wooden"),
    ("ÉCOLE “zoo”…", "", "école “zoo”…"),
    ("{", "{}", ""),
    ("", "", ""),
  ],
)
def test_canonicalize(text, keep, expected):
  assert canonicalize(text, keep=keep) == expected


def test_eos_is_sticky_and_padding_follows_it(t5, gemma, t5_model):
  ids = engine(t5_model).encode("red circle")
  assert 1 < len(ids) < 9
  for tok, pad in ((t5, 1), (gemma, 0)):
    assert (tok.eos_id, tok.pad_id, tok.is_gemma) == (1, pad, tok is gemma)
    whole, is_cut = tok.encode(["red circle"], 40)
    n = int(np.argmax(whole[0] == 1))
    assert not is_cut.any() and (whole[0, n + 1 :] == pad).all()
    # All of it and eos, then one less: the last piece makes room for eos.
    for length in (n + 1, n, 1):
      rows, is_cut = tok.encode(["red circle", ""], length)
      assert rows.dtype == np.int32
      np.testing.assert_array_equal(rows[0, :-1], whole[0, : length - 1])
      assert rows[0, -1] == 1 and is_cut.tolist() == [length <= n, False]
      assert rows[1].tolist() == [1] + [pad] * (length - 1)
  np.testing.assert_array_equal(
    t5.encode(["red circle"], 40)[0][0, : len(ids)], ids
  )


def test_what_each_does_to_a_text(t5, gemma):
  text = "Blue, CIRCLE's É"
  assert t5.canonicalize(text) == "blue circles é"
  assert t5.canonicalize(text, keep=",") == "blue, circles é"
  assert gemma.canonicalize(text) == "blue, circle's é"
  # A capital sigma that ends a word is lowered by itself, as transformers does.
  assert gemma.canonicalize("ΟΔΟΣ") == "οδοσ"
  assert t5.canonicalize("ΟΔΟΣ") == "οδος"


def test_control_tokens_in_a_text_are_text(t5, gemma):
  for tok in (t5, gemma):
    for token in ("</s>", "<eos>", "<pad>", "<bos>"):
      ids = tok.encode([token], 30)[0][0]
      assert ids[0] not in (0, 1, 2) or ids.tolist().index(1) > 0


def test_other_processes_have_the_same(t5, gemma):
  for tok in (t5, gemma):
    copy = pickle.loads(pickle.dumps(tok))
    for ours, theirs in zip(
      tok.encode(["Red"], 5), copy.encode(["Red"], 5), strict=True
    ):
      np.testing.assert_array_equal(ours, theirs)
    assert (copy.pad_id, copy.vocab_size) == (tok.pad_id, tok.vocab_size)


def test_files_that_are_none(tmp_path):
  with pytest.raises(ValueError, match=r"x\.model: cannot read tokenizer: "):
    SiglipTokenizer(tmp_path / "x.model")
  with pytest.raises(
    ValueError, match=r"neither spiece\.model nor tokenizer\.model nor tok"
  ):
    SiglipTokenizer(tmp_path)
  (tmp_path / "x.model").write_bytes(b"no model")
  with pytest.raises(ValueError, match="not a SentencePiece model"):
    SiglipTokenizer(tmp_path / "x.model")


def test_another_id_of_eos(tmp_path):
  model = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(["a b c d"] * 9),
    model_writer=model,
    vocab_size=12,
    hard_vocab_limit=False,
    minloglevel=2,
  )
  (tmp_path / "x.model").write_bytes(model.getvalue())
  with pytest.raises(ValueError, match="eos has id 2, expected 1"):
    SiglipTokenizer(tmp_path / "x.model")


def test_half_a_character(t5):
  with pytest.raises(ValueError, match=re.escape('text 1, "\\ud83d"')):
    t5.encode(["a", "\ud83d"], 5)
