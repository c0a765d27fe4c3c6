"""Fields of an example, or one line that says what is wrong with them."""

from typing import Any

from paligemma import messages, registry

Example = dict[str, Any]


def where(example: Example) -> str:
  """The place that errors name, "train.jsonl:12"."""
  return example.get("_where", "example")


def read(example: Example, key: str) -> Any:
  """The field of that name.

  Raises:
    ValueError: there is none; lists those there are and the nearest.
  """
  if key in example:
    return example[key]
  present = [name for name in example if not name.startswith("_")]
  raise ValueError(
    f'{where(example)}: missing key "{messages.shown(key)}", found '
    f"{messages.shown(', '.join(present))}."
    + registry.did_you_mean(key, present)
  )


def text(example: Example, key: str) -> str:
  """The field, which must be a text."""
  value = read(example, key)
  if not isinstance(value, str):
    raise wrong(example, key, "a text")
  return value


def wrong(example: Example, key: str, expected: str) -> ValueError:
  """The error of a field that holds something else than was expected."""
  return ValueError(
    f'{where(example)}: expected {expected} under "{key}", found '
    f"{example[key]!r:.60}"
  )
