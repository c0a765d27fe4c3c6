"""Whole-matrix goldens of ids and masks."""

import json
import pathlib
import re

import numpy as np
import pytest

import paligemma
from paligemma.data import sequence
from paligemma.data import tokenizer as tokenizer_lib

GOLDENS = pathlib.Path(__file__).parents[1] / "goldens" / "preprocessing"
ASSETS = pathlib.Path(paligemma.__file__).parent / "assets"
LENGTH = 7


@pytest.fixture
def ids(tokenizer):
  """Ids of the docstring's example in this vocabulary: <loc0003>, <seg005>."""
  (newline,) = tokenizer.encode("\n")
  return tokenizer.loc_id(3), newline, tokenizer.seg_id(5)


def check(arrays, expected, dtypes):
  assert arrays.keys() == expected.keys()
  for key, value in expected.items():
    np.testing.assert_array_equal(arrays[key], value, err_msg=key)
    assert arrays[key].dtype == dtypes[key], key


DTYPES = {
  "text": np.int32,
  "mask_ar": np.int32,
  "mask_input": np.bool_,
  "mask_loss": np.int32,
  "truncated": np.int32,
}


def test_training(tokenizer, ids):
  loc, newline, seg = ids
  arrays = sequence.training(tokenizer, "<loc0003>", "<seg005>", LENGTH)
  expected = {
    "text": [2, loc, newline, seg, 1, 0, 0, 0],
    "mask_ar": [0, 0, 0, 1, 1, 1, 1, 1],
    "mask_input": [1, 1, 1, 1, 1, 0, 0, 0],
    "mask_loss": [0, 0, 0, 1, 1, 0, 0, 0],
  }
  check(arrays, expected, DTYPES)


def test_prompt(tokenizer, ids):
  loc, newline, _ = ids
  arrays = sequence.prompt(tokenizer, "<loc0003>", LENGTH)
  expected = {
    "text": [2, loc, newline, 0, 0, 0, 0],
    "mask_ar": [0, 0, 0, 1, 1, 1, 1],
    "mask_input": [1, 1, 1, 0, 0, 0, 0],
  }
  check(arrays, expected, DTYPES)


def test_causal_prompt(tokenizer, ids):
  loc, _, _ = ids
  arrays = sequence.prompt(tokenizer, "<loc0003>", 5, causal=True)
  expected = {
    "text": [2, loc, 0, 0, 0],
    "mask_ar": [1, 1, 1, 1, 1],
    "mask_input": [1, 1, 0, 0, 0],
  }
  check(arrays, expected, DTYPES)
  with pytest.raises(ValueError, match=r"^prompt has 2 tokens, text_len is 1;"):
    sequence.prompt(tokenizer, "<loc0003>", 1, causal=True)


def test_causal_prompt_adds_nothing_but_bos(tokenizer):
  for text in ("what digit is this", "", "two\nlines\n"):
    arrays = sequence.prompt(tokenizer, text, 61, causal=True)
    found = arrays["text"][arrays["mask_input"]]
    np.testing.assert_array_equal(found, [2, *tokenizer.encode(text)])


def test_layout_equals_that_of_transformers():
  """What PaliGemmaProcessor gives behind its image tokens and padding."""
  tokenizer = tokenizer_lib.Tokenizer(ASSETS / "tiny_tokenizer.model")
  with np.load(GOLDENS / "preprocessing.npz") as file:
    goldens = dict(file)
  texts = json.loads(str(goldens["texts"]))
  assert len(texts) == len(goldens["input_ids"]) > 3
  image_tokens = goldens["image_tokens"]
  for i, (prefix, suffix) in enumerate(texts):
    text_len = 101
    ours = sequence.training(tokenizer, prefix, suffix, text_len)
    valid = ours["mask_input"]
    labels = np.where(ours["mask_loss"], ours["text"], -100)
    attended = goldens["attention_mask"][i] == 1
    for key, mine in (
      ("input_ids", ours["text"]),
      ("token_type_ids", ours["mask_ar"]),
      ("labels", labels),
    ):
      theirs = goldens[key][i][attended][image_tokens:]
      np.testing.assert_array_equal(mine[valid], theirs, err_msg=key)
    ours = sequence.prompt(tokenizer, prefix, text_len)
    is_prompt = attended & (goldens["token_type_ids"][i] == 0)
    np.testing.assert_array_equal(
      ours["text"][ours["mask_input"]],
      goldens["input_ids"][i][is_prompt][image_tokens:],
    )


def test_prompt_is_the_beginning_of_training(tokenizer):
  """What is decoded after is what was trained on: the prompt's ids agree."""
  for prefix in ("what digit is this", "", "caption en ", "two\nlines"):
    short = sequence.prompt(tokenizer, prefix, 61)
    long = sequence.training(tokenizer, prefix, "one two", 61)
    prompt_len = short["mask_input"].sum()
    np.testing.assert_array_equal(
      short["text"][:prompt_len], long["text"][:prompt_len]
    )
    assert not long["mask_ar"][:prompt_len].any()
    assert long["mask_ar"][prompt_len:].all()


def test_separator_does_not_merge_with_its_neighbours(tokenizer):
  (newline,) = tokenizer.encode("\n")
  prefix_ids, suffix_ids = map(tokenizer.encode, ("what ", " one"))
  text = sequence.training(tokenizer, "what ", " one", 40)["text"]
  expected = [2, *prefix_ids, newline, *suffix_ids, 1]
  np.testing.assert_array_equal(text[: len(expected)], expected)


def test_exactly_full(tokenizer, ids):
  loc, newline, seg = ids
  arrays = sequence.training(tokenizer, "<loc0003>", "<seg005>", 4)
  np.testing.assert_array_equal(arrays["text"], [2, loc, newline, seg, 1])
  assert arrays["mask_input"].all()
  assert sequence.prompt(tokenizer, "<loc0003>", 3)["mask_input"].all()


def test_empty_answer_supervises_the_end(tokenizer):
  arrays = sequence.training(tokenizer, "<loc0003>", "", 5)
  np.testing.assert_array_equal(arrays["mask_loss"], [0, 0, 0, 1, 0, 0])
  assert arrays["text"][3] == tokenizer.eos_id


def test_too_long_is_counted(tokenizer):
  with pytest.raises(
    ValueError,
    match=r"^prompt and answer have 3 \+ 4 tokens, text_len 5 has room for 6;",
  ):
    sequence.training(tokenizer, "<loc0003>", "<seg005>" * 3, 5)
  with pytest.raises(ValueError, match=r"^prompt has 3 tokens, text_len is 2;"):
    sequence.prompt(tokenizer, "<loc0003>", 2)


def test_truncate_cuts_the_end_of_the_answer(tokenizer, ids):
  loc, newline, seg = ids
  arrays = sequence.training(
    tokenizer, "<loc0003>", "<seg005>" * 3, 4, too_long="truncate"
  )
  expected = {
    "text": [2, loc, newline, seg, seg],
    "mask_ar": [0, 0, 0, 1, 1],
    "mask_input": [1, 1, 1, 1, 1],
    "mask_loss": [0, 0, 0, 1, 1],
    "truncated": 1,
  }
  check(arrays, expected, DTYPES)
  arrays = sequence.training(
    tokenizer, "<loc0003>", "<seg005>", 4, too_long="truncate"
  )
  assert arrays["truncated"] == 0
  assert arrays["truncated"].dtype == np.int32


def test_truncate_cuts_a_prompt_that_is_too_long(tokenizer, ids):
  """As the reference, which concatenates first: then nothing is supervised."""
  loc, _, _ = ids
  arrays = sequence.training(
    tokenizer, "<loc0003>" * 7, "<seg005>", 4, too_long="truncate"
  )
  expected = {
    "text": [2, loc, loc, loc, loc],
    "mask_ar": [0] * 5,
    "mask_input": [1] * 5,
    "mask_loss": [0] * 5,
    "truncated": 1,
  }
  check(arrays, expected, DTYPES)
  found = sequence.prompt(tokenizer, "<loc0003>" * 7, 3, too_long="truncate")
  assert found["text"].tolist() == [2, loc, loc]
  assert found["mask_input"].all()
  with pytest.raises(ValueError, match=r"have 9 \+ 2 tokens, text_len 8 has"):
    sequence.training(tokenizer, "<loc0003>" * 7, "<seg005>", 8)


def test_unknown_choice_of_too_long(tokenizer):
  with pytest.raises(ValueError, match='Did you mean "truncate"'):
    sequence.training(tokenizer, "", "", 5, too_long="truncated")


def test_parts_of_the_answer_may_be_no_targets(tokenizer):
  suffix = "<loc0003><loc0005> red ; <loc0007><loc0011> blue"
  spans = [
    (match.start(), match.end())
    for match in re.finditer("(<loc....>)+", suffix)
  ]
  whole = sequence.training(tokenizer, "what", suffix, 41)
  for parts in (spans[1:], spans, [], spans[:1]):
    part = sequence.training(tokenizer, "what", suffix, 41, unsupervised=parts)
    dropped = [suffix[start:stop] for start, stop in parts]
    ids = [i for text in dropped for i in tokenizer.encode(text)]
    left_out = whole["mask_loss"] - part["mask_loss"]
    assert part["text"][left_out == 1].tolist() == ids
    assert left_out.min() >= 0
    assert part["mask_loss"].dtype == np.int32
    for key in ("text", "mask_ar", "mask_input"):
      np.testing.assert_array_equal(part[key], whole[key])


def test_truncation_and_parts_that_are_no_targets(tokenizer, ids):
  loc, newline, seg = ids
  arrays = sequence.training(
    tokenizer,
    "<loc0003>",
    "<seg005><loc0003>" * 2,
    5,
    too_long="truncate",
    unsupervised=[(8, 17), (25, 34)],
  )
  expected = {
    "text": [2, loc, newline, seg, loc, seg],
    "mask_ar": [0, 0, 0, 1, 1, 1],
    "mask_input": [1, 1, 1, 1, 1, 1],
    "mask_loss": [0, 0, 0, 1, 0, 1],
    "truncated": 1,
  }
  check(arrays, expected, DTYPES)


def test_no_token_is_cut_by_a_part(tokenizer):
  with pytest.raises(ValueError, match="do not begin and end where tokens"):
    sequence.training(tokenizer, "", "<loc0003> red", 30, unsupervised=[(0, 4)])


@pytest.mark.parametrize("parts", [5, ["a"], [(0, 1, 2)], [("a", "b")], [0.5]])
def test_parts_are_pairs_of_positions(tokenizer, parts):
  with pytest.raises(ValueError, match=r"^unsupervised is .*, expected \(sta"):
    sequence.training(tokenizer, "", "red", 30, unsupervised=parts)
