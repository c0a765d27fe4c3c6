"""Tables of names: lookup with the nearest name, and calls written as text."""

import ast
import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from paligemma import messages


class UnknownNameError(ValueError):
  """Raised for a name that a table lacks.

  Attributes:
    known: the names of the table.
  """

  def __init__(self, message: str, known: Iterable[str]):
    super().__init__(message)
    self.known = list(known)


def did_you_mean(name: str, options: Iterable[str]) -> str:
  """Returns ' Did you mean "x"?' for the nearest option, '' if none is near."""
  by_lower = {option.lower(): option for option in options}
  for near in difflib.get_close_matches(name.lower(), by_lower, n=1):
    return f' Did you mean "{messages.shown(by_lower[near])}"?'
  return ""


def lookup(table: Mapping[str, Any], name: str, what: str) -> Any:
  """Returns table[name].

  Args:
    table: The known names.
    name: What a user gave.
    what: A name of this table is a ..., for the message: "variant", "sampler".

  Raises:
    UnknownNameError: The name is unknown; lists the known ones and the nearest.
  """
  if name in table:
    return table[name]
  raise UnknownNameError(
    f'unknown {what} "{messages.shown(str(name))}", expected one of: '
    f"{', '.join(sorted(table))}." + did_you_mean(str(name), table),
    table,
  )


def make(
  text: str,
  table: Mapping[str, Callable],
  what: str,
  *given: Any,
  nested: bool = False,
) -> Any:
  """Calls a function of a table as a text says; returns its result.

  A name alone is a call without arguments. Arguments are Python literals:

      greedy    top_k(40, temperature=0.7)    choices(["yes", "no"])

  No other expression is evaluated, so the text may be untrusted.

  Args:
    text: The name or the call.
    table: Name -> function.
    what: As in `lookup`.
    *given: Arguments before those in the text, such as a tokenizer.
    nested: Whether an argument may itself be a call of this table:
      best_of(n=16, sampler=top_k(k=40)).

  Raises:
    ValueError: The text is not of this form, a name is unknown, arguments are
      missing or too many, or the function raises ValueError or TypeError.
  """

  def call(node):
    name = ast.unparse(node.func if isinstance(node, ast.Call) else node)
    function = lookup(table, name, what)
    arguments, options = list(given), {}
    if isinstance(node, ast.Call):
      parameters = inspect.signature(function).parameters
      known = dict(list(parameters.items())[len(given) :])
      arguments += map(value, node.args)
      for option in node.keywords:
        lookup(known, option.arg, f"argument of {name}")
        if option.arg in options:
          raise ValueError(f'argument "{option.arg}" of {name} is given twice')
        options[option.arg] = value(option.value)
    inspect.signature(function).bind(*arguments, **options)
    return function(*arguments, **options)

  def value(node):
    if nested and isinstance(node, ast.Name | ast.Call):
      return call(node)
    try:
      return ast.literal_eval(node)
    except (TypeError, ValueError):
      raise ValueError(
        f'cannot read "{ast.unparse(node)}", expected a plain value'
      ) from None

  try:
    node = ast.parse(text.strip(), mode="eval").body
    if not isinstance(node, ast.Name | ast.Call):
      raise ValueError(
        f'cannot read "{ast.unparse(node)}", expected a name or a call'
      )
    return call(node)
  except (SyntaxError, TypeError, ValueError) as error:
    reason = getattr(error, "msg", error)
    message = messages.one_line(f'{what} "{text}": {reason}')
    raise ValueError(message) from None
