"""JSON Schema: the subset that an automaton can follow.

Supported are the types string (minLength and maxLength, or a pattern of
patterns.py within "^" and "$"), integer, number, boolean, null, array (items,
minItems, maxItems) and object (properties, required); several types at once;
enum, const, anyOf, and $ref to "#/$defs/..." that does not contain itself.
Properties are written in the order of the schema, others never. Values without
a schema, such as those of an object without properties, are nested NESTED deep.

Numbers and strings may be as long as the length limit allows. In strings,
characters other than a quotation mark, a backslash and control characters stand
for themselves.

Source: JSON Schema, draft 2020-12; JSON, RFC 8259.
"""

import json
from collections.abc import Mapping
from typing import Any

from paligemma.decoding.grammar import language, patterns

NESTED = 3
_DEEPEST = 32  # of a schema

# What describes, and does not restrict.
_REMARKS = {
  *("$schema", "$id", "$defs", "$comment", "title", "description", "default"),
  *("examples", "deprecated", "readOnly", "writeOnly"),
}
# Type -> the keywords that go with it.
_KEYWORDS = {
  "string": {"minLength", "maxLength", "pattern"},
  "integer": set(),
  "number": set(),
  "boolean": set(),
  "null": set(),
  "array": {"items", "minItems", "maxItems"},
  "object": {"properties", "required", "additionalProperties"},
}

_BARE = patterns.inverted([(0, 0x1F), (0x22, 0x22), (0x5C, 0x5C)])
_DIGITS = patterns.parse("0|[1-9][0-9]*")
_INTEGER = language.Sequence((patterns.parse("-?"), _DIGITS))
_NUMBER = language.Sequence(
  (_INTEGER, patterns.parse(r"(\.[0-9]+)?([eE][+-]?[0-9]+)?"))
)
_CHARACTER = language.Either(
  (language.characters(_BARE), patterns.parse(r'\\["\\/bfnrt]'))
)
_SPACE = language.Repeat(language.text(" "), 0, 1)


def parse(schema: Any) -> language.Expression:
  """Returns the expression of the JSON that a schema allows.

  Raises:
    ValueError: not a schema, or one with a keyword that is not supported; names
      where.
  """
  definitions = schema.get("$defs", {}) if isinstance(schema, Mapping) else {}
  return _Parser(definitions).value(schema, "schema", ())


class _Parser:
  """Reads the parts of one schema."""

  def __init__(self, definitions):
    self._definitions = definitions
    self._made = {}  # of definitions, as two of one may be in each of many

  def value(self, schema, where, within) -> language.Expression:
    """Reads a schema in those of the names `within`."""
    if schema is True or schema == {}:
      return _any(NESTED)
    if not isinstance(schema, Mapping) or where.count(".") > _DEEPEST:
      _fail(where, "expected a schema, an object that is not nested so deep")
    keys = set(schema) - _REMARKS
    if "$ref" in keys:
      _check_keys(keys, {"$ref"}, where)
      return self._reference(schema["$ref"], where, within)
    if "const" in keys:
      _check_keys(keys, {"const", "type"}, where)
      return _literal(schema["const"])
    if "enum" in keys:
      _check_keys(keys, {"enum", "type"}, where)
      _check_list(schema["enum"], f"{where}.enum")
      return language.Either(tuple(map(_literal, schema["enum"])))
    if "anyOf" in keys:
      _check_keys(keys, {"anyOf"}, where)
      _check_list(schema["anyOf"], f"{where}.anyOf")
      found = (
        self.value(part, f"{where}.anyOf.{i}", within)
        for i, part in enumerate(schema["anyOf"])
      )
      return language.Either(tuple(found))
    return self._typed(schema, keys - {"type"}, where, within)

  def _reference(self, name, where, within):
    known = isinstance(self._definitions, Mapping) and self._definitions
    prefix, _, key = str(name).rpartition("/")
    if prefix != "#/$defs" or not known or key not in known:
      _fail(where, f'$ref {name!r:.60}, expected "#/$defs/..." of the schema')
    if key in within:
      _fail(where, f"$ref {name!r:.60} contains itself, which has no end")
    if key not in self._made:
      part = self.value(known[key], f"{where}.{key}", (*within, key))
      self._made[key] = part
    return self._made[key]

  def _typed(self, schema, keys, where, within):
    types = schema.get("type")
    types = types if isinstance(types, list) and types else [types]
    allowed = set()
    for kind in types:
      if not isinstance(kind, str) or kind not in _KEYWORDS:
        _fail(where, f'"type" is {kind!r:.60}, expected {", ".join(_KEYWORDS)}')
      allowed |= _KEYWORDS[kind]
    _check_keys(keys, allowed, where)
    made = [self._of_type(kind, schema, where, within) for kind in types]
    return language.Either(tuple(made))

  def _of_type(self, kind, schema, where, within):
    match kind:
      case "string":
        return _string(schema, where)
      case "integer":
        return _INTEGER
      case "number":
        return _NUMBER
      case "boolean":
        return language.Either((language.text("true"), language.text("false")))
      case "null":
        return language.text("null")
      case "array":
        item = self.value(schema.get("items", {}), f"{where}.items", within)
        return _array(item, *_bounds(schema, "Items", where))
      case "object":
        return self._object(schema, where, within)

  def _object(self, schema, where, within):
    properties = schema.get("properties")
    required = schema.get("required", [])
    others = schema.get("additionalProperties", True)
    if not isinstance(others, bool):
      _fail(where, "additionalProperties with a schema is not supported")
    if not isinstance(required, list):
      _fail(where, f"required is {required!r:.60}, expected a list of names")
    if properties is None:
      if required or not others:
        _fail(where, "has no properties, which required or other rules name")
      return _any_object(NESTED)
    if not isinstance(properties, Mapping):
      _fail(where, f"properties is {properties!r:.60}, expected an object")
    if missing := [name for name in required if name not in properties]:
      _fail(where, f"required {missing[0]!r:.60} is none of its properties")
    members = []
    for name, part in properties.items():
      made = self.value(part, f"{where}.{name:.40}", within)
      members.append((_member(_literal(name), made), name in required))
    return _braces(_chosen(members))


def _string(schema, where):
  if "pattern" in schema:
    if {"minLength", "maxLength"} & set(schema):
      _fail(where, "a pattern with minLength or maxLength is not supported")
    text = schema["pattern"]
    if not isinstance(text, str) or text[:1] != "^" or text[-1:] != "$":
      _fail(where, f"pattern is {text!r:.60}, expected all of a text: ^...$")
    content = _quotable(patterns.parse(text[1:-1]))
  else:
    content = language.Repeat(_CHARACTER, *_bounds(schema, "Length", where))
  quote = language.text('"')
  return language.Sequence((quote, content, quote))


def _quotable(expression):
  """Leaves out what could not stand between quotation marks as it is."""
  match expression:
    case language.Symbols(ranges):
      kept = []
      for first, last in ranges:
        for low, high in _BARE:
          if max(first, low) <= min(last, high):
            kept.append((max(first, low), min(last, high)))
      return language.Symbols(tuple(kept))
    case language.Repeat(part, least, most):
      return language.Repeat(_quotable(part), least, most)
    case _:
      return type(expression)(tuple(map(_quotable, expression.parts)))


def _bounds(schema, what, where):
  """Returns least and most of a length."""
  least, most = schema.get(f"min{what}", 0), schema.get(f"max{what}")
  for name, bound in ((f"min{what}", least), (f"max{what}", most)):
    is_number = isinstance(bound, int) and not isinstance(bound, bool)
    if bound is not None and not (is_number and bound >= 0):
      _fail(where, f"{name} is {bound!r:.60}, expected a number of 0 or more")
  if most is not None and most < least:
    _fail(where, f"min{what} {least} is more than max{what} {most}")
  return least, most


def _array(item, least, most):
  """Writes items with commas between."""
  rest = language.Sequence((language.text(","), _SPACE, item))
  nothing = language.Sequence(())
  if most == 0:
    inner = nothing
  else:
    more = language.Repeat(
      rest, max(least - 1, 0), None if most is None else most - 1
    )
    inner = language.Sequence((item, more))
    inner = inner if least else language.Either((nothing, inner))
  return language.Sequence((language.text("["), inner, language.text("]")))


def _member(name, value):
  return language.Sequence((name, language.text(":"), _SPACE, value))


def _braces(inner):
  return language.Sequence((language.text("{"), inner, language.text("}")))


def _chosen(members):
  """Members in their order, those that are not required perhaps left out."""
  options = []
  for i, (first, is_required) in enumerate(members):
    parts = [first]
    for member, needed in members[i + 1 :]:
      rest = language.Sequence((language.text(","), _SPACE, member))
      parts.append(language.Repeat(rest, int(needed), 1))
    options.append(language.Sequence(tuple(parts)))
    if is_required:
      break
  else:
    options.append(language.Sequence(()))
  return language.Either(tuple(options))


def _any(nested):
  """Any value."""
  scalars = (_string({}, ""), _NUMBER, *map(_literal, (True, False, None)))
  if not nested:
    return language.Either(scalars)
  array = _array(_any(nested - 1), 0, None)
  return language.Either((*scalars, array, _any_object(nested)))


def _any_object(nested):
  member = _member(_string({}, ""), _any(nested - 1))
  rest = language.Sequence((language.text(","), _SPACE, member))
  inner = language.Sequence((member, language.Repeat(rest, 0, None)))
  return _braces(language.Repeat(inner, 0, 1))


def _literal(value):
  return language.text(json.dumps(value, ensure_ascii=False))


def _check_keys(keys, allowed, where):
  if unknown := sorted(keys - allowed):
    known = ", ".join(sorted(allowed)) or "none"
    _fail(where, f"{unknown[0]!r:.60} is not supported here, expected {known}")


def _check_list(values, where):
  if not isinstance(values, list) or not values:
    _fail(where, f"is {values!r:.60}, expected a list of values")


def _fail(where, problem):
  raise ValueError(f"json_schema: {where:.200}: {problem}.")
