import dataclasses
import functools

import pytest

from paligemma import registry


@dataclasses.dataclass(frozen=True)
class Pair:
  left: object = 2
  right: object = 3

  def __post_init__(self):
    if self.left == 13:
      raise ValueError("Pair: left=13, expected no such number.")
    if self.left == 17:
      raise TypeError("17 is not supported")


def several(*values, sep=" "):
  return values, sep


def needs(first, second):
  return first, second


TABLE = {
  "pair": Pair,
  "sevens": functools.partial(Pair, right=7),
  "several": several,
  "needs": needs,
}


@pytest.mark.parametrize(
  ("text", "made"),
  [
    ("pair", Pair()),
    (" pair ( ) ", Pair()),
    ("pair(5)", Pair(5)),
    ("pair(right = 5)", Pair(2, 5)),
    ("pair(-.5, right=None)", Pair(-0.5, None)),
    ("pair(['a', (1, 2)], {'b': True})", Pair(["a", (1, 2)], {"b": True})),
    ("pair('(', right=\n'pair')", Pair("(", "pair")),
    ("sevens(5)", Pair(5, 7)),
    ("several('a', 'b', sep='-')", (("a", "b"), "-")),
    ("needs(second=1, first=2)", (2, 1)),
  ],
)
@pytest.mark.parametrize("nested", [False, True])
def test_make(text, made, nested):
  assert registry.make(text, TABLE, "thing", nested=nested) == made


@pytest.mark.parametrize(
  ("text", "made"),
  [
    ("pair(pair)", Pair(Pair())),
    ("pair(3, right=pair(pair(5)))", Pair(3, Pair(Pair(5)))),
    ("several(sevens, 'pair')", ((Pair(2, 7), "pair"), " ")),
  ],
)
def test_make_nested(text, made):
  assert registry.make(text, TABLE, "thing", nested=True) == made


def test_arguments_that_are_given_stand_in_front():
  assert registry.make("needs('b')", TABLE, "thing", "a") == ("a", "b")
  assert registry.make("several", TABLE, "thing", "a", "b") == (("a", "b"), " ")
  made = registry.make("pair(pair)", TABLE, "thing", 5, nested=True)
  assert made == Pair(5, Pair(5))


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("pear", 'thing "pear": unknown thing "pear", .*Did you mean "pair"'),
    ("pear(3)", 'thing "pear(3)": unknown thing "pear"'),
    ("a.pair()", 'unknown thing "a.pair"'),
    ("pair()()", 'unknown thing "pair()"'),
    (
      "pair(rigt=3)",
      'thing "pair(rigt=3)": unknown argument of pair "rigt", expected one of: '
      'left, right. Did you mean "right"?',
    ),
    ("pair(**{})", 'unknown argument of pair "None"'),
    ("pair(1, 2, 3)", 'thing "pair(1, 2, 3)": too many positional arguments'),
    ("pair(1, left=2)", "multiple values for argument 'left'"),
    ("pair(left=1, left=2)", 'argument "left" of pair is given twice'),
    ("needs", "thing \"needs\": missing a required argument: 'first'"),
    ("needs(1)", "missing a required argument: 'second'"),
    ("pair(", "thing \"pair(\": '(' was never closed"),
    ("", 'thing "": invalid syntax'),
    ("3", 'thing "3": cannot read "3", expected a name or a call'),
    ("pa-ir", 'cannot read "pa - ir", expected a name or a call'),
    ("pair(3).left", 'cannot read "pair(3).left", expected a name or a call'),
    ("pair(len)", 'thing "pair(len)": cannot read "len", expected a plain val'),
    ("pair(right=2 + 2)", 'cannot read "2 + 2", expected a plain value'),
    ("pair({[]: 1})", 'cannot read "{[]: 1}", expected a plain value'),
    ("several(*'ab')", "cannot read \"*'ab'\", expected a plain value"),
    ("pair(13)", 'thing "pair(13)": Pair: left=13, expected no such number.'),
    ("pair(17)", 'thing "pair(17)": 17 is not supported'),
    ("pair\0", r'thing "pair\x00": source code string cannot contain null byt'),
    ("pair(" + "a" * 10_000, 'thing "pair(aaa'),
  ],
)
def test_mistakes(text, message):
  start, _, end = message.partition(".*")
  with pytest.raises(ValueError, match=r"^thing ") as caught:
    registry.make(text, TABLE, "thing")
  assert len(str(caught.value)) < 300
  assert start in str(caught.value)
  assert end in str(caught.value)
  assert "line 1" not in str(caught.value)  # there are no others


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("pair(pear)", 'thing "pair(pear)": unknown thing "pear"'),
    ("pair(pair(rigt=3))", 'unknown argument of pair "rigt"'),
    ("pair([pair])", 'cannot read "[pair]", expected a plain value'),
    ("pair(left=__import__('os'))", 'unknown thing "__import__"'),
  ],
)
def test_nested_mistakes(text, message):
  with pytest.raises(ValueError, match=r"^thing ") as caught:
    registry.make(text, TABLE, "thing", nested=True)
  assert message in str(caught.value)


def test_given_arguments_are_not_for_the_text():
  with pytest.raises(ValueError, match='unknown argument of needs "first"'):
    registry.make("needs(first=1)", TABLE, "thing", 1)
