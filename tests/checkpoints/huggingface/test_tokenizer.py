"""tokenizer.json, carried out by hand, gives the ids of SentencePiece."""

import itertools
import json
import pathlib
import random
import re

import pytest
import sentencepiece
from sentencepiece import sentencepiece_model_pb2

import paligemma
from paligemma.checkpoints.huggingface import tokenizer as huggingface_tokenizer

TINY = pathlib.Path(paligemma.__file__).parent / "assets/tiny_tokenizer.model"
USER_DEFINED = sentencepiece_model_pb2.ModelProto.SentencePiece.USER_DEFINED
# Gemma has runs of spaces and newlines, and tags, as symbols of the user.
RUNS = ("▁▁", "▁▁▁", "\n\n", "<table>")


@pytest.fixture
def proto():
  return sentencepiece_model_pb2.ModelProto.FromString(TINY.read_bytes())


def write_model(path, proto):
  path.write_bytes(proto.SerializeToString())
  return path


class Encoder:
  """What the tokenizers library makes of a tokenizer.json, slowly."""

  def __init__(self, path):
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    self.added = tokenizer["added_tokens"]
    self.vocab = tokenizer["model"]["vocab"]
    merges = map(tuple, tokenizer["model"]["merges"])
    self.rank = {pair: i for i, pair in enumerate(merges)}
    assert tokenizer["normalizer"]["pattern"] == {"String": " "}
    self.space = tokenizer["normalizer"]["content"]

  def encode(self, text):
    return self._cut(text, (False, True))

  def _cut(self, text, stages):
    """Cuts out added tokens, first those of the text as it came."""
    if not stages:
      return self._merge(text)
    if stages[0]:
      text = text.replace(" ", self.space)
    ids = {
      x["content"]: x["id"] for x in self.added if x["normalized"] is stages[0]
    }
    longest_first = sorted(map(re.escape, ids), key=len, reverse=True)
    found = []
    for part in re.split(f"({'|'.join(longest_first) or '(?!)'})", text):
      found += [ids[part]] if part in ids else self._cut(part, stages[1:])
    return found

  def _merge(self, text):
    pieces = list(text)
    while pairs := [p for p in itertools.pairwise(pieces) if p in self.rank]:
      best = min(pairs, key=self.rank.get)
      i = next(
        i for i in range(len(pieces)) if tuple(pieces[i : i + 2]) == best
      )
      pieces[i : i + 2] = ["".join(best)]
    ids = []
    for piece in pieces:
      names = (
        [piece]
        if piece in self.vocab
        else [f"<0x{b:02X}>" for b in piece.encode()]
      )
      ids += [self.vocab[name] for name in names]
    return ids


def texts():
  rng = random.Random(0)
  parts = [*"abc  de\n0f0é▁<🙂", *RUNS, "<loc0003>", "<seg127>", " the", "  "]
  for _ in range(300):
    yield "".join(rng.choices(parts, k=rng.randrange(30)))
  yield from (
    "what digit is this",
    "detect red circle ; blue",
    "<loc00031>",
    "\t",
  )


@pytest.mark.parametrize("runs", [(), RUNS])
def test_ids_are_those_of_sentencepiece(tmp_path, proto, runs):
  for piece in runs:
    proto.pieces.add(piece=piece, score=0.0, type=USER_DEFINED)
  source = write_model(tmp_path / "source.model", proto)
  huggingface_tokenizer.save(tmp_path, source, len(proto.pieces))
  theirs = Encoder(tmp_path / "tokenizer.json")
  ours = sentencepiece.SentencePieceProcessor(str(source))
  for text in texts():
    assert theirs.encode(text) == ours.encode(text), repr(text)
  assert theirs.encode("<image>x") == [len(proto.pieces), *ours.encode("x")]


def test_files(tmp_path, proto):
  class Tokenizer:
    def save(self, path):
      write_model(path, proto)

  huggingface_tokenizer.save(tmp_path, Tokenizer(), 1792)
  assert (tmp_path / "tokenizer.model").read_bytes() == TINY.read_bytes()
  config = json.loads((tmp_path / "tokenizer_config.json").read_text())
  assert (config["bos_token"], config["eos_token"]) == ("<bos>", "<eos>")
  assert (config["pad_token"], config["unk_token"]) == ("<pad>", "<unk>")
  assert config["tokenizer_class"] == "GemmaTokenizer"
  added = config["added_tokens_decoder"]
  assert (added["1792"]["content"], added["1792"]["special"]) == (
    "<image>",
    True,
  )
  assert added["640"]["content"] == "<loc0000>"
  assert not added["640"]["special"]
  special = json.loads((tmp_path / "special_tokens_map.json").read_text())
  assert special["additional_special_tokens"] == ["<image>"]


@pytest.mark.parametrize("image_token_id", [1792, None])
def test_a_tokenizer_json_stays_what_it_is(tmp_path, image_token_id):
  for name in ("a", "b"):
    (tmp_path / name).mkdir()
  huggingface_tokenizer.save(tmp_path / "a", TINY, image_token_id)
  (tmp_path / "a/tokenizer.model").unlink()
  huggingface_tokenizer.save(tmp_path / "b", tmp_path / "a", image_token_id)
  assert sorted(x.name for x in (tmp_path / "b").iterdir()) == [
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
  ]
  for file in (tmp_path / "a").iterdir():
    assert (tmp_path / "b" / file.name).read_text() == file.read_text()
  if image_token_id is None:  # and where there is one, it gets in
    (tmp_path / "c").mkdir()
    huggingface_tokenizer.save(tmp_path / "c", tmp_path / "a", 1792)
    encoder = Encoder(tmp_path / "c/tokenizer.json")
    assert encoder.encode("<image>x")[0] == 1792


def test_a_piece_may_be_the_image_token(tmp_path, proto):
  proto.pieces[300].piece = "<image>"
  source = write_model(tmp_path / "source.model", proto)
  huggingface_tokenizer.save(tmp_path, source, 300)
  encoder = Encoder(tmp_path / "tokenizer.json")
  assert encoder.encode("<image>") == [300]


@pytest.mark.parametrize("image_token_id", [0, 300, 1791, 1793])
def test_another_number_of_pieces_is_refused(tmp_path, image_token_id):
  match = f"has 1792 pieces, expected {image_token_id}, so that <image>"
  with pytest.raises(ValueError, match=match):
    huggingface_tokenizer.save(tmp_path, str(TINY), image_token_id)


def test_other_kinds_of_sentencepiece_are_refused(tmp_path, proto, tokenizer):
  with pytest.raises(ValueError, match=r"tokenizer: .* it lacks: byte pairs$"):
    huggingface_tokenizer.save(tmp_path, tokenizer, tokenizer.vocab_size)
  proto.normalizer_spec.add_dummy_prefix = True
  proto.normalizer_spec.precompiled_charsmap = b"x"
  proto.trainer_spec.unk_id = 0
  source = write_model(tmp_path / "a.model", proto)
  match = "a.model: .*: pad 0.*unk 3, no add_dummy_prefix, no normalization$"
  with pytest.raises(ValueError, match=match):
    huggingface_tokenizer.save(tmp_path, source, 1792)


def test_an_unreadable_file_is_refused(tmp_path):
  with pytest.raises(
    ValueError, match=r"none\.model: cannot read tokenizer: No"
  ):
    huggingface_tokenizer.save(tmp_path, tmp_path / "none.model", 5)
  (tmp_path / "bad.model").write_bytes(b"\xff" * 9)
  with pytest.raises(ValueError, match=r"bad.model: not a Sent.*\(9 bytes\)"):
    huggingface_tokenizer.save(tmp_path, tmp_path / "bad.model", 5)
