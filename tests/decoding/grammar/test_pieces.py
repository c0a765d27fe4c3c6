import io

import pytest
import sentencepiece

from paligemma.data import tokenizer as tokenizer_lib
from paligemma.decoding import grammar
from paligemma.decoding.grammar import pieces
from tests.decoding.grammar.words import accepts


def ids_of(tokenizer, tmp_path):
  path = tmp_path / "saved.model"
  tokenizer.save(path)
  processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
  return {
    processor.id_to_piece(i): i for i in range(processor.get_piece_size())
  }


def test_every_piece_of_a_sentencepiece_model(tokenizer, tmp_path):
  ids, found = ids_of(tokenizer, tmp_path), pieces.of(tokenizer)
  assert len(found) == tokenizer.vocab_size
  for name in ("<pad>", "</s>", "<s>", "<unk>"):
    assert found[ids[name]] == b""
  assert found[4] == b"\n"
  for value in range(256):
    assert found[ids[f"<0x{value:02X}>"]] == bytes([value])
  for piece, i in ids.items():
    if i > 260:
      assert found[i].decode() == piece.replace("▁", " ")
  assert found[ids["<loc0007>"]] == b"<loc0007>"


def test_joined_they_are_the_text(tokenizer):
  written = pieces.of(tokenizer)
  for text in (
    "what digit",
    " two  words",
    "caf\u00e9 \U0001f600\n",
    "<loc0012>a",
  ):
    ids = tokenizer.encode(text)
    assert b"".join(written[i] for i in ids).decode() == text


@pytest.fixture(scope="module")
def without_bytes(tmp_path_factory):
  """A model whose other characters are <unk>, and with a piece "cat ;"."""
  model = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(["a cat ; a dog", "cat food", "\ufffd"] * 9),
    model_writer=model,
    vocab_size=40,
    hard_vocab_limit=False,
    pad_id=0,
    eos_id=1,
    bos_id=2,
    unk_id=3,
    user_defined_symbols=["\n", "cat▁;"],
    add_dummy_prefix=False,
    remove_extra_whitespaces=True,  # also a leading one, when decoding
    normalization_rule_name="identity",
    minloglevel=2,
  )
  path = tmp_path_factory.mktemp("tokenizer") / "plain.model"
  path.write_bytes(model.getvalue())
  return tokenizer_lib.Tokenizer(path, add_loc_seg=True)


def test_without_bytes_there_are_none(without_bytes, tmp_path):
  ids, found = ids_of(without_bytes, tmp_path), pieces.of(without_bytes)
  assert found[ids["cat▁;"]] == b"cat ;"
  assert found[ids["<unk>"]] == b""
  assert found[ids["▁"]] == b" "
  # It would be taken for the half of a character.
  assert found[ids["\ufffd"]] == b""


def test_what_is_unknown_is_no_choice(without_bytes):
  with pytest.raises(ValueError, match=r"answer 1 is 'x', .* back as ' ⁇ '"):
    grammar.choices(without_bytes, "cat", "x")


def test_a_label_is_written_as_in_training(without_bytes, tmp_path):
  only = grammar.boxes(without_bytes, ["cat", "cat food"])
  box = "<loc0000><loc0001><loc0002><loc0003>"
  text = f"{box} cat food ; {box} cat ; {box} cat"
  ids = without_bytes.encode(text)
  assert accepts(only, ids)
  assert ids_of(without_bytes, tmp_path)["cat▁;"] in ids
  assert not accepts(only, without_bytes.encode(f"{box} cat ; {box} dog"))
  assert not accepts(only, without_bytes.encode(f"{box} cat foo"))
