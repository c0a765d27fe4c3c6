"""The automaton of an expression is the smallest one, and made in time."""

import itertools
import random
import re

import numpy as np
import pytest

from paligemma.decoding.grammar import language, patterns


def states(pattern):
  return len(language.automaton(patterns.parse(pattern)).accepting)


@pytest.mark.parametrize(
  ("pattern", "count"),
  [
    ("", 1),
    ("a", 2),
    ("(a|b)*abb", 4),  # Aho et al., Compilers, figure 3.36
    ("a{13}", 14),
    ("a{0,13}", 14),
    ("(a|b)*a(a|b){3}", 16),
    ("aa|ab|ba|bb", 3),
    ("(aa|aab*)*", 3),
  ],
)
def test_as_many_states_as_needed(pattern, count):
  assert states(pattern) == count


def test_no_two_states_are_alike():
  dice = random.Random(0)
  texts = [
    "".join(x) for n in range(7) for x in itertools.product("ab", repeat=n)
  ]
  for _ in range(60):
    pattern = "".join(
      dice.choice(["a", "b", "(a|b)", "(ab)*", "(ba|a)?", "b{0,2}", "(a*b|b)"])
      for _ in range(dice.randrange(1, 6))
    )
    found = language.automaton(patterns.parse(pattern))

    def run(state, text, found=found):
      for k in found.class_of(np.array([ord(c) for c in text], int)):
        state = found.target[state, k] if state >= 0 else -1
      return state >= 0 and bool(found.accepting[state])

    assert [run(0, x) for x in texts] == [
      bool(re.fullmatch(pattern, x)) for x in texts
    ]
    number = len(found.accepting)
    rows = {tuple(run(state, x) for x in texts) for state in range(number)}
    assert len(rows) == number, pattern


@pytest.mark.parametrize(
  "pattern",
  ["(a{0,700}){0,700}", ".{99999}", "((){4000000000}){4000000000}"],
)
def test_what_is_too_large_is_said(pattern):
  with pytest.raises(ValueError, match="grammar has more than 32768 states"):
    language.automaton(patterns.parse(pattern))


def test_what_is_nested_too_deep_is_said():
  expression = language.text("a")
  for _ in range(2000):
    expression = language.Sequence((expression,))
  with pytest.raises(ValueError, match="nested too deep"):
    language.automaton(expression)
