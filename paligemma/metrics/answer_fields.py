"""Typed fields of an example; an error says in one line what is wrong."""

from collections.abc import Collection
from typing import Any

import numpy as np

from paligemma import messages, registry
from paligemma.data import example_fields
from paligemma.metrics.metric import Example


def read(example: Example, key: str, what: str) -> Any:
  """Returns example[key]; an error says that `what`, "answer", is missing."""
  if key in example:
    return example[key]
  found = sorted(name for name in example if not name.startswith("_"))
  raise example_fields.error(
    example,
    f'no {what} under "{key}", found {messages.shown(", ".join(found))}.'
    f"{registry.did_you_mean(key, found)}",
  )


def text(example: Example, key: str, what: str) -> str:
  """Returns a field that must be a text."""
  value = read(example, key, what)
  if not isinstance(value, str):
    raise wrong(example, key, "a text")
  return value


def texts(example: Example, key: str, what: str) -> list[str]:
  """Returns a field that must be a list, tuple or array of texts, not empty."""
  value = read(example, key, what)
  if not _are_texts(value):
    raise wrong(example, key, "a list of texts, one at least")
  return list(value)


def text_or_texts(example: Example, key: str, what: str) -> str | list[str]:
  """Returns a field that must be a text, or as for `texts`."""
  value = read(example, key, what)
  if isinstance(value, str):
    return value
  if not _are_texts(value):
    raise wrong(example, key, "a text, or a list of one or more texts")
  return list(value)


def accepted(example: Example, key: str, what: str) -> list[str]:
  """Returns one or more texts as a list, of a field as for `text_or_texts`."""
  value = text_or_texts(example, key, what)
  return [value] if isinstance(value, str) else value


def choice(
  example: Example, key: str, what: str, options: Collection[str]
) -> str:
  """Returns a field that must be one of the options."""
  value = read(example, key, what)
  if isinstance(value, str) and value in options:
    return value
  hint = registry.did_you_mean(value, options) if type(value) is str else ""
  raise wrong(example, key, f"one of: {', '.join(options)}", hint)


def wrong(
  example: Example, key: str, expected: str, hint: str = ""
) -> ValueError:
  """Returns the error for a field whose value is not what was expected."""
  problem = f'"{key}" is {example[key]!r:.60}, expected {expected}.{hint}'
  return example_fields.error(example, problem)


def _are_texts(value) -> bool:
  return (
    isinstance(value, list | tuple | np.ndarray)
    and np.ndim(value) == 1
    and len(value) > 0
    and all(isinstance(element, str) for element in value)
  )
