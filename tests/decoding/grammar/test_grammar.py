import itertools
import re

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from paligemma.data import location
from paligemma.decoding import grammar
from paligemma.decoding.grammar import automaton, language
from tests import typecheck
from tests.decoding.grammar.words import Words, accepts, allowed, answers

WORDS = Words(["cat", " food", "food", " ", "yes", "no", "ye", "s", "é", "a"])
IDS = range(5, WORDS.vocab_size)


@pytest.mark.parametrize(
  "choices",
  [
    ["cat", "cat food"],
    ["yes", "no"],
    ["", "no"],
    [" cat", "cat"],
    ["cat", "cat"],
    ["é", "a  a", "cat food food"],
  ],
)
def test_choices_are_the_choices_and_nothing_else(choices):
  found = answers(grammar.choices(WORDS, choices), IDS, 4)
  assert found == {tuple(WORDS.encode(text)) for text in choices}
  # Letter for letter, as metrics compare them.
  assert {WORDS.decode(ids) for ids in found} == set(choices)
  again = grammar.choices(WORDS, *choices)
  for one, other in zip(grammar.choices(WORDS, choices), again, strict=True):
    np.testing.assert_array_equal(one, other)


@hypothesis.given(
  st.lists(
    st.lists(
      st.sampled_from(["cat", " food", "yes", "é", " "]), max_size=3
    ).map("".join),
    min_size=1,
    max_size=6,
  )
)
@hypothesis.settings(max_examples=30, deadline=None, derandomize=True)
def test_any_choices(choices):
  found = answers(grammar.choices(WORDS, choices), IDS, 3)
  assert {WORDS.decode(ids) for ids in found} == set(choices)


def test_only_what_can_be_completed_in_time_is_allowed():
  only = grammar.regex(WORDS, "(yes|no)?( food)*|cat( cat)*|(a|é){3}")
  ids = [i for i in range(WORDS.vocab_size) if i != WORDS.eos_id]
  known = [
    [*answer, WORDS.eos_id] for answer in sorted(answers(only, IDS, 4), key=len)
  ]
  for limit in (1, 2, 3, 4, 5):
    within = [answer for answer in known if len(answer) <= limit]
    assert within
    prefixes = {()}
    for length in range(limit):
      prefixes = sorted(prefixes)
      found = allowed(only, prefixes, limit - length, WORDS.vocab_size)
      expected = np.zeros_like(found)
      for row, prefix in enumerate(prefixes):
        for answer in within:
          if tuple(answer[:length]) == prefix and length < len(answer):
            expected[row, answer[length]] = True
      np.testing.assert_array_equal(found, expected)
      assert found.any(axis=1).all()
      prefixes = {
        (*prefix, i)
        for row, prefix in enumerate(prefixes)
        for i in np.intersect1d(np.flatnonzero(found[row]), ids)
      }


def test_states_that_only_rising_tells_apart():
  token = ((language.TOKEN + 5, language.TOKEN + 6),)
  rising = language.Symbols(token, rising=True)
  ways = (
    language.Sequence((language.tokens([7]), language.Symbols(token))),
    language.Sequence((language.tokens([8]), rising)),
  )
  expression = language.Sequence((language.tokens([5]), language.Either(ways)))
  pieces = [b""] * 9
  only = automaton.lift(language.automaton(expression), pieces, eos_id=1)
  assert answers(only, range(5, 9), 3) == {(5, 7, 5), (5, 7, 6), (5, 8, 6)}


def test_behind_the_end_is_nothing_but_the_end():
  only = grammar.choices(WORDS, "cat")
  (cat,) = WORDS.encode("cat")
  found = allowed(only, [[cat, WORDS.eos_id, 0]], 1, WORDS.vocab_size)
  assert np.flatnonzero(found[0]).tolist() == [WORDS.eos_id]


BOXES = Words(
  [*"a;< ", "cat", " cat", " ;", "cat ;"], locations=1024, codes=128
)


def text(*locs, codes=0, label=" cat"):
  pieces = "".join(f"<loc{i:04d}>" for i in locs)
  return pieces + "".join(f"<seg{i:03d}>" for i in range(codes)) + label


GOOD = text(3, 5, 4, 1023)
BARE = text(3, 5, 4, 9, label="")
TWO = text(3, 5, 4, 9, label=" cat cat")
MASK = text(3, 5, 4, 1023, codes=16)


@pytest.mark.parametrize(
  ("arguments", "good", "bad"),
  [
    (
      {},
      [
        GOOD,
        f"{GOOD} ; {GOOD}",
        text(1022, 1022, 1023, 1023, label=" cat cat"),
      ],
      [
        *("", MASK, f"{GOOD} ; ", f"{GOOD};{GOOD}", f"{GOOD} <", f"a {GOOD}"),
        *(f"{GOOD}  cat", text(3, 5, 4, 9, label=""), text(3, 5, 3, 9)),
        *(text(4, 5, 3, 9), text(3, 9, 4, 9), text(3, 9, 4, 8), text(3, 5, 4)),
        *(text(3, 5, 4, 9, 9), text(1023, 5, 1023, 9), text(3, 1023, 4, 1023)),
      ],
    ),
    (
      {"masks": True},
      [MASK, f"{MASK} ; {MASK}"],
      [
        *(GOOD, f"{MASK} ; {GOOD}", text(3, 5, 4, 9, codes=15)),
        *(text(3, 5, 4, 9, codes=17), text(3, 5, 3, 9, codes=16)),
      ],
    ),
    ({"masks": "optional"}, [GOOD, MASK, f"{GOOD} ; {MASK} ; {GOOD}"], [""]),
    ({"at_least": 0}, ["", GOOD, f"{GOOD} ; {GOOD}"], [" ", " cat"]),
    (
      {"at_least": 2, "at_most": 3},
      [f"{GOOD} ; {GOOD}", f"{GOOD} ; {GOOD} ; {GOOD}"],
      ["", GOOD, f"{GOOD} ; {GOOD} ; {GOOD} ; {GOOD}"],
    ),
    ({"at_least": 0, "at_most": 1}, ["", GOOD], [f"{GOOD} ; {GOOD}"]),
    (
      {"labels": ["", "cat cat"]},
      [BARE, TWO, f"{BARE} ; {TWO}"],
      [GOOD],
    ),
    ({"separator": ";"}, [f"{GOOD};{GOOD}"], [f"{GOOD} ; {GOOD}"]),
    (
      {"separator": "", "labels": [""]},
      [2 * text(0, 0, 1, 1, label="")],
      [GOOD],
    ),
  ],
)
def test_boxes(arguments, good, bad):
  only = grammar.boxes(BOXES, **arguments)
  listed = grammar.boxes(BOXES, **{"labels": ["cat", "cat cat"]} | arguments)
  for answer in good:
    assert accepts(only, BOXES.encode(answer)), answer
    assert accepts(listed, BOXES.encode(answer)), answer
    objects = location.parse(answer, (97, 89))
    assert not any(thing.problem for thing in objects)
    assert all(thing.box for thing in objects)
  for answer in bad:
    assert not accepts(only, BOXES.encode(answer)), answer
    assert not accepts(listed, BOXES.encode(answer)), answer


def test_no_box_begins_where_it_could_not_end():
  only = grammar.boxes(BOXES)
  first, last = BOXES.loc_id(0), BOXES.loc_id(1023)
  for prefix in ([], [first + 7]):
    found = np.flatnonzero(allowed(only, [prefix], 9, BOXES.vocab_size)[0])
    assert found.tolist() == list(range(first, last))
  prefix = [first + 1022, first + 1021]
  found = np.flatnonzero(allowed(only, [prefix], 9, BOXES.vocab_size)[0])
  assert found.tolist() == [last]


def test_space_of_any_script_is_no_label():
  spaces = "\u00a0\u2003\u3000\x85\x1c"
  words = Words(["b", " ", *spaces], locations=1024, codes=1)
  only = grammar.boxes(words)
  box = text(0, 0, 1, 1, label="")
  assert accepts(only, words.encode(f"{box} b"))
  for space in spaces:
    assert not location.parse(f"{box} {space}", (7, 7))[0].label
    assert not accepts(only, words.encode(f"{box} {space}"))
    assert not accepts(only, words.encode(f"{box} b{space}"))


def test_anything_allows_everything_at_any_time():
  found = allowed(grammar.anything(WORDS), [[5, 9], [4, 0]], 1, 17)
  assert found.shape == (2, 17) and found.all()


def test_tokens_beyond_the_tokenizer_are_not_allowed():
  more = WORDS.vocab_size + 3
  only = grammar.choices(WORDS, "cat", "no")
  found = np.flatnonzero(allowed(only, [[]], 2, more)[0])
  assert found.tolist() == sorted(WORDS.encode("cat") + WORDS.encode("no"))


def test_grammars_of_about_one_size_have_one_shape():
  shapes = {
    tuple(x.shape for x in grammar.make(text, WORDS))
    for text in ('choices("yes", "no")', 'choices("a")', "regex('a{2,5}|é')")
  }
  assert len(shapes) == 1


def test_many_choices_make_a_small_table():
  names = ["".join(p) for p in itertools.product("abcdefg", repeat=3)]
  words = Words(names, locations=1024, codes=128)
  only = grammar.choices(words, names[:331])
  assert only.target.size <= 16 * 16  # all lead to the one end
  labels = [f"{a} {b}" for a in names[:13] for b in names[:11]]
  words = Words([*names, " ", ";"], locations=1024, codes=128)
  only = grammar.boxes(words, labels, masks=True)
  assert only.target.shape == (32, 16)


@pytest.mark.parametrize(
  ("written", "made"),
  [
    ("anything", grammar.anything(BOXES)),
    ("anything()", grammar.anything(BOXES)),
    (" choices('cat', ' ')", grammar.choices(BOXES, "cat", " ")),
    ("choices(['cat', ' '])", grammar.choices(BOXES, "cat", " ")),
    (r'regex("(cat)\\+|;")', grammar.regex(BOXES, r"(cat)\+|;")),
    (
      "boxes(('cat',), masks='optional', at_most=2)",
      grammar.boxes(BOXES, ["cat"], masks="optional", at_most=2),
    ),
    (grammar.choices(BOXES, "cat"), grammar.choices(BOXES, "cat")),
  ],
)
def test_make(written, made):
  for one, other in zip(grammar.make(written, BOXES), made, strict=True):
    np.testing.assert_array_equal(one, other)


def test_every_grammar_is_made_by_name():
  public = {name for name in grammar.__all__ if name[0].islower()} - {"make"}
  assert set(grammar.GRAMMARS) == public


@pytest.mark.parametrize(
  ("written", "message"),
  [
    ("choises('a')", 'unknown grammar "choises".*Did you mean "choices"'),
    ("boxes(mask=True)", 'unknown argument of boxes "mask".*mean "masks"'),
    ("boxes(tokenizer=1)", 'unknown argument of boxes "tokenizer"'),
    ("regex()", r'"regex\(\)": missing a required argument: .pattern.'),
    ("regex('a', 'b')", "too many positional arguments"),
    ("regex('a'", r"grammar .*regex.*: '\('.*was never closed"),
    ("regex(a)", '"regex\\(a\\)": cannot read "a", expected a plain value'),
    ("3", 'grammar "3": cannot read "3", expected a name or a call'),
    (3, "grammar is 3, expected a text"),
    ("choices()", "choices: there is none, expected at least one answer"),
    ("choices([])", "choices: there is none"),
    ("choices('cat', 3)", "choices: answer 1 is 3, expected a text"),
    ("regex('a(')", r"pattern 'a\(': missing \).* at position 1"),
    ("boxes([])", r"boxes: labels=\[\], expected a list .* without labels"),
    ("boxes('cat')", "boxes: labels='cat', expected a list"),
    ("boxes(['cat', 'a;'])", "boxes: label 1 is 'a;', expected no \";\""),
    ("boxes([' cat'])", "label 0 is ' cat', .* no space around it"),
    ("boxes(['cat', '<loc1>'])", "label 1 is '<loc1>', .* location or code"),
    ("boxes(masks='yes')", "masks='yes', expected True, False or \"optional\""),
    ("boxes(masks=1.0)", "masks=1.0, expected True"),
    ("boxes(at_least=-1)", "at_least=-1, expected 0 or more"),
    ("boxes(at_least=2, at_most=1)", "at_most=1, expected at least 2, or None"),
    ("boxes(at_most=0)", "at_most=0, expected at least 1"),
    ("boxes(separator=', ')", "separator=', ', expected spaces and \";\""),
  ],
)
@typecheck.off()
def test_errors(written, message):
  words = Words([*"cat;<lo1>", " "], locations=1024, codes=128)
  with pytest.raises(ValueError, match=message) as error:
    grammar.make(written, words)
  assert "\n" not in str(error.value)


def test_too_large_a_table_is_refused(monkeypatch):
  monkeypatch.setattr(automaton, "MOST_ENTRIES", 300)
  grammar.choices(WORDS, "cat")
  with pytest.raises(ValueError, match=r"\d+ states x \d+ classes of tokens"):
    grammar.regex(WORDS, "(a{20}|é{20}|no|yes)*")


@pytest.mark.parametrize(
  ("limit", "eos_id", "message"),
  [
    (
      2,
      1,
      "max_decode_len=2, but the shortest answer .* has 3 tokens, eos inc",
    ),
    (3, 5, "eos_id=5, but answers of the grammar end with 1"),
  ],
)
def test_checks_before_decoding(limit, eos_id, message):
  only = grammar.choices(WORDS, "cat food", "no cat no")
  automaton.check(only, 3, 1)
  with pytest.raises(ValueError, match=message):
    automaton.check(only, limit, eos_id)
  message = re.escape("grammar is 'choices(")
  with typecheck.off(), pytest.raises(ValueError, match=message):
    automaton.check('choices("cat")', limit, eos_id)
