import itertools
import re
import warnings

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from paligemma.decoding import grammar
from paligemma.decoding.grammar import language, patterns
from tests import typecheck
from tests.decoding.grammar.words import Words, accepts, answers

PIECES = ["a", "b", "ab", " a", "ba b", "é", "1", "-"]
WORDS = Words(PIECES)
IDS = range(5, WORDS.vocab_size)
SEQUENCES = [
  ids for n in range(4) for ids in itertools.product([4, *IDS], repeat=n)
]
TEXTS = [WORDS.decode(ids) for ids in SEQUENCES]

ATOMS = r"""
a b é 1 - . \d \W \s [ab] [^a] [b-é] [^\w] [\-1] [-a] [a-] \x61 \u00e9 \-
"""
atoms = st.sampled_from([" ", *ATOMS.split()])
quantifiers = st.sampled_from(
  ["", "?", "*", "+", "{2}", "{1,}", "{,2}", "{1,3}"]
)
expressions = st.recursive(
  atoms,
  lambda part: st.one_of(
    st.lists(part, min_size=1, max_size=3).map("".join),
    st.lists(part, min_size=1, max_size=3).map(lambda p: f"({'|'.join(p)})"),
    st.tuples(part, quantifiers).map(lambda p: f"(?:{p[0]}){p[1]}"),
    st.tuples(atoms, quantifiers).map("".join),
  ),
  max_leaves=6,
)


@hypothesis.given(expressions)
@hypothesis.settings(max_examples=60, deadline=None, derandomize=True)
def test_answers_are_what_re_matches(pattern):
  with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)
    matches = re.compile(pattern, re.ASCII).fullmatch
  expected = [
    ids for ids, t in zip(SEQUENCES, TEXTS, strict=True) if matches(t)
  ]
  try:
    only = grammar.regex(WORDS, pattern)
  except ValueError as error:
    assert "no answer that the tokenizer can write" in str(error)
    assert not expected
    return
  found = [ids for ids in SEQUENCES if accepts(only, ids)]
  assert found == expected


@pytest.mark.parametrize(
  "pattern",
  [
    "",
    "a|",
    "(a|ab)(1|b1)?",
    "(a*)*b",
    r"\.|\||\(|\[|a\]",
    "(?P<name>a)(?:b)",
    "x{1,2",  # no quantifier: letters
    "a{}",
    "a{,}",
    "[]a]",
    "[^]a]",
    r"[\d\-é]+",
    r"\n|\t|\0",
    "(a{2}){2}",
    "(?:a?){3}",
  ],
)
def test_forms_of_re(pattern):
  words = Words([*PIECES, *"x{},12.|([]t\t\0"])
  texts = [
    "".join(t) for n in range(5) for t in itertools.product("ab1", repeat=n)
  ]
  texts += [
    ".",
    "|",
    "(",
    "[",
    "a]",
    "]",
    "x{1,2",
    "a{}",
    "\n",
    "\t",
    "\0",
    "-é",
  ]
  only = grammar.regex(words, pattern)
  for text in texts:
    matched = bool(re.fullmatch(pattern, text, re.ASCII))
    assert accepts(only, words.encode(text)) == matched, text


def test_a_piece_may_reach_over_parts_of_the_pattern():
  words = Words(["cat", " ;", "cat ;", " dog", "; d", "og", " "])
  only = grammar.regex(words, "(cat|bird) ; (dog)")
  written = answers(only, range(5, words.vocab_size), 4)
  spelled = {tuple(words.pieces[i] for i in ids) for ids in written}
  assert spelled == {
    (b"cat ;", b" dog"),
    (b"cat", b" ;", b" dog"),
    (b"cat", b" ", b"; d", b"og"),
  }


def test_characters_are_written_byte_by_byte():
  words = Words(["a"], with_bytes=True)
  only = grammar.regex(words, "[^a]")
  first_byte = words.vocab_size - 256
  for text in ("é", "€", "😀", "\u07ff", "\u0800", "\uffff", "\U00010000", "b"):
    ids = [first_byte + b for b in text.encode()]
    assert accepts(only, ids)
    assert not accepts(only, ids[:-1])
    assert not accepts(only, [*ids, ids[-1]])
  for invalid in (b"\x80", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80"):
    assert not accepts(only, [first_byte + b for b in invalid])
  assert not accepts(only, [5])


@pytest.mark.parametrize(
  "ranges",
  [
    [(0, 0x10FFFF)],
    [(0x7F, 0x80), (0x7FF, 0x800), (0xFFFF, 0x10000)],
    [(0xD000, 0xE001)],
    [(0x345, 0x345)],
    [(0x3FF, 0x5A7D)],
    [(0x12345, 0x6789A)],
  ],
)
def test_ranges_of_characters_are_ranges_of_bytes(ranges):
  known = language.automaton(language.characters(ranges))
  edges = {p + d for r in ranges for p in r for d in (-1, 0, 1, 63, 64)}
  edges |= {0, 0x7F, 0x80, 0x7FF, 0x800, 0xD7FF, 0xE000, 0xFFFF, 0x10000}
  edges |= set(range(0, 0x110000, 4099))
  for point in sorted(edges):
    if 0 <= point < 0x110000 and not 0xD800 <= point < 0xE000:
      state = 0
      code = np.array(list(chr(point).encode()))
      for kind in known.class_of(code):
        state = known.target[state, kind]
      inside = any(first <= point <= last for first, last in ranges)
      assert (state >= 0 and known.accepting[state]) == inside, hex(point)


def test_inverted():
  last = 0x10FFFF
  assert patterns.inverted([(5, 7), (0, 2), (6, 9)]) == [(3, 4), (10, last)]
  assert patterns.inverted([(3, last)]) == [(0, 2)]
  assert patterns.inverted([]) == [(0, last)]


@pytest.mark.parametrize(
  ("pattern", "message"),
  [
    ("a(b", r"pattern 'a\(b': missing \), unterminated .* at position 1\.$"),
    ("a)", "unbalanced parenthesis, at position 1"),
    ("a**", "multiple repeat, at position 2"),
    ("[b-a]", "bad character range b-a, at position 1"),
    ("a{3,2}", "min repeat greater than max repeat, at position 2"),
    (
      "^a$",
      r'"\^" is not needed, as the whole answer is matched, at position 0',
    ),
    ("a$", r'"\$" is not needed.* at position 1'),
    ("a*?", r'"\*\?" is not supported: what the model .* at position 2'),
    ("ab{2}+", r'"\{2\}\+" is not supported: .* at position 5'),
    ("a(?=b)", r'"\(\?=" is not supported, expected \(\.\.\.\), at position 1'),
    ("(?i)a", r'"\(\?i" is not supported, .* at position 0'),
    (r"(a)\1", r'"\\1" is not supported, at position 3'),
    (r"a\b", r'"\\b" is not supported, at position 1'),
    ("(" * 5000 + ")" * 5000, "at position 0"),
    ("a{9999}", "more than 500 states; count to smaller numbers"),
    ("(a|b)*a(a|b){20}", "more than 500 states"),
    ("€", "allows no answer that the tokenizer can write"),
    (None, "regex: pattern is None, expected a text"),
  ],
)
@typecheck.off()
def test_errors(pattern, message, monkeypatch):
  monkeypatch.setattr(language, "MOST_STATES", 500)
  with pytest.raises(ValueError, match=message) as error:
    grammar.regex(WORDS, pattern)
  assert "\n" not in str(error.value)
