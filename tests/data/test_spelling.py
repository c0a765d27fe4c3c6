"""Control tokens and locations that texts spell out."""

import random
import re

import numpy as np
import pytest

from paligemma.data import location, sequence, spelling
from paligemma.data.preprocess import Preprocess
from tests.spelled_texts import BOX, plain_ids, random_texts

CODES = "".join(f"<seg{i:03d}>" for i in range(16))


@pytest.mark.parametrize(
  ("text", "images", "expected", "removed"),
  [
    ("caption en", 1, "caption en", ()),
    ("<image>caption en", 1, "caption en", ("<image>",)),
    ("<image> caption en", 1, "caption en", ("<image>",)),
    ("<image>\nWhat is it?", 1, "What is it?", ("<image>",)),
    ("<image><image>which?", 2, "which?", ("<image>",)),
    ("<image> <image>\n<bos>a", 2, "a", ("<image>", "<bos>")),
    ("<bos><image>a", 1, "a", ("<image>", "<bos>")),
    ("<bos>The capital", 0, "The capital", ("<bos>",)),
    ("caption en\n", 1, "caption en", ("line break",)),
    ("a\r\n\n", 1, "a", ("line break",)),
    ("model\n", 0, "model\n", ()),
    ("<image>", 1, "", ("<image>",)),
    (" caption en ", 1, " caption en ", ()),
    ("a\nb", 1, "a\nb", ()),
    (f"caption en {BOX}", 1, f"caption en {BOX}", ()),
    ("is 3 < 5 > 4 <b>bold</b> <section>", 1, None, ()),
  ],
)
def test_prompt(text, images, expected, removed):
  found = spelling.read_prompt(text, images)
  assert found == (text if expected is None else expected, removed)


@pytest.mark.parametrize(
  ("text", "images", "message"),
  [
    ("<image><image>a", 1, "prompt begins with 2 <image>, expected 1 or none"),
    ("<image>a", 0, "prompt begins with 1 <image>, expected none: one for"),
    ("<image>" * 256 + "a", 1, "prompt begins with 256 <image>, expected 1"),
    ("<bos><bos>a", 1, "prompt begins with 2 <bos>, expected 1 or none"),
    ("a <image> b", 1, '<image> stands within the prompt "a <image> b", where'),
    ("a<eos>", 1, '<eos> stands within the prompt "a<eos>"'),
    ("a <pad><pad>", 1, '<pad> stands within the prompt "a <pad><pad>"'),
    ("<unk>", 1, '<unk> stands within the prompt "<unk>"'),
    ("where is <loc100>?", 1, "<loc100> is no piece of the vocabulary, which"),
    (
      "x" * 50 + "\n<bos>" + "y" * 50,
      1,
      f'<bos> stands within the prompt "...{"x" * 19} <bos>{"y" * 35}..."',
    ),
  ],
)
def test_prompt_that_is_refused(text, images, message):
  with pytest.raises(ValueError, match="^" + re.escape(message)) as caught:
    spelling.read_prompt(text, images)
  assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
  ("text", "expected"),
  [
    ("a cat", "a cat"),
    ("a cat<eos>", "a cat"),
    ("a cat <eos><eos>\n", "a cat"),
    ("<eos>", ""),
    ("a cat \n", "a cat \n"),
    (f"{BOX} cat ; {BOX}{CODES} dog<eos>", f"{BOX} cat ; {BOX}{CODES} dog"),
    (f"{BOX}{BOX} cat", f"{BOX}{BOX} cat"),
  ],
)
def test_answer(text, expected):
  removed = ("<eos>",) if text != expected else ()
  assert spelling.read_answer(text) == (expected, removed)


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("a<eos>b", '<eos> stands within the answer "a<eos>b"'),
    ("<bos>a", '<bos> stands within the answer "<bos>a"'),
    ("<image>a", '<image> stands within the answer "<image>a"'),
    (f"{BOX}<loc1024>", "<loc1024> is no piece of the vocabulary"),
    ("<loc100><loc0><loc500><loc300> square", "<loc100> is no piece"),
    (f"{BOX}<seg128>", "<seg128> is no piece of the vocabulary"),
    ("<LOC0001>", "<LOC0001> is no piece"),
    ("<loc 0001>", "<loc 0001> is no piece"),
    ("<loc0001 cat", "<loc0001 is no piece"),
    ("<loc_12>", "<loc_12> is no piece"),
    (f"{BOX[:27]} cat", "3 locations and 0 codes, expected 4 locations"),
    (f"{BOX}<loc0007> cat", "5 locations and 0 codes"),
    (f"{BOX}{CODES[:8]} cat", "4 locations and 1 codes"),
    (f"{CODES} cat", "0 locations and 16 codes"),
    (f"{BOX} cat ; {BOX[:18]} dog", "2 locations and 0 codes"),
  ],
)
def test_answer_that_is_refused(text, message):
  with pytest.raises(ValueError, match="^" + re.escape(message)):
    spelling.read_answer(text)


def test_what_is_only_compared_may_have_any_location():
  text = "<loc100> cat"
  assert spelling.read_answer(text, learned=False) == (text, ())
  with pytest.raises(ValueError, match="stands within the answer"):
    spelling.read_answer("<bos>a", learned=False)


@pytest.mark.parametrize(
  ("text", "flat"),
  [
    (BOX, False),
    ("<loc0333><loc0022><loc0001><loc1023> cat", True),
    ("<loc0001><loc1000><loc0333><loc0999> cat", True),
    (f"{BOX}<loc0001><loc0022><loc0001><loc1023>", True),
    ("no box", False),
  ],
)
def test_flat_boxes(text, flat):
  assert location.has_flat_box(text) == flat


def test_2000_texts_have_the_same_ids_everywhere(tokenizer):
  rng = random.Random(0)
  train = Preprocess(tokenizer, res=1, text_len=400, train=True)
  ask = Preprocess(tokenizer, res=1, text_len=400, train=False)
  for _ in range(2000):
    prompt, answer = random_texts(rng)
    wanted, learned = plain_ids(tokenizer, prompt, answer)
    example = {"prefix": prompt, "suffix": answer}
    row = _row(train, example)
    used = row["text"][row["mask_input"]].tolist()
    assert used == wanted + learned, (prompt, answer)
    assert row["mask_loss"].sum() == len(learned)
    row = _row(ask, example)
    assert row["text"][row["mask_input"]].tolist() == wanted
    read, _ = spelling.read_prompt(prompt, 1)
    row = sequence.prompt(tokenizer, read, 400)
    assert row["text"][row["mask_input"]].tolist() == wanted


def _row(through, example):
  pixel = np.zeros((1, 1, 3), np.uint8)
  return through({**example, "image": pixel}, np.random.default_rng(0))


@pytest.mark.parametrize(
  ("text", "found"),
  [
    ("a cat</s>", "</s>"),
    ("<|im_start|>user\na", "<|im_start|>"),
    ("<image_0> a", "<image_0>"),
    ("see <img src>", "<img src>"),
    ("[INST] a [/INST]", "[INST]"),
    ("a <end_of_turn>", "<end_of_turn>"),
    ("3 < 5 | 7 > 4, [1, 2], <b>a</b>, <section>, <|>", ""),
    (f"{BOX} imagery", ""),
  ],
)
def test_control_tokens_of_other_models(text, found):
  assert spelling.find_foreign(text) == found


@pytest.mark.parametrize("space", [" ", "\n", " <eos> x"])
def test_long_texts_are_read_at_once(space):
  """A regex that looks on from every space would take an hour."""
  text = "<b>" + space * 1_000_000
  try:
    spelling.read_answer(text)
  except ValueError as error:
    assert len(str(error)) < 300


def test_a_long_location_is_not_echoed():
  for text in ("<loc" + "1" * 9999, "<loc" + " " * 9999 + ">"):
    with pytest.raises(ValueError, match=" is no piece of") as caught:
      spelling.read_answer(text)
    assert len(str(caught.value)) < 300
