"""The layout of ids that PaliGemma relies on, and files that lack it."""

import pickle

import numpy as np
import pytest
from sentencepiece import sentencepiece_model_pb2

from paligemma.data import tokenizer as tokenizer_lib

PLAIN_SIZE = 256_000
PIECE = sentencepiece_model_pb2.ModelProto.SentencePiece
USER_DEFINED = PIECE.USER_DEFINED


@pytest.fixture
def write(tmp_path, sentencepiece_model):
  """Writes the small model after a change of its proto; returns the path."""

  def write(change):
    proto = sentencepiece_model_pb2.ModelProto.FromString(sentencepiece_model)
    change(proto)
    path = tmp_path / "changed.model"
    path.write_bytes(proto.SerializeToString())
    return path

  return write


def test_special_ids(tokenizer):
  assert tokenizer.encode("", bos=True, eos=True) == [2, 1]
  assert (tokenizer.pad_id, tokenizer.eos_id, tokenizer.bos_id) == (0, 1, 2)


@pytest.mark.parametrize(
  "text",
  [
    "what digit is this",
    " two  spaces ",
    "line\nbreak",
    "héé 日本 🙂",
    "",
    "\n",
  ],
)
def test_decode_inverts_encode(tokenizer, text):
  assert tokenizer.decode(tokenizer.encode(text, bos=True, eos=True)) == text


def test_half_a_surrogate_pair_is_refused(tokenizer):
  assert tokenizer.encode("cut \U0001f600")
  with pytest.raises(ValueError, match=r"holds '\\ud83d', half a surrogate"):
    tokenizer.encode("cut \ud83d")


def test_every_loc_and_seg_is_one_id(tokenizer):
  first = tokenizer.vocab_size - 1024 - 128
  for i in range(1024):
    assert tokenizer.encode(f"<loc{i:04d}>") == [first + i]
    assert tokenizer.loc_id(i) == first + i
  for i in range(128):
    assert tokenizer.encode(f"<seg{i:03d}>") == [first + 1024 + i]
    assert tokenizer.seg_id(i) == first + 1024 + i


def test_loc_inside_text_is_one_id(tokenizer):
  ids = tokenizer.encode("detect<loc0007> red;<seg127>")
  assert ids.count(tokenizer.loc_id(7)) == 1
  assert ids.count(tokenizer.seg_id(127)) == 1
  assert tokenizer.decode(ids) == "detect<loc0007> red;<seg127>"


def test_decode_stops_at_the_first_eos(tokenizer):
  ids = tokenizer.encode("red")
  assert tokenizer.decode(np.array([2, *ids, 1, *ids, 0, 0])) == "red"


def test_decode_names_an_id_out_of_range(tokenizer):
  for i in (tokenizer.vocab_size, -1):
    with pytest.raises(ValueError, match=f"token id {i} is outside of"):
      tokenizer.decode([i])


def test_pickle_and_save_keep_it(tokenizer, tmp_path):
  tokenizer.save(tmp_path / "saved.model")
  text = "what <loc0003>\n<seg001>"
  for copy in (
    pickle.loads(pickle.dumps(tokenizer)),
    tokenizer_lib.Tokenizer(tmp_path / "saved.model"),
  ):
    assert copy.encode(text) == tokenizer.encode(text)
    assert copy.vocab_size == tokenizer.vocab_size


def test_plain_gemma_gets_the_official_ids(write):
  def fill(proto):
    for i in range(PLAIN_SIZE - len(proto.pieces)):
      proto.pieces.add(piece=f"<unused{i}>", type=USER_DEFINED)

  tokenizer = tokenizer_lib.Tokenizer(write(fill))
  assert tokenizer.vocab_size == 257_152
  assert tokenizer.loc_id(0) == 256_000
  assert tokenizer.encode("<loc1023><seg000><seg127>") == [
    257_023,
    257_024,
    257_151,
  ]


def test_file_without_loc_and_seg(write):
  with pytest.raises(
    ValueError, match=r"1152 of 1152 .* <loc0000>; .* add_loc_seg=True"
  ):
    tokenizer_lib.Tokenizer(write(lambda proto: None))


def test_file_with_some_of_them(write):
  def add(proto):
    proto.pieces.add(piece="<loc0000>", type=USER_DEFINED)

  with pytest.raises(ValueError, match=r"1151 of 1152 .* <loc0001>"):
    tokenizer_lib.Tokenizer(write(add), add_loc_seg=True)


def test_pieces_that_are_not_matched_in_text(write):
  def add(proto):
    for piece in tokenizer_lib.LOC + tokenizer_lib.SEG:
      proto.pieces.add(piece=piece, type=PIECE.CONTROL)

  with pytest.raises(ValueError, match=r"<loc0000> encodes to id .* user-def"):
    tokenizer_lib.Tokenizer(write(add))


def test_pieces_out_of_order(write):
  def add(proto):
    for piece in tokenizer_lib.SEG + tokenizer_lib.LOC[::-1]:
      proto.pieces.add(piece=piece, type=USER_DEFINED)

  with pytest.raises(ValueError, match="<loc0001> encodes to id"):
    tokenizer_lib.Tokenizer(write(add))


def test_other_special_ids(write):
  def swap(proto):
    eos, bos = proto.pieces[1].piece, proto.pieces[2].piece
    proto.pieces[1].piece, proto.pieces[2].piece = bos, eos

  with pytest.raises(ValueError, match="eos has id 2, expected 1"):
    tokenizer_lib.Tokenizer(write(swap), add_loc_seg=True)


def test_newline_that_is_not_a_piece(write):
  def remove(proto):
    proto.trainer_spec.byte_fallback = False
    for piece in proto.pieces:
      if piece.type in (PIECE.BYTE, USER_DEFINED):
        piece.piece, piece.type = f"<was {piece.piece}>", PIECE.UNUSED

  with pytest.raises(ValueError, match=r"the newline, .* user_defined_symbols"):
    tokenizer_lib.Tokenizer(write(remove), add_loc_seg=True)


def test_missing_and_foreign_files(tmp_path):
  with pytest.raises(ValueError, match=r"none\.model: cannot read tokenizer"):
    tokenizer_lib.Tokenizer(tmp_path / "none.model")
  path = tmp_path / "foreign.model"
  for data in (b"", b"not a model at all"):
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"foreign\.model: not a SentenceP"):
      tokenizer_lib.Tokenizer(path)


def test_pieces_join_to_the_text(tokenizer):
  text = "<loc0012>a red circle ; <seg007>d\u00e9j\u00e0 \u65e5\n"
  ids = tokenizer.encode(text, eos=True)
  pieces = tokenizer.pieces([*ids, tokenizer.pad_id])
  assert len(pieces) == len(ids) + 1
  assert "".join(pieces) == tokenizer.decode(ids) == text
  assert pieces[0] == "<loc0012>" and pieces[-2:] == ["", ""]
  assert "<seg007>" in pieces
