"""Words of captions are those of PTBTokenizer, run once by make_captions.py."""

import json
import pathlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paligemma.metrics import ptb_tokenizer

GOLDEN = pathlib.Path(__file__).parents[1] / "goldens/captions/captions.json"


@pytest.fixture(scope="module")
def golden():
  return json.loads(GOLDEN.read_text())["tokens"]


def test_equals_ptb_tokenizer(golden):
  assert len(golden) > 700
  found = [[text, ptb_tokenizer.tokenize(text)] for text, _ in golden]
  assert found == golden


@pytest.mark.parametrize("i", range(len(ptb_tokenizer.RULES)))
def test_every_rule_decides_on_some_caption(i, golden, monkeypatch):
  rules = ptb_tokenizer.RULES
  monkeypatch.setattr(ptb_tokenizer, "RULES", rules[:i] + rules[i + 1 :])
  assert any(ptb_tokenizer.tokenize(text) != words for text, words in golden)


def test_the_example_of_the_docstring():
  text = "A man's dog (brown) isn't on St. Mark's No. 5 bus..."
  assert ptb_tokenizer.tokenize(text) == (
    "a man 's dog -lrb- brown -rrb- is n't on st. mark 's no. 5 bus"
  )


def test_one_word_with_a_space():
  words = ptb_tokenizer.tokenize("1 1/2 pizzas")
  assert words.split(" ") == ["1\xa01/2", "pizzas"]
  assert words.split() == ["1", "1/2", "pizzas"]


@pytest.mark.parametrize("text", ["", " ", "\n", ". . .", "\U0001f600", '"-"'])
def test_no_words(text):
  assert ptb_tokenizer.tokenize(text) == ""


@pytest.mark.parametrize("line_break", ["\n", "\r\n", "\r", "\u2028", "\x0b"])
def test_line_breaks_are_spaces(line_break):
  assert ptb_tokenizer.tokenize(f"a{line_break}man\n") == "a man"


def test_characters_beyond_16_bits_separate():
  assert ptb_tokenizer.tokenize("a\U0001f600b \U0001f1fa\U0001f1f8") == "a b"
  # and are kept where everything is
  assert ptb_tokenizer.tokenize("x\U0001f600@y") == "x\U0001f600@y"
  assert ptb_tokenizer.tokenize("a \ud83d b") == "a b"


@settings(max_examples=300, deadline=None, database=None)
@given(st.text(st.characters(), max_size=40))
def test_any_text_becomes_words(text):
  words = ptb_tokenizer.tokenize(text)
  assert "\n" not in words
  assert words == words.strip(" ") and "  " not in words
  assert not ptb_tokenizer.PUNCTUATION & set(words.split(" "))
