"""Grammars: they restrict decoding to a set of answers.

    only = grammar.boxes(tokenizer, labels=["cat", "dog"], masks="optional")
    decode.generate(model, params, batch, max_decode_len=64, grammar=only)

A grammar is compiled on the host, for a tokenizer, into a few arrays that the
decode loop reads (automaton.py); no library does this within one XLA program.
In a config it is written as a string:

    boxes(masks=True)    choices("yes", "no")    regex("[0-9]{1,3}")    anything
    json_schema({"type": "object", "properties": {"n": {"type": "integer"}}})

An answer is always in its grammar and always complete: eos is allowed only
where an answer may end, and near the length limit only tokens from which an end
can be reached in time. So a short limit excludes the longer answers.
"""

import json
import re
from collections.abc import Mapping, Sequence

from paligemma import registry
from paligemma.decoding.grammar import (
  automaton,
  language,
  patterns,
  pieces,
  schemas,
)
from paligemma.decoding.grammar.automaton import Grammar
from paligemma.decoding.grammar.pieces import Tokenizer

__all__ = ["GRAMMARS", "Grammar", "Tokenizer", "make"]
__all__ += ["anything", "boxes", "choices", "json_schema", "regex"]

_LAST_LOC, _LAST_SEG, _CODES = 1023, 127, 16
_MASKS = {False: (0, 0), True: (1, 1), "optional": (0, 1)}
_PIECE = re.compile("<(loc|seg)[0-9]+>")


def anything(tokenizer: Tokenizer) -> Grammar:
  """Allows all answers, also those that the length limit cuts."""
  return automaton.anything(tokenizer.vocab_size, tokenizer.eos_id)


def choices(tokenizer: Tokenizer, *answers: str | Sequence[str]) -> Grammar:
  """Allows exactly these answers, or those of one list.

  Only the tokens that the tokenizer encodes an answer to are allowed, as in
  training, not other tokens that spell the same text. An answer may be a prefix
  of another, or "".

  Raises:
    ValueError: there is no answer, or one is not a text that survives encoding
      and decoding.
  """
  if len(answers) == 1 and isinstance(answers[0], list | tuple):
    (answers,) = answers
  if not answers:
    raise ValueError("choices: there is none, expected at least one answer.")
  for i, answer in enumerate(answers):
    _check_text(tokenizer, answer, f"choices: answer {i}")
  spelled = (language.tokens(tokenizer.encode(answer)) for answer in answers)
  return _lift(tokenizer, language.Either(tuple(spelled)), with_text=False)


def regex(tokenizer: Tokenizer, pattern: str) -> Grammar:
  """Allows what a regular expression fully matches, in any tokenization.

  The pattern is as in Python's re with re.ASCII, see patterns.py.

  Raises:
    ValueError: the pattern is malformed or not supported (names the position),
      needs too many states, or matches no text that the tokenizer can write.
  """
  if not isinstance(pattern, str):
    raise ValueError(f"regex: pattern is {pattern!r:.60}, expected a text.")
  return _lift(tokenizer, patterns.parse(pattern))


def json_schema(tokenizer: Tokenizer, schema: Mapping | str) -> Grammar:
  """Allows the JSON of a JSON Schema, see schemas.py.

  Args:
    schema: an object, or its text.

  Raises:
    ValueError: no schema, or a keyword of it is not supported (names it), or it
      needs too many states.
  """
  if isinstance(schema, str):
    schema = json.loads(schema)
  return _lift(tokenizer, schemas.parse(schema))


def boxes(
  tokenizer: Tokenizer,
  labels: Sequence[str] | None = None,
  *,
  masks: bool | str = False,
  at_least: int = 1,
  at_most: int | None = None,
  separator: str = " ; ",
) -> Grammar:
  """Allows boxes with labels and masks, as data/location.py writes them.

      <loc0256><loc0000><loc0512><loc0512><seg001>...<seg127> cat ; <loc...> dog

  Every box has an area, y0 < y1 and x0 < x1, and every answer is valid for
  location.parse and metrics.Segmentation.

  Args:
    labels: the labels to choose from, in the tokens of training; "" is a box
      without a label. Default: words of any characters but "<" and ";", one
      space apart.
    masks: whether 16 codes follow the locations: True, False or "optional".
    at_least: number of boxes; with 0 the answer may be empty.
    at_most: number of boxes. Default: as many as the length limit allows.
    separator: between boxes; spaces and ";".

  Raises:
    ValueError: an argument has another value.
  """
  is_known = isinstance(masks, bool | str) and masks in _MASKS
  _check_option("masks", masks, is_known, 'True, False or "optional"')
  is_number = isinstance(at_least, int) and at_least >= 0
  _check_option("at_least", at_least, is_number, "0 or more")
  fewest = max(at_least, 1)
  most = fewest if at_most is None else at_most
  is_number = isinstance(most, int) and most >= fewest
  _check_option("at_most", at_most, is_number, f"at least {fewest}, or None")
  is_blank = isinstance(separator, str) and not separator.strip(" ;")
  expected = 'spaces and ";", which do not belong to a label'
  _check_option("separator", separator, is_blank, expected)
  # The last location cannot begin a box with an area.
  first, second_last, last = (
    language.TOKEN + tokenizer.loc_id(i) for i in (0, _LAST_LOC - 1, _LAST_LOC)
  )
  low = language.Symbols(((first, second_last),))
  high = language.Symbols(((first, last),), rising=True)
  seg = tuple(language.TOKEN + tokenizer.seg_id(i) for i in (0, _LAST_SEG))
  codes = language.Repeat(language.Symbols((seg,)), _CODES, _CODES)
  mask = language.Repeat(codes, *_MASKS[masks])
  box = language.Sequence((low, low, high, high, mask))
  if labels is None:
    label = _free_label()
    inner = language.Sequence((label, language.text(separator)))
  else:
    inner, label = _listed_labels(tokenizer, labels, separator)
  inner = language.Sequence((box, inner))
  most = None if at_most is None else at_most - 1
  inner = language.Repeat(inner, fewest - 1, most)
  answer = language.Sequence((inner, box, label))
  if at_least == 0:
    answer = language.Repeat(answer, 0, 1)
  return _lift(tokenizer, answer, with_text=labels is None)


GRAMMARS = dict(
  anything=anything,
  boxes=boxes,
  choices=choices,
  json_schema=json_schema,
  regex=regex,
)


def make(grammar: str | Grammar, tokenizer: Tokenizer) -> Grammar:
  """Returns the grammar that a string names; a grammar is returned unchanged.

  A string has a name in GRAMMARS: 'anything', 'regex("[0-9]+")',
  'boxes(["cat", "dog"], at_least=0)', 'choices("yes", "no")'.

  Raises:
    ValueError: unknown name or argument; as the function of that name.
  """
  if isinstance(grammar, Grammar):
    return grammar
  if not isinstance(grammar, str):
    raise ValueError(f"grammar is {grammar!r:.60}, expected a text.")
  return registry.make(grammar, GRAMMARS, "grammar", tokenizer)


def _lift(tokenizer, expression, *, with_text=True) -> Grammar:
  """Compiles an expression; with_text=False if it has only tokens, no bytes."""
  written = pieces.of(tokenizer) if with_text else [b""] * tokenizer.vocab_size
  states = language.automaton(expression)
  return automaton.lift(states, written, tokenizer.eos_id)


def _free_label():
  """Returns words, each after a space, that location.parse reads as a label."""
  codes = range(1 << 16)
  excluded = [i for i in codes if chr(i) in ";<" or chr(i).isspace()]
  ranges = patterns.inverted((code, code) for code in excluded)
  characters = language.Repeat(language.characters(ranges), 1, None)
  word = language.Sequence((language.text(" "), characters))
  return language.Repeat(word, 1, None)


def _listed_labels(tokenizer, labels, separator):
  """Returns the expressions between boxes and after the last one."""
  is_list = isinstance(labels, list | tuple) and labels
  expected = 'a list of them, or None for any; without labels, [""]'
  _check_option("labels", labels, is_list, expected)
  for i, label in enumerate(labels):
    where = f"boxes: label {i}"
    _check_text(tokenizer, label, where)
    if label != label.strip() or ";" in label or _PIECE.search(label):
      raise ValueError(
        f'{where} is {label!r:.60}, expected no ";", location or code in it,'
        " and no space around it."
      )

  # As in training, the text between two locations is encoded as a whole.
  location = tokenizer.encode("<loc0000>")
  inner, last = [], []
  for label in labels:
    written = f" {label}" if label else ""
    around = tokenizer.encode(f"<loc0000>{written}{separator}<loc0000>")
    assert around[:1] == around[-1:] == location, around
    inner.append(language.tokens(around[1:-1]))
    last.append(language.tokens(tokenizer.encode(f"<loc0000>{written}")[1:]))
  return language.Either(tuple(inner)), language.Either(tuple(last))


def _check_option(name, value, is_right, expected):
  if not is_right:
    raise ValueError(f"boxes: {name}={value!r:.60}, expected {expected}.")


def _check_text(tokenizer, text, where):
  if not isinstance(text, str):
    raise ValueError(f"{where} is {text!r:.60}, expected a text.")
  if (back := tokenizer.decode(tokenizer.encode(text))) != text:
    raise ValueError(
      f"{where} is {text!r:.60}, which the tokenizer gives back as"
      f" {back!r:.60}."
    )
