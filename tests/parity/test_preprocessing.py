"""Images and texts equal those of transformers' processor, live.

The same on fixed examples, without transformers: tests/data/test_image.py and
tests/data/test_sequence.py.
"""

import io

import numpy as np
import pytest
from PIL import Image
from sentencepiece import sentencepiece_model_pb2

from paligemma.data import image as image_lib
from paligemma.data import image_files, sequence
from paligemma.data import tokenizer as tokenizer_lib

pytest.importorskip("transformers")

from tests.goldens.preprocessing.make_preprocessing import (
  IMAGE_TOKENS,
  TOKENIZER,
  processor,
)

SIZE = (37, 53)
TEXT_LEN = 307
NUM_TEXTS = 300
FRAGMENTS = [
  *("what digit is this", "answer en", "detect", "A", "Red;Blue", "x\n\ny"),
  *("0123 9", ".", "?", "'s", "é", "ñ", "日本", "😀", "ﬁ", "①", "\u00a0"),
  *("\u3000", "\t", "\n", "  ", "<loc0003>", "<seg127>", "<loc", "<loc12>"),
  *("<b>", "▁", "\\n", "%"),
]


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
  return processor(tmp_path_factory.mktemp("processor"), SIZE)


def call(theirs, prefix, suffix):
  blank = Image.new("RGB", (3, 3))
  rows = theirs(
    images=[blank],
    text=[f"<image>{prefix}"],
    suffix=[suffix],
    return_tensors="np",
  )
  return {key: rows[key][0].tolist() for key in rows if key != "pixel_values"}


# Portraits too: there the order of Pillow's two passes depends on its version.
@pytest.mark.parametrize(
  "shape", [(480, 640), (640, 480), (29, 31), (300, 17), (11, 211)]
)
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_images(theirs, agree, shape, kind):
  rng = np.random.default_rng(sum(shape))
  noise = rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
  file = io.BytesIO()
  Image.fromarray(noise).save(file, kind)
  pixels = image_files.decode(file.getvalue())
  picture = Image.open(file)
  expected = theirs.image_processor(picture, return_tensors="np")
  expected = expected["pixel_values"][0].transpose(1, 2, 0)
  ours = image_lib.PREPROCESSING["hf"](pixels, SIZE)
  agree("processor: image", ours, expected, 5e-7)


def test_transparency_and_gray(theirs, agree):
  rng = np.random.default_rng(0)
  rgba = rng.integers(0, 256, (41, 43, 4), dtype=np.uint8)
  for picture in (Image.fromarray(rgba), Image.fromarray(rgba[:, :, 0])):
    file = io.BytesIO()
    picture.save(file, "PNG")
    expected = theirs.image_processor(picture, return_tensors="np")
    ours = image_lib.hf(image_files.decode(file.getvalue()), SIZE)
    expected = expected["pixel_values"][0].transpose(1, 2, 0)
    agree("processor: image", ours, expected, 5e-7)


def test_texts(theirs):
  tokenizer = tokenizer_lib.Tokenizer(TOKENIZER)
  rng = np.random.default_rng(0)
  for _ in range(NUM_TEXTS):
    prefix, suffix = (
      "".join(
        rng.choice(FRAGMENTS) + rng.choice([" ", "", ""])
        for _ in range(rng.integers(8))
      )
      for _ in range(2)
    )
    ours = sequence.training(tokenizer, prefix, suffix, TEXT_LEN)
    count = ours["mask_input"].sum()
    ids, is_answer = ours["text"][:count], ours["mask_loss"][:count]
    rows = call(theirs, prefix, suffix)
    assert rows["input_ids"][IMAGE_TOKENS:] == ids.tolist(), (prefix, suffix)
    assert rows["token_type_ids"][IMAGE_TOKENS:] == is_answer.tolist()
    labels = np.where(is_answer, ids, -100).tolist()
    assert rows["labels"][IMAGE_TOKENS:] == labels


def test_a_newline_before_the_separator_may_differ(tmp_path):
  """The first difference that sequence.py names."""
  model = sentencepiece_model_pb2.ModelProto.FromString(TOKENIZER.read_bytes())
  kind = sentencepiece_model_pb2.ModelProto.SentencePiece.USER_DEFINED
  model.pieces.add(piece="\n\n", score=0.0, type=kind)
  path = tmp_path / "two_newlines.model"
  path.write_bytes(model.SerializeToString())
  tokenizer = tokenizer_lib.Tokenizer(path)
  (newline,) = tokenizer.encode("\n")
  (both,) = tokenizer.encode("\n\n")
  (tmp_path / "theirs").mkdir()
  rows = call(processor(tmp_path / "theirs", SIZE, path), "red\n", "")
  ours = sequence.prompt(tokenizer, "red\n", 31)
  ours = ours["text"][ours["mask_input"]].tolist()
  assert ours == [2, *tokenizer.encode("red"), newline, newline]
  assert rows["input_ids"][IMAGE_TOKENS:-1] == [*ours[:-2], both]


def test_names_of_special_tokens_stay_text(theirs):
  """The second difference that sequence.py names."""
  tokenizer = tokenizer_lib.Tokenizer(TOKENIZER)
  for special, i in {"<pad>": 0, "<eos>": 1, "<bos>": 2, "<unk>": 3}.items():
    rows = call(theirs, special, "")
    assert rows["input_ids"][IMAGE_TOKENS:-2] == [2, i]
    ours = sequence.prompt(tokenizer, special, 31)["text"].tolist()
    assert len(tokenizer.encode(special)) > 1
    assert tokenizer.decode(ours) == f"{special}\n"


def test_a_space_behind_the_image_belongs_to_the_prompt(theirs):
  """The third difference that sequence.py names."""
  tokenizer = tokenizer_lib.Tokenizer(TOKENIZER)
  rows = call(theirs, " red", "")
  ours = sequence.prompt(tokenizer, " red", 31)
  ids = ours["text"][ours["mask_input"]].tolist()
  assert rows["input_ids"][IMAGE_TOKENS:-1] == ids
  assert (
    ids != sequence.prompt(tokenizer, "red", 31)["text"].tolist()[: len(ids)]
  )
