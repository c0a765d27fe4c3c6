"""Programs whose sums CPUs may take in another order.

LLVM adds a row of numbers one by one unless it may reorder them; then it adds
16 at a time. Only code that is written for it asks `is_allowed`, since XLA's
own products and sums are fast either way.
"""

import contextvars
import functools

import jax
import jax.numpy as jnp

# Nothing beyond the order: no assumption on nan and inf, exact division.
_OPTIONS = {
  "xla_cpu_enable_fast_math": True,
  "xla_cpu_fast_math_honor_nans": True,
  "xla_cpu_fast_math_honor_infs": True,
  "xla_cpu_fast_math_honor_division": True,
  "xla_cpu_fast_math_honor_functions": True,
}

_allowed = contextvars.ContextVar("allowed", default=False)


def is_allowed() -> bool:
  """Whether what is being traced is a program of `Program` for CPUs."""
  return _allowed.get()


class Program:
  """jax.jit, whose program for CPUs may reorder sums.

  Within another jax.jit, which says itself how it is compiled, it is jax.jit
  and no more.
  """

  def __init__(self, function, **options):
    """Takes the arguments of jax.jit."""

    @functools.wraps(function)
    def allowing(*args, **kwargs):
      token = _allowed.set(True)
      try:
        return function(*args, **kwargs)
      finally:
        _allowed.reset(token)

    self._on_cpus = jax.jit(allowing, compiler_options=_OPTIONS, **options)
    self._otherwise = jax.jit(function, **options)

  def __call__(self, *args, **kwargs):
    is_nested = isinstance(jnp.zeros(()), jax.core.Tracer)
    if jax.default_backend() == "cpu" and not is_nested:
      return self._on_cpus(*args, **kwargs)
    return self._otherwise(*args, **kwargs)

  def num_compiled(self) -> int:
    """How often it was compiled so far, for CPUs and otherwise."""
    return self._on_cpus._cache_size() + self._otherwise._cache_size()
