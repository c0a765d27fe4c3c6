"""What the grammar of a schema allows is JSON that the schema allows."""

import json
import random

import jsonschema
import numpy as np
import pytest

from paligemma.decoding import grammar
from paligemma.decoding.grammar import language, schemas
from tests.decoding.grammar.words import Words

WORDS = Words(["cat", '"', "{", "}"], with_bytes=True)

# Schema -> texts that are allowed, and such that are not.
CASES = [
  ({"type": "integer"}, ["0", "-7", "120"], ["01", "1.5", "", "+1", "--1"]),
  ({"type": "number"}, ["0.50", "-1e9", "3", "2E-07"], [".5", "1.", "e3"]),
  ({"type": "boolean"}, ["true", "false"], ["True", "null"]),
  ({"type": ["null", "integer"]}, ["null", "1"], ["true"]),
  (
    {"type": "string"},
    ['""', '"é\\n 🙂"', '"a\\"b"', '"' + "a" * 99 + '"'],
    ["a", '"a', '"\n"', '"\\x"', '"a"b"', '"\\"'],
  ),
  (
    {"type": "string", "minLength": 2, "maxLength": 3},
    ['"ab"', '"é🙂\\n"'],
    ['"a"', '"abcd"'],
  ),
  (
    {"type": "string", "pattern": '^[a-c"]+[^0-9]$'},
    ['"ax"', '"abcé"'],
    ['"a"', '"a""', '"a0"', '"a\\"'],
  ),
  ({"enum": ["a b", 7, None]}, ['"a b"', "7", "null"], ['"a"', "a b"]),
  ({"const": {"a": 1}}, ['{"a": 1}'], ["{}"]),
  (
    {"type": "array", "items": {"type": "integer"}},
    ["[]", "[1]", "[1, 2,3]"],
    ["[1,]", "[,1]", "[1 2]", "1"],
  ),
  (
    {"type": "array", "items": {"const": 1}, "minItems": 2, "maxItems": 3},
    ["[1,1]", "[1, 1, 1]"],
    ["[]", "[1]", "[1,1,1,1]"],
  ),
  ({"type": "array", "maxItems": 0}, ["[]"], ["[1]"]),
  (
    {
      "type": "object",
      "properties": {"a": {"type": "integer"}, "b": {"type": "null"}},
      "required": ["a", "b"],
      "additionalProperties": False,
    },
    ['{"a": 1, "b": null}', '{"a":1,"b":null}'],
    ["{}", '{"a": 1}', '{"b": null, "a": 1}', '{"a": 1,  "b": null}'],
  ),
  (
    {"type": "object", "properties": {x: {"const": 1} for x in "abc"}},
    ["{}", '{"a": 1}', '{"b": 1, "c": 1}', '{"a": 1, "b": 1, "c": 1}'],
    ['{"c": 1, "a": 1}', "{,}", '{"a": 1,}'],
  ),
  (
    {
      "type": "object",
      "properties": {x: {"const": 1} for x in "abc"},
      "required": ["b"],
    },
    ['{"b": 1}', '{"a": 1, "b": 1, "c": 1}', '{"b": 1, "c": 1}'],
    ["{}", '{"a": 1}', '{"c": 1}'],
  ),
  (
    {"type": "object"},
    ["{}", '{"a": [1, {"b": "c"}], "d": {"e": true}}'],
    ["[]", "{1: 2}", '{"a": [[[1]]]}'],
  ),
  ({}, ["1", '"a"', "[[[1]]]"], ["a", "[[[[1]]]]"]),
  (
    {
      "$defs": {"Part": {"type": "integer", "title": "A part"}},
      "anyOf": [{"$ref": "#/$defs/Part"}, {"type": "null"}],
    },
    ["1", "null"],
    ["true"],
  ),
]


def accepts(automaton, text):
  state = 0
  for k in automaton.class_of(np.array([*text.encode()], int)):
    state = automaton.target[state, k]
    if state < 0:
      return False
  return bool(automaton.accepting[state])


def drawn(automaton, dice):
  """A text that the automaton accepts, found by a random walk."""
  state, text = 0, bytearray()
  target = automaton.target[:, automaton.class_of(np.arange(256))]
  for _ in range(400):
    moves = np.flatnonzero(target[state] >= 0).tolist()
    if automaton.accepting[state] and (not moves or dice.random() < 0.2):
      return text.decode()
    # Rather what is not a letter of a string, which would never end.
    first = [byte for byte in moves if chr(byte) in '"]},'] or moves
    byte = dice.choice(first if dice.random() < 0.5 else moves)
    text.append(byte)
    state = target[state, byte]
  return None


@pytest.mark.parametrize(("schema", "right", "wrong"), CASES)
def test_allowed(schema, right, wrong):
  found = language.automaton(schemas.parse(schema))
  for text in right:
    assert accepts(found, text), text
    jsonschema.validate(json.loads(text), schema)
  for text in wrong:
    assert not accepts(found, text), text
  dice = random.Random(0)
  texts = list(filter(None, (drawn(found, dice) for _ in range(30))))
  assert texts
  for text in texts:
    jsonschema.validate(json.loads(text), schema)


@pytest.mark.parametrize(
  ("schema", "problem"),
  [
    (7, "schema: expected a schema, an object"),
    ({"type": "x"}, "schema: \"type\" is 'x', expected string, integer,"),
    ({"title": "a"}, 'schema: "type" is None, expected string'),
    (
      {"type": "integer", "minimum": 0},
      "schema: 'minimum' is not supported here, expected none.",
    ),
    (
      {"type": "object", "properties": {"a": {"type": "array", "contains": 1}}},
      "schema.a: 'contains' is not supported here, expected items, maxItems",
    ),
    (
      {"type": "string", "pattern": "a"},
      "schema: pattern is 'a', expected all",
    ),
    (
      {"type": "string", "pattern": "^a$", "maxLength": 3},
      "schema: a pattern with minLength or maxLength is not supported",
    ),
    ({"type": "string", "maxLength": -1}, "schema: maxLength is -1, expected"),
    (
      {"type": "array", "minItems": 3, "maxItems": 2},
      "schema: minItems 3 is more than maxItems 2",
    ),
    ({"enum": []}, "schema.enum: is [], expected a list of values"),
    ({"$ref": "#/$defs/a"}, "schema: $ref '#/$defs/a', expected"),
    (
      {
        "$defs": {"a": {"type": "array", "items": {"$ref": "#/$defs/a"}}},
        "$ref": "#/$defs/a",
      },
      "schema.a.items: $ref '#/$defs/a' contains itself, which has no end",
    ),
    (
      {"type": "object", "properties": {}, "required": ["a"]},
      "schema: required 'a' is none of its properties",
    ),
    (
      {"type": "object", "additionalProperties": {"type": "integer"}},
      "schema: additionalProperties with a schema is not supported",
    ),
  ],
)
def test_what_is_not_supported_is_named(schema, problem):
  with pytest.raises(ValueError) as caught:
    schemas.parse(schema)
  assert str(caught.value).startswith(f"json_schema: {problem}")


def test_nested_without_end():
  schema = {"type": "null"}
  for _ in range(40):
    schema = {"type": "array", "items": schema}
  with pytest.raises(ValueError, match="that is not nested so deep"):
    schemas.parse(schema)


def test_as_a_grammar():
  schema = {"type": "array", "items": {"const": "cat"}, "maxItems": 1}
  found = grammar.json_schema(WORDS, schema)
  for text in (json.dumps(schema), f"json_schema({schema})"):
    again = grammar.make(text, WORDS) if text[0] == "j" else None
    again = again or grammar.json_schema(WORDS, text)
    assert all((a == b).all() for a, b in zip(found, again, strict=True))
  with pytest.raises(ValueError, match="Expecting"):
    grammar.json_schema(WORDS, "{")
