"""Parameter trees by name: flat and nested forms, regex rules, comparison.

A nested tree is a dict of dicts; its flat form joins the keys with "/":

    {"img": {"head": {"bias": x}}}  <->  {"img/head/bias": x}
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from paligemma import registry

Flat = dict[str, Any]

REQUIRED = object()  # match_first: some rule must match every name


def flatten(tree: Mapping[str, Any]) -> Flat:
  """Returns the leaves of nested dicts by "/"-joined name, sorted by name.

  A leaf is any value that is not a mapping. Empty mappings are dropped.
  """
  return dict(sorted(_leaves(tree, "")))


def _leaves(tree, prefix):
  for key, value in tree.items():
    if isinstance(value, Mapping):
      yield from _leaves(value, f"{prefix}{key}/")
    else:
      yield f"{prefix}{key}", value


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the nested dicts of a flat tree, the inverse of `flatten`.

  Raises:
    ValueError: A name is a leaf and the prefix of another one ("a", "a/b").
  """
  tree = {}
  for name, leaf in flat.items():
    *parents, last = name.split("/")
    node = tree
    for parent in parents:
      node = node.setdefault(parent, {})
      if not isinstance(node, dict):
        raise ValueError(f'"{name}" lies under "{parent}", which is a leaf')
    if last in node:
      raise ValueError(f'"{name}" is a leaf and the prefix of another name')
    node[last] = leaf
  return tree


def match_first(
  rules: Sequence[tuple[str, Any]],
  names: Iterable[str],
  *,
  default: Any = REQUIRED,
) -> dict[str, Any]:
  """Maps every name to the value of the first rule that matches it.

  Args:
    rules: (regex, value) pairs; a regex must match the whole name.
    names: Names of leaves.
    default: Value of the names that no rule matches. Without it, such a name
      is an error.

  Raises:
    ValueError: A regex is malformed or matches no name (except ".*"), or a name
      is matched by no rule.
  """
  names = list(names)
  compiled = []
  for pattern, value in rules:
    try:
      compiled.append((re.compile(pattern), value))
    except re.error as e:
      raise ValueError(f'malformed regex "{pattern}": {e}') from None
  for regex, _ in compiled:
    if regex.pattern != ".*" and not any(map(regex.fullmatch, names)):
      raise ValueError(
        f'rule "{regex.pattern}" matches none of {len(names)} names (a rule '
        "must match the whole name)."
        + registry.did_you_mean(regex.pattern, names)
      )
  matched = {}
  for name in names:
    values = (value for regex, value in compiled if regex.fullmatch(name))
    matched[name] = next(values, default)
    if matched[name] is REQUIRED:
      raise ValueError(
        f'no rule matches "{name}"; add one, or end the rules with ".*"'
      )
  return matched


def match_any(patterns: Sequence[str], names: Iterable[str]) -> dict[str, bool]:
  """Returns for every name whether some regex matches the whole of it.

  Raises:
    ValueError: As `match_first`: a misspelled regex cannot silently freeze
      parameters that it should train.
  """
  return match_first([(p, True) for p in patterns], names, default=False)


def partition(
  flat: Mapping[str, Any], mask: Mapping[str, bool]
) -> tuple[Flat, Flat]:
  """Splits a flat tree in two by a mask over the same names: (true, false)."""
  assert flat.keys() == mask.keys(), sorted(flat.keys() ^ mask.keys())
  return (
    {name: leaf for name, leaf in flat.items() if mask[name]},
    {name: leaf for name, leaf in flat.items() if not mask[name]},
  )


def under(prefix: str, flat: Mapping[str, Any]) -> Flat:
  """The leaves whose names begin with a prefix, without it."""
  return {
    name.removeprefix(prefix): leaf
    for name, leaf in flat.items()
    if name.startswith(prefix)
  }


def merge(*flats: Mapping[str, Any]) -> Flat:
  """Returns the union of flat trees, sorted by name.

  Raises:
    ValueError: Two of them have the same name.
  """
  union = {}
  for flat in flats:
    if twice := sorted(union.keys() & flat.keys()):
      raise ValueError(f'"{twice[0]}" stands in two of the trees to merge')
    union.update(flat)
  return dict(sorted(union.items()))


def compare(expected: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
  """Lists how the names and shapes of a flat tree differ from the expected.

  Args:
    expected, found: Name -> shape, or name -> object with a `shape`.

  Returns:
    One line per differing leaf, sorted by name.
  """
  expected, found = (
    {name: tuple(getattr(leaf, "shape", leaf)) for name, leaf in flat.items()}
    for flat in (expected, found)
  )
  missing = expected.keys() - found.keys()
  lines = []
  for name in sorted(expected.keys() | found.keys()):
    if name in missing:
      lines.append(f"{name}: missing, expected {expected[name]}")
    elif name not in expected:
      # With many missing names a search is slow, and no single one misspelled.
      hint = registry.did_you_mean(name, missing) if len(missing) <= 50 else ""
      lines.append(f"{name}: unexpected, found {found[name]}.{hint}")
    elif expected[name] != found[name]:
      lines.append(
        f"{name}: found shape {found[name]}, expected {expected[name]}"
      )
  return lines
