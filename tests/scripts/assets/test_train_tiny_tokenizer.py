"""The small tokenizer has the layout of PaliGemma's own file."""

import pathlib

import pytest
import sentencepiece
from sentencepiece import sentencepiece_model_pb2

import paligemma
from paligemma.data import tokenizer
from scripts.assets import draw_pictures, train_tiny_tokenizer

ASSET = pathlib.Path(paligemma.__file__).parent / "assets/tiny_tokenizer.model"
TEXTS = (
  "answer en what number is written here?",
  "  two  spaces, a\ttab\nand\n\nnew lines ",
  "Größe, 数字, цифра, رقم, 🙂🏽, e\u0301",
  "<b>5 < 7</b> {x: [1.5e-3]}",
)


@pytest.fixture(scope="module")
def processor():
  return sentencepiece.SentencePieceProcessor(model_file=str(ASSET))


def test_shipped_file_is_what_the_script_makes():
  made, shipped = (
    sentencepiece_model_pb2.ModelProto.FromString(model)
    for model in (train_tiny_tokenizer.make_tokenizer(), ASSET.read_bytes())
  )
  assert made.pieces == shipped.pieces
  assert made.normalizer_spec == shipped.normalizer_spec


def test_order_of_the_pieces(processor):
  pieces = [processor.id_to_piece(i) for i in range(len(processor))]
  assert len(pieces) == 1792
  assert pieces[:5] == ["<pad>", "<eos>", "<bos>", "<unk>", "\n"]
  assert pieces[5:261] == [f"<0x{i:02X}>" for i in range(256)]
  assert pieces[640:1664] == [f"<loc{i:04d}>" for i in range(1024)]
  assert pieces[1664:] == [f"<seg{i:03d}>" for i in range(128)]
  assert len(set(pieces)) == 1792


def test_locations_and_segments_are_one_id_each(processor):
  for first, names in (
    (640, [f"<loc{i:04d}>" for i in range(1024)]),
    (1664, [f"<seg{i:03d}>" for i in range(128)]),
  ):
    expected = list(range(first, first + len(names)))
    assert processor.encode("".join(names)) == expected
    assert processor.encode(names) == [[i] for i in expected]


@pytest.mark.parametrize("text", TEXTS)
def test_any_text_survives(processor, text):
  ids = processor.encode(text)
  assert processor.unk_id() not in ids
  assert processor.decode(ids) == text


def test_new_line_and_digits_stand_alone(processor):
  assert processor.encode("a\n\nb", out_type=str) == ["a", "\n", "\n", "b"]
  assert processor.encode("x2507", out_type=str) == ["x", "2", "5", "0", "7"]


def test_no_space_is_put_before_the_text(processor):
  assert processor.encode("detect circle", out_type=str) == [
    "detect",
    "▁circle",
  ]


def test_questions_on_pictures_are_short(processor):
  lengths = []
  for index in range(97):
    _, *texts = draw_pictures.make_example(0, "val", index, 23)
    lengths += [len(processor.encode(text)) for text in texts]
  assert max(lengths) <= 30


def test_library_reads_the_file():
  ours = tokenizer.Tokenizer(ASSET)
  assert ours.vocab_size == 1792
  assert (ours.pad_id, ours.eos_id, ours.bos_id) == (0, 1, 2)
  assert (ours.loc_id(1023), ours.seg_id(127)) == (1663, 1791)
  for text in TEXTS:
    assert ours.decode(ours.encode(text, bos=True, eos=True)) == text
