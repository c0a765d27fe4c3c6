"""Typed fields of an example; an error says in one line what is wrong."""

from typing import Any

from paligemma import messages, registry

Example = dict[str, Any]


def where(example: Example) -> str:
  """Returns what errors begin with, such as "train.jsonl:12"."""
  return example.get("_where", "example")


def error(example: Example, problem: object) -> ValueError:
  """Returns the error of an example."""
  return ValueError(f"{where(example)}: {problem}")


def wrong(example: Example, key: str, expected: str) -> ValueError:
  """Returns the error of a field whose value is not what was expected."""
  found = f"{example[key]!r:.60}"
  return error(example, f'expected {expected} under "{key}", found {found}')


def read(example: Example, key: str) -> Any:
  """Returns example[key]; an error lists the fields and the nearest name."""
  if key in example:
    return example[key]
  present = [name for name in example if not name.startswith("_")]
  raise error(
    example,
    f'missing key "{messages.shown(key)}", found '
    f"{messages.shown(', '.join(present))}."
    + registry.did_you_mean(key, present),
  )


def text(example: Example, key: str) -> str:
  """Returns a field that must be a text."""
  value = read(example, key)
  if not isinstance(value, str):
    raise wrong(example, key, "a text")
  return value
