"""Annotations and shapes are checked at every call while tests run."""

import contextlib
from collections.abc import Callable, Iterator

import beartype
import jaxtyping

# JAX also builds these from placeholders, which are no arrays.
_PYTREES = ("Call.__init__", "Mask.__init__")

# An int is a float, as in PEP 484.
_check = beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))


def check(function: Callable) -> Callable:
  """Returns the function with a check of its arguments and its result."""
  return function if function.__qualname__ in _PYTREES else _check(function)


@contextlib.contextmanager
def off() -> Iterator[None]:
  """Stops the checks, for a test of what users are told about wrong types."""
  jaxtyping.config.update("jaxtyping_disable", True)
  try:
    yield
  finally:
    jaxtyping.config.update("jaxtyping_disable", False)
