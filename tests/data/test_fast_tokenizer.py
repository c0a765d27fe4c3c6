"""tokenizer.json gives ids and texts of the SentencePiece file, or a line."""

import json
import pathlib
import pickle
import random
import sys

import pytest

import paligemma
from paligemma.checkpoints.huggingface import tokenizer as huggingface_tokenizer
from paligemma.data.tokenizer import Tokenizer

pytest.importorskip("tokenizers")

TINY = pathlib.Path(paligemma.__file__).parent / "assets/tiny_tokenizer.model"
CONTROL = ("<bos>", "<eos>", "<pad>", "<unk>", "<image>", "<0x0A>", "<loc12>")
PARTS = [
  *"abcdefghij 0123456789.,;?\n\té日ß\u0301\u200d\ufffd▁<>",
  *(" ", "  ", "    ", "\n\n", "🙂", "👩‍👩‍👧", "\U0010fffd", "\x00", "\r"),
  *("what digit", "is this", "detect", "segment", "caption en", "answer"),
  *("<loc0000>", "<loc0512>", "<loc1023>", "<seg000>", "<seg127>", *CONTROL),
]


def texts(count, seed=0):
  rng = random.Random(seed)
  for _ in range(count):
    yield "".join(rng.choices(PARTS, k=rng.randrange(25)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """What transformers 5 writes of a tokenizer: no SentencePiece file."""
  folder = tmp_path_factory.mktemp("fast")
  huggingface_tokenizer.save(folder, TINY, 1792)
  (folder / "tokenizer.model").unlink()
  return folder


@pytest.fixture(scope="module")
def fast(folder):
  return Tokenizer(folder)


@pytest.fixture(scope="module")
def slow():
  return Tokenizer(TINY)


def test_ids_of_random_texts(fast, slow):
  for text in texts(3000):
    ids = slow.encode(text, bos=True, eos=True)
    assert fast.encode(text, bos=True, eos=True) == ids, repr(text)
    assert fast.decode(ids) == slow.decode(ids), repr(text)


def test_texts_of_random_ids(fast, slow):
  rng = random.Random(0)
  # Bytes more often than their share, in runs that are no UTF-8.
  first = slow.encode("\x00")[0]
  for _ in range(1000):
    ids = [
      rng.randrange(first, first + 256) if rng.random() < 0.7 else i
      for i in rng.choices(range(slow.vocab_size), k=rng.randrange(12))
    ]
    assert fast.decode(ids) == slow.decode(ids), ids
    assert fast.pieces(ids) == slow.pieces(ids), ids


def test_all_else_is_the_same(fast, slow):
  assert fast.vocab_size == slow.vocab_size == 1792
  assert [fast.loc_id(i) for i in (0, 1023)] == [
    slow.loc_id(i) for i in (0, 1023)
  ]
  assert fast.seg_id(127) == slow.seg_id(127)
  with pytest.raises(ValueError, match="token id 1792 is outside of"):
    fast.decode([1792])


def test_pickle_and_save_keep_it(fast, tmp_path):
  assert fast.file_name == "tokenizer.json"
  fast.save(tmp_path / "x.json")
  text = "what <loc0003>\n<seg001> 🙂"
  for copy in (
    pickle.loads(pickle.dumps(fast)),
    Tokenizer(tmp_path / "x.json"),
  ):
    assert copy.encode(text) == fast.encode(text)
    assert copy.vocab_size == fast.vocab_size


def test_which_file_of_a_folder(folder, tmp_path):
  with pytest.raises(ValueError, match=r"neither tokenizer.model nor tokeni"):
    Tokenizer(tmp_path)
  (tmp_path / "tokenizer.json").write_bytes(
    (folder / "tokenizer.json").read_bytes()
  )
  assert Tokenizer(tmp_path).file_name == "tokenizer.json"
  (tmp_path / "tokenizer.model").write_bytes(TINY.read_bytes())
  assert Tokenizer(str(tmp_path)).file_name == "tokenizer.model"


@pytest.fixture
def change(folder, tmp_path):
  """Writes the file after a change; returns its path."""

  def change(edit):
    values = json.loads((folder / "tokenizer.json").read_text())
    edit(values)
    (tmp_path / "tokenizer.json").write_text(json.dumps(values))
    return tmp_path / "tokenizer.json"

  return change


def test_tokens_behind_the_image_token(change):
  def add(values):
    token = values["added_tokens"][-1]
    assert token["content"] == "<image>"
    values["added_tokens"].append({**token, "id": 1793, "content": "<mine>"})

  tokenizer = Tokenizer(change(add))
  assert tokenizer.vocab_size == 1794
  assert tokenizer.encode("<mine>") == [1793]
  assert 1792 not in tokenizer.encode("<image>")


def test_locations_that_are_special(change, slow):
  def mark(values):
    for token in values["added_tokens"]:
      token["special"] = True

  tokenizer = Tokenizer(change(mark))
  for text in texts(50):
    assert tokenizer.encode(text) == slow.encode(text), repr(text)


def test_locations_are_added_if_asked(change, slow):
  def remove(values):
    names = [*slow.pieces(range(slow.loc_id(0), slow.vocab_size))]
    for name in names:
      values["model"]["vocab"].pop(name)
    values["added_tokens"] = [
      x for x in values["added_tokens"] if x["content"] not in names
    ]
    values["added_tokens"][-1]["id"] = slow.loc_id(0)

  path = change(remove)
  with pytest.raises(ValueError, match=r"1152 of 1152 .* add_loc_seg=True"):
    Tokenizer(path)
  tokenizer = Tokenizer(path, add_loc_seg=True)
  for text in texts(50):
    assert tokenizer.encode(text) == slow.encode(text), repr(text)


@pytest.mark.parametrize(
  ("edit", "message"),
  [
    (lambda x: x.update(normalizer=None), "lacks: spaces as pieces spell them"),
    (lambda x: x["model"].update(byte_fallback=False), "lacks: byte_fallback"),
    (lambda x: x["model"].update(type="WordPiece"), "lacks: byte pairs"),
    (lambda x: x.pop("model"), r"not a tokenizer\.json \(\d+ bytes\)"),
    (lambda x: x.update(added_tokens=[3]), "malformed added_tokens"),
    (lambda x: x["model"].update(merges=[3]), r"not a tokenizer\.json \("),
    (lambda x: x["added_tokens"].pop(9), "<loc0004> encodes to id"),
  ],
)
def test_other_files(change, edit, message):
  path = change(edit)
  with pytest.raises(ValueError, match=message) as error:
    Tokenizer(path)
  assert str(error.value).startswith(str(path))
  assert len(str(error.value).splitlines()) == 1


def test_without_the_library(folder, monkeypatch):
  monkeypatch.setitem(sys.modules, "tokenizers", None)
  message = r"tokenizer\.json: .*pip install \"paligemma\[tokenizers\]\""
  with pytest.raises(ValueError, match=message):
    Tokenizer(folder)
