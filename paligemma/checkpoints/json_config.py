"""A model's config in JSON: every value is checked when it is asked for."""

import math
from collections.abc import Mapping
from typing import Any

from paligemma import messages, registry


class Section:
  """An object in a config, with defaults for what is absent or null.

  All methods raise a ValueError that names the key for a value that is not
  of the kind.

  Attributes:
    where: What messages begin with.
    values: Key -> value, defaults among them.
  """

  def __init__(
    self, where: str, given: Mapping[str, Any], defaults: Mapping[str, Any] = {}
  ):
    self.where = where
    self.given = given
    stated = {key: x for key, x in given.items() if x is not None}
    self.values = {**defaults, **stated}

  def with_defaults(self, defaults: Mapping[str, Any]) -> "Section":
    return Section(self.where, self.given, defaults)

  def section(self, key: str, **defaults: Any) -> "Section":
    """The object under a key."""
    given = self.values.get(key)
    if not isinstance(given, dict):
      raise self.error(key, "an object")
    return Section(f"{self.where}: {key}", {**defaults, **given})

  def size(self, key: str) -> int:
    value = self.values.get(key)
    if type(value) is not int or not 0 < value < 2**31:
      raise self.error(key, "a positive integer")
    return value

  def sizes(self, keys: Mapping[str, str]) -> dict[str, int]:
    """Name -> size, of name -> key."""
    return {name: self.size(key) for name, key in keys.items()}

  def number(self, key: str) -> int | float:
    value = self.values.get(key)
    if type(value) not in (int, float) or not 0 < value < math.inf:
      raise self.error(key, "a positive number")
    return value

  def flag(self, key: str) -> bool:
    if type(value := self.values.get(key)) is not bool:
      raise self.error(key, "true or false")
    return value

  def is_null(self, key: str) -> bool:
    """Whether null is given, also in place of a default."""
    return self.given.get(key, self.values.get(key)) is None

  def cap(self, key: str) -> float | None:
    """A number, or None where null is given."""
    return None if self.is_null(key) else float(self.number(key))

  def check(self, expected: Mapping[str, Any]) -> None:
    """Raises unless values are the only ones that our models can have."""
    for key, value in expected.items():
      if self.values.get(key) != value:
        raise self.error(key, f"{value!r}, our models know no other")

  def lookup(self, key: str, table: Mapping[str, Any]) -> Any:
    """What a table has of a value."""
    value = self.values.get(key)
    if not isinstance(value, str) or value not in table:
      hint = registry.did_you_mean(str(value), table)
      raise self.error(key, f"one of: {', '.join(sorted(table))}.{hint}")
    return table[value]

  def error(self, key: str, expected: str) -> ValueError:
    found = messages.shown(repr(self.values.get(key)))
    return ValueError(f"{self.where}: {key} is {found}, expected {expected}")
